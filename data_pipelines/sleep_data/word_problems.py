"""Word problems with a chosen number of operations, in the manner of GSM-Infinite (arXiv 2502.05252), about animals in places of our own.

A problem is a set of quantities, each given or computed from others (`quantities.py`), one sentence each in random order. The total of
a place is the sum over all animals that the text names there, and has no sentence. An operation is the addition, subtraction or
multiplication of two numbers; all `operations` of a problem are needed for its answer.

    forward    asks the quantity that all others lead to
    reverse    states the value of that quantity and asks a given number, whose sentence says only that there are some

Distractors are sentences about other places. They are computed from quantities of the problem and from each other, and no quantity
of the problem depends on them. They are mixed in until the context is full, all in random order. `question: before` puts the question before the
context and asks for the answer alone in the last window, `question: after` puts it into the last window.

Scoring. GSM-Infinite compares the number after "Answer:" in the output. Here the answer is the number alone, and evaluation
reports the share of answers whose tokens and end are all right.

Splits. A problem belongs to the test split with probability 1/holdout, by a hash of its sentences in any order, without the
distractors, and of its question. No test problem occurs in training, whatever the seeds.

`groups` holds the number of operations at the tokens of the answer. Labels: `operations`; `mode`, 0 forward and 1 reverse. Baselines
are by operations and, if there are two modes, also by mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sleep_data.animals import distractors, name_quantities
from sleep_data.baselines import majority
from sleep_data.quantities import Quantity, depends, draw_quantities
from sleep_data.task import BLOCK, raise_if
from sleep_data.text_task import TextTask, numbers
from sleep_data.text_windows import TextProblem

MODES = ("forward", "reverse")
RULE = "The total number of animals in a place is the sum over all animals that are named there."


@dataclass(frozen=True)
class WordProblems(TextTask):
    """Parameters of the task."""

    windows_of_context: int = 8
    operations: int | tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Numbers of operations, of which each sample draws one."""
    modes: str | tuple[str, ...] = MODES
    """Modes, of which each sample draws one."""
    question: str = "after"
    """Where the question stands: before or after the context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._operations  # refuses wrong numbers
        modes = self._modes
        raise_if(
            not modes or not set(modes) <= set(MODES) or len(set(modes)) < len(modes),
            f"modes is {self.modes!r}; give forward, reverse or both",
        )
        raise_if(self.question not in ("before", "after"), f"question is {self.question!r}; it must be before or after")

    name = "word_problems"
    version = 2
    label = "operations"

    @cached_property
    def _operations(self) -> tuple[int, ...]:
        return numbers("operations", self.operations, 1, 40)

    @cached_property
    def _modes(self) -> tuple[str, ...]:
        return (self.modes,) if isinstance(self.modes, str) else tuple(self.modes)

    def labels(self) -> dict[str, str]:
        return {"operations": "operations that the answer takes", "mode": "0 forward, 1 reverse"}

    def draw(self, random: np.random.Generator) -> TextProblem:
        operations = self._operations[random.integers(len(self._operations))]
        mode = self._modes[random.integers(len(self._modes))]
        while True:
            quantities = draw_quantities(random, operations)
            asked = quantities[-1] if mode == "forward" else _unknown(random, quantities)
            if asked is not None:
                break
        places = name_quantities(random, quantities)
        sentences = [q.sentence() for q in quantities if not q.is_total and (q is not asked or mode == "forward")]
        if mode == "reverse":
            some = asked.name.removeprefix("the number of ")
            sentences += [
                f"There are some {some}.",
                f"It is known that {quantities[-1].name} is {quantities[-1].value}.",
            ]
        question = f"Question: What is {asked.name}?"
        facts = [sentences[i] for i in random.permutation(len(sentences)).tolist()]
        first, prompt = (
            (f"{question} {RULE}", "Answer:") if self.question == "before" else (RULE, f"{question}\nAnswer:")
        )
        return TextProblem(
            facts, [(prompt, str(asked.value))], operations, "\n".join([*sorted(sentences), question]),
            {"mode": MODES.index(mode)}, first, distractors(random, quantities, places),
        )  # fmt: skip

    def baselines(self) -> dict[str, dict[str, float]]:
        """Frequencies among problems of the same number of operations, and of the same number and mode."""
        rows = self.answers(4 * BLOCK)
        table = majority(rows)
        for mode in self._modes if len(self._modes) > 1 else ():
            inside = rows["label_mode"] == MODES.index(mode)
            of_mode = majority({name: rows[name][inside] for name in ("targets", "groups")})
            for operations, scores in of_mode.items():
                table[operations] |= {f"{name}_{mode}": score for name, score in scores.items()}
        return table


def _unknown(random: np.random.Generator, quantities: list[Quantity]) -> Quantity | None:
    """A random given number on which the last quantity depends; None if its changes cancel."""
    given = [quantity for quantity in quantities if not quantity.operands]
    unknown = given[random.integers(len(given))]
    return unknown if depends(quantities, unknown) else None
