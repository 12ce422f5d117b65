"""The model `sleep` of lm-evaluation-harness: an exported folder, whose windows sleep while contexts are read.

Importing this module registers it, so that `simple_evaluate(model="sleep", model_args={"pretrained": FOLDER, "passes": 4})` works.
It needs lm_eval and transformers 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from sleeptrain.errors import UserError
from sleeptrain.evaluate.continuations import ScoredText, continued, likelihoods
from sleeptrain.evaluate.exported import open_exported

TOKENS = 256
"""The largest number of generated tokens where a task names none."""


class StopTexts(StoppingCriteria):
    """Ends a row whose newest tokens, after the first `prompt`, contain one of some texts."""

    def __init__(self, tokenizer: Any, texts: list[str], prompt: int) -> None:
        self._tokenizer, self._texts, self._prompt = tokenizer, texts, prompt
        # A token has at least a byte of the text, or is a special one.
        self._newest = max(len(text.encode()) for text in texts) + 8

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each row ends, bool [rows]; it is called after each token."""
        newest = input_ids[:, max(self._prompt, input_ids.shape[1] - self._newest) :].tolist()
        ends = [any(t in self._tokenizer.decode(row, skip_special_tokens=True) for t in self._texts) for row in newest]
        return torch.tensor(ends, device=input_ids.device)


@register_model("sleep")
class SleepLM(TemplateLM):
    """An exported model. Full windows of every text sleep with N = `passes` before they are evicted, so that no text is too long.

    loglikelihood          reads a context once for all its continuations, whose tokens are targets
    loglikelihood_rolling  reads a text once, from the start of a document; all its tokens are targets
    generate_until         generates in groups of equal length
    """

    def __init__(
        self, pretrained: str, passes: int | None = None, batch_size: int | str = 8, device: str | None = None,
        dtype: str = "auto", trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        """
        pretrained         the exported folder
        passes             N (default: as trained); it may be changed later
        batch_size         rows that are computed at once
        device             of torch (default: the GPU where there is one)
        dtype              of the weights: auto (that of the folder), float32, bfloat16
        trust_remote_code  run the class in the folder's modeling_sleep.py; otherwise that of the installed sleeptrain

        Raises UserError where the folder is no complete export, and for values out of range.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size {batch_size!r} must be a whole number of at least 1")
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        exported = open_exported(Path(pretrained), dtype, trust_remote_code)
        self.model, self.tokenizer = exported.model.to(self._device), exported.tokenizer
        self.batch_size, self.folder = int(batch_size), str(pretrained)
        self.passes = self.model.config.sleep["passes"] if passes is None else passes

    @property
    def passes(self) -> int:
        """N of all sleeps from now on."""
        return int(self.model.config.sleep["passes"])

    @passes.setter
    def passes(self, passes: int) -> None:
        if not isinstance(passes, int) or passes < 1:
            raise UserError(f"passes {passes!r} must be a whole number of at least 1; the first pass is counted")
        self.model.config.sleep["passes"] = passes

    @property
    def eot_token_id(self) -> int:
        """The token that starts a document, which ends the one before. UserError for a task with symbols, which has none."""
        if self.tokenizer.bos_token_id is None:
            raise UserError(
                f"{self.folder} has the symbols of a task and no token that starts a text; every request must have a context"
            )
        return int(self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, after that of the start of a document. UserError for what the tokenizer cannot encode."""
        try:
            return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{string[:60]!r} cannot be encoded by {self.folder}/tokenizer.json: {error}") from None

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, whatever its length."""
        texts = [request.args[0] for request in requests]
        start = self.eot_token_id
        tokens = [((text,), [start], self.tok_encode(text, add_special_tokens=False)) for text in texts]
        scores = [log for log, _ in self._loglikelihood_tokens(tokens, disable_tqdm)]
        for text, log in zip(texts, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), log)
        return scores

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to one of its stop texts."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        found: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as bar:
            for group in groups.values():
                contexts, options = [requests[i].args[0] for i in group], requests[group[0]].args[1]
                found |= dict(zip(group, self._generate(contexts, options, bar), strict=True))
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[i])
        return [found[i] for i in range(len(requests))]

    def get_model_info(self) -> dict[str, Any]:
        """What results say about the model."""
        section = {
            key: value for key, value in self.model.config.sleep.items() if key not in ("passes", "feedback_weight")
        }
        return {"folder": self.folder, "dtype": str(self.model.dtype).removeprefix("torch."), "sleep": section}

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of tokens after others, and whether they are the most probable ones."""
        for text, context, tokens in requests:
            if not context or not tokens:
                raise UserError(
                    f"{str(text)[:120]} has {'no continuation' if context else 'no context'}: nothing to score"
                )
        asked = [ScoredText(tuple(context), tuple(tokens)) for _, context, tokens in requests]
        with tqdm(total=len(asked), disable=disable_tqdm, desc="scoring") as bar:
            scores = [(one.log, one.greedy) for one in likelihoods(self.model, asked, self.batch_size, bar.update)]
        for (text, _, _), score in zip(requests, scores, strict=True):
            if len(text) == 2:
                self.cache_hook.add_partial("loglikelihood", text, score)
        return scores

    def _generate(self, contexts: list[str], options: dict[str, Any], bar: Any) -> list[str]:
        """The texts that follow some contexts, with the same options."""
        given = dict(normalize_gen_kwargs(options, TOKENS))
        stops = [text for text in given.pop("until") if text]
        count, sample = given.pop("max_gen_toks"), given.pop("do_sample")
        sampling = given if sample else {}
        tokens = [self.tok_encode(context) or [self.eot_token_id] for context in contexts]

        def criteria(length: int) -> StoppingCriteriaList | None:
            return StoppingCriteriaList([StopTexts(self.tokenizer, stops, length)]) if stops else None

        new = continued(
            self.model,
            tokens,
            self.batch_size,
            bar.update,
            criteria,
            max_new_tokens=count,
            do_sample=sample,
            **sampling,
        )
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))] for text in texts
        ]
