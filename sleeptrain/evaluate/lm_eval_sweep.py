"""Tasks of lm-evaluation-harness at one or more numbers of passes. Needs lm_eval and transformers 5."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sleeptrain.errors import UserError
from sleeptrain.evaluate.lm_eval_model import SleepLM
from sleeptrain.evaluate.table import print_table

SEED = 1234
"""Of the choice of examples and of sampling, which are the same for every N."""
BOOTSTRAP = 1000
"""Samples for standard errors that have no formula."""
Results = dict[int, dict[str, Any]]
"""What lm_eval returns, by N."""


@dataclass(frozen=True)
class HarnessTasks:
    """What is evaluated."""

    names: Sequence[str]
    """Tasks, groups and tags by name, with wildcards, or YAML files."""
    folder: Path | None = None
    """More YAML files of tasks."""
    limit: int | None = None
    """The number of samples of each task; None: all."""
    shots: int | None = None
    """The number of examples in a context; None: as the task says."""

    def load(self) -> Any:
        """The tasks, with their data. Raises UserError for a name that is not known."""
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        own = TaskManager(include_path=str(self.folder), include_defaults=False) if self.folder else None
        if own and all(_matches(own, name) for name in self.names):
            manager = own  # The tasks of the library are many, and take seconds.
        else:
            manager = TaskManager(include_path=str(self.folder) if self.folder else None)
        found = {
            match: None for name in self.names for match in _matches(manager, name) or [self._unknown(manager, name)]
        }
        return manager.load(list(found))

    def _unknown(self, manager: Any, name: str) -> str:
        near = get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "name one that lm_eval ls tasks lists, or --task-files DIR"
        )
        raise UserError(f"lm_eval has no task {name!r}; {hint}")


def _matches(manager: Any, name: str) -> list[str]:
    """The tasks that a name stands for."""
    return [name] if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file() else manager.match_tasks([name])


def sweep(lm: SleepLM, tasks: HarnessTasks, passes: Sequence[int]) -> Results:
    """The results of the tasks for each N; their requests, examples and random numbers are the same."""
    import torch
    from lm_eval.evaluator import evaluate

    loaded, results = tasks.load(), Results()
    for n in passes:
        lm.passes = n
        for task in loaded["tasks"].values():
            # A task that says 0 keeps it, as in lm_eval's own command.
            if task.get_config("num_fewshot") is None or (
                tasks.shots is not None and task.get_config("num_fewshot") != 0
            ):
                task.set_config(key="num_fewshot", value=tasks.shots or 0)
            task.set_fewshot_seed(seed=SEED)
        torch.manual_seed(SEED)
        results[n] = evaluate(lm=lm, task_dict=loaded, limit=tasks.limit, bootstrap_iters=BOOTSTRAP)
    return results


def print_results(results: Results) -> None:
    """Print a row for each metric, with a column for each N: the value, and its standard error."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for n, result in results.items():
        for task, metric, value, error in _values(result):
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            rows.setdefault((task, metric), {})[n] = shown + (f" ±{error:.4f}" if isinstance(error, float) else "")
    samples = next(iter(results.values()))["n-samples"]
    table = [
        [task, metric, str(samples[task]["effective"]) if task in samples else "", *(cells.get(n, "") for n in results)]
        for (task, metric), cells in rows.items()
    ]
    print_table(["task", "metric", "samples", *(f"N = {n}" for n in results)], table)


def _values(result: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Task, metric, value and standard error."""
    for task, metrics in result["results"].items():
        for name, value in metrics.items():
            metric, comma, chosen = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                shown = metric if chosen == "none" else f"{metric} ({chosen})"
                yield task, shown, value, metrics.get(f"{metric}_stderr,{chosen}")


def to_json(results: Results, lm: SleepLM, environment: dict[str, Any], command: str) -> dict[str, Any]:
    """All results as JSON values, with the model, the versions and the command that they come from."""
    from importlib import metadata

    from lm_eval.utils import handle_non_serializable

    versions = {name: metadata.version(name) for name in ("lm_eval", "transformers")}
    body = {
        "command": command, "model": lm.get_model_info(),
        "environment": environment | {"versions": environment["versions"] | versions},
        "passes": {str(n): {key: value for key, value in result.items() if key != "samples"} for n, result in results.items()},
    }  # fmt: skip
    return json.loads(json.dumps(body, default=handle_non_serializable))


def write_results(results: Results, body: dict[str, Any], out: Path) -> list[Path]:
    """Write lm_eval.json and lm_eval_samples.jsonl, a line for each sample and N, into a folder that exists; their paths."""
    from lm_eval.utils import handle_non_serializable

    report, samples = out / "lm_eval.json", out / "lm_eval_samples.jsonl"
    report.write_text(json.dumps(body, indent=1), encoding="utf-8")
    lines = (
        json.dumps({"passes": n, "task": task, **sample}, default=handle_non_serializable)
        for n, result in results.items()
        for task, found in result["samples"].items()
        for sample in found
    )
    with samples.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return [report, samples]
