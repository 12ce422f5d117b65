"""Tasks of lm-evaluation-harness on an exported folder, whose class sleeps over what it reads and writes; several N in one call.

It needs lm-eval 0.4.13 and transformers 5.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleeptrain.errors import UserError

UNLIMITED = 1 << 40
"""Tokens of the longest text: a sleeping model has no limit, and the harness must not cut texts."""

Pair = tuple[Any, list[int], list[int]]
"""A request, the tokens of its context, and those that are scored after it."""


def evaluate_folder(
    folder: Path, tasks: Sequence[str], passes: Sequence[int], include: Path | None = None, limit: int | None = None
) -> dict[int, dict[str, Any]]:
    """The harness's results by N = passes, each by task; `tasks` are names of the harness or of YAML files in `include`.

    limit   samples of each task; None: all

    Raises UserError where a package is missing, the folder has no section `sleep`, or a task is unknown.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer

        from sleeptrain.convert.modeling_sleep import SleepForCausalLM
    except ImportError as error:
        raise UserError(
            f"the harness needs lm-eval 0.4.13 and transformers 5 in one environment, and {error.name} is missing or too old; "
            "pip install lm_eval==0.4.13 transformers==5.23.0 beside sleeptrain, in an environment of its own"
        ) from None
    _check(folder)
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise UserError(f"--tasks {unknown[0]} is no task of the harness{f' nor of {include}' if include else ''}")
    model = SleepForCausalLM.from_pretrained(folder).eval()
    harness = sleeping_harness(model, AutoTokenizer.from_pretrained(folder))
    results = {}
    for n in passes:
        model.config.sleep = {**model.config.sleep, "passes": n}
        found = lm_eval.simple_evaluate(model=harness, tasks=list(tasks), task_manager=manager, limit=limit)
        results[n] = found["results"]
    return results


def score(model: Any, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Of each continuation after the context: its log-likelihood, and whether every token is the likeliest one.

    The context is read once. Tokens that are scored are read as generated ones are: under `trigger: context` their window does
    not sleep.
    """
    read = model(torch.tensor([context]), logits_to_keep=1)
    scores, window = [], model.config.sleep["window"]
    for continuation in continuations:
        cache, logits = copy.deepcopy(read.past_key_values), read.logits
        total, greedy = 0.0, True
        targets = torch.tensor(continuation)
        for piece in targets.split(window):  # so that no logits of a long text are in memory together
            new = model(piece[None], past_key_values=cache, generated=True).logits
            predicted: Tensor = torch.cat([logits, new[:, :-1]], 1)[0].float().log_softmax(-1)
            total += predicted.gather(1, piece[:, None]).sum().item()
            greedy &= bool((predicted.argmax(-1) == piece).all())
            logits = new[:, -1:]
        scores.append((total, greedy))
    return scores


def sleeping_harness(model: Any, tokenizer: Any) -> Any:
    """The model as one of the harness: scoring and generation sleep over the context, and texts are not cut."""
    from lm_eval.models.huggingface import HFLM

    class SleepingHarness(HFLM):  # type: ignore[misc]
        """Scores with the state of a context that is read once, and rolls over whole documents."""

        def _loglikelihood_tokens(self, requests: list[Pair], *_: Any, **__: Any) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            order = sorted(range(len(requests)), key=lambda i: requests[i][1])
            for context, group in groupby(order, lambda i: requests[i][1]):
                places = list(group)
                scores = score(self.model, context, [requests[i][2] for i in places])
                for i, value in zip(places, scores, strict=True):
                    found[i] = value
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [self.tok_encode(request.args[0]) for request in requests]
            return [total for total, _ in self._loglikelihood_tokens([(None, t[:1], t[1:]) for t in texts])]

    return SleepingHarness(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=UNLIMITED)


def _check(folder: Path) -> None:
    """Raise UserError unless a folder is an export with a model that sleeps."""
    path = folder / "config.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); export a run: sleeptrain export RUN --to hf --out {folder}"
        ) from None
    if "sleep" not in body:
        raise UserError(f"{path} has no section sleep; export a run: sleeptrain export RUN --to hf --out DIR")
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} has no tokenizer.json, which tasks of text need; its data was not text")
