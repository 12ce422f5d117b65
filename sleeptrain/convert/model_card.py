"""README.md of an exported model: what it is, its data and scores, how to use it, which engines read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sleeptrain import __version__
from sleeptrain.convert.hf_config import full_attention_interval
from sleeptrain.recipe.load_trained import RunFiles
from sleeptrain.train.log import read_metrics

HEADER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [sleeptrain, qwen3_5_text, gated-deltanet]
---
"""


@dataclass(frozen=True)
class ModelCard:
    """What the card says about a checkpoint."""

    opened: RunFiles
    parameters: int
    dtype: str
    """Of the exported weights."""
    tokenizer: bool
    """Whether the folder has one."""
    licences: tuple[str, ...]
    """The names of the licence files of a base model."""

    def text(self) -> str:
        """The card as Markdown."""
        parts = [self._model(), self._data(), self._scores(), self._use(), self._engines(), self._licence()]
        return HEADER + "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _model(self) -> Iterator[str]:
        recipe, sleep = self.opened.resolved.value, self.opened.resolved.value.sleep
        name = self.opened.run.resolve().name
        yield f"# {name}"
        yield ""
        yield "A language model that reads its context in windows. Before a full window leaves the attention cache, its blocks make"
        yield "N passes over it (sleep); only the state of the Gated DeltaNet blocks goes on. Predicting a token costs one pass."
        yield f"Exported with sleeptrain {__version__} from step {self.opened.step:,}."
        yield ""
        rows = {
            "parameters": f"{self.parameters:,}, {self.dtype}",
            "blocks": f"{recipe.model.layers} (A attention, G Gated DeltaNet), width {recipe.model.width}",
            "vocabulary": f"{recipe.model.vocab:,}",
            "window L": f"{sleep.window:,} tokens",
            "passes N in training": str(sleep.max_passes),
            "passes 2..N": f"read {sleep.loop.feedback} features, blocks {sleep.loop.layers}",
            "windows that sleep": "all" if sleep.loop.trigger == "every" else "those without predicted tokens",
            "eviction": sleep.evict.mode,
        }
        yield from _table(rows)

    def _data(self) -> Iterator[str]:
        manifest, recipe = self.opened.manifest, self.opened.resolved.value
        yield "## Data"
        yield ""
        names = ", ".join(source.label for source in recipe.data.sources)
        yield f"{manifest.task} ({names}), rows of {manifest.length:,} tokens, {recipe.train.batch} rows a step."
        if manifest.splits:
            yield ""
            yield from _table({f"split {name}": _counts(split) for name, split in manifest.splits.items()})

    def _scores(self) -> Iterator[str]:
        yield "## Scores"
        yield ""
        rows = read_metrics(self.opened.run / "metrics.jsonl")
        found = [row for row in rows if row["step"] == self.opened.step and row.get("eval_loss") is not None]
        if not found:
            yield "This checkpoint was not evaluated while it was trained; `sleeptrain eval` measures a run."
            return
        row, label = found[-1], self.opened.manifest.label
        scores = {
            "loss on held-out data, nats per token": f"{row['eval_loss']:.4f}",
            "accuracy": f"{row['eval_accuracy']:.3f}",
        }
        shares = {f"accuracy at {label}={v}": f"{share:.3f}" for v, share in row["eval_accuracy_by_label"].items()}
        yield from _table(scores | shares)

    def _use(self) -> Iterator[str]:
        tokens = (
            'tokenizer("...", return_tensors="pt").input_ids'
            if self.tokenizer
            else "torch.tensor([[...]])  # ids of the data"
        )
        yield "## Use"
        yield ""
        yield "With transformers 5 or newer. `trust_remote_code=True` gives the class that sleeps (modeling_sleep.py); without it this is"
        yield "the plain Qwen3.5 text model, which keeps the whole context in its attention cache and never sleeps."
        yield ""
        yield "```python"
        yield (
            "from transformers import AutoModelForCausalLM, AutoTokenizer"
            if self.tokenizer
            else "import torch\nfrom transformers import AutoModelForCausalLM"
        )
        yield ""
        yield 'folder = "."  # this one'
        yield from ["tokenizer = AutoTokenizer.from_pretrained(folder)"] if self.tokenizer else []
        yield "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"
        yield f"tokens = {tokens}"
        yield "out = model.generate(tokens, max_new_tokens=50)            # N as trained"
        yield "out = model.generate(tokens, max_new_tokens=50, passes=4)  # another N"
        yield "```"

    def _engines(self) -> Iterator[str]:
        pattern = self.opened.resolved.value.model.pattern
        interval = full_attention_interval(pattern)
        yield "## Engines"
        yield ""
        yield "Engines that read `qwen3_5_text` load the plain model."
        if interval is None:
            yield "Its attention blocks are at no regular interval: an engine must read `layer_types` from config.json, as transformers does."
            yield "One that reads `full_attention_interval` alone would build another model."
        else:
            yield f"Attention is every block whose number, counted from 1, {interval} divides; `layer_types` and `full_attention_interval` say so."
        if "A" not in pattern:
            yield "It has no attention block: transformers 5.23 runs the plain model only with `use_cache=False`."

    def _licence(self) -> Iterator[str]:
        yield "## Licence"
        yield ""
        if self.licences:
            yield f"This model was made from another one, whose licence applies: {', '.join(self.licences)}."
        else:
            yield "Whoever trained the weights decides on their licence. modeling_sleep.py is under the Apache License 2.0."


def _table(rows: dict[str, str]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows.items())


def _counts(split: dict[str, Any]) -> str:
    return ", ".join(f"{split[name]:,} {name}" for name in ("documents", "samples", "tokens") if split.get(name))
