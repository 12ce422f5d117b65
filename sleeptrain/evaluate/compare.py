"""Comparisons of runs that were trained with different numbers of passes, with verdicts where there are several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.intervals import Interval, difference_interval, hull, problem_difference_interval
from sleeptrain.evaluate.measure import Measurement, Tally
from sleeptrain.evaluate.seeds import SHARES, SeedGroup, differences, pool, summary

EXPECTED = ("sleep.passes", "train.steps", "train.tokens", "model.deltanet.horizon")
"""Differences that the line states in its own words."""


def compare(groups: Sequence[SeedGroup], manifest: Manifest) -> list[str]:
    """One line for each pair of recipes with different numbers of passes: cost, and the verdict on each label value.

    Recipes are compared at the number of passes they were trained with. "ahead" and "behind" mean that the 95 % interval of
    the difference of mean accuracies excludes 0, both over seeds and over problems. Over seeds the differences are paired
    where both recipes have the same seeds and saw the same samples. The line states the ratios of both tokens and time,
    because a comparison at equal tokens and one at equal time answer different questions, and what else differs.
    """
    pairs = [(a, b) for a in groups for b in groups if a.first.trained_passes > b.first.trained_passes]
    return [_compare(more, fewer, manifest) for more, fewer in pairs]


def _compare(more: SeedGroup, fewer: SeedGroup, manifest: Manifest) -> str:
    cost = f"{more.first.tokens / max(1, fewer.first.tokens):.2f} times the tokens"
    if more.seconds and fewer.seconds:
        cost += f" and {more.seconds / fewer.seconds:.2f} times the time"
    others = [path for path in differences(more.first, fewer.first) if not path.startswith(EXPECTED)]
    also = f" and another {', '.join(others)}" if others else ""
    return (
        f"{more.name} (N={more.first.trained_passes}) with {cost}{also} of {fewer.name} (N={fewer.first.trained_passes}): "
        f"{_verdict(more, fewer, manifest)}."
    )


def _verdict(more: SeedGroup, fewer: SeedGroup, manifest: Manifest) -> str:
    """Which label values are ahead, behind or not separated; or why there is no verdict."""
    high, low = more.as_trained(), fewer.as_trained()
    if high is None or low is None:
        return "no verdict, since they were not measured with the passes that they were trained with"
    if more.horizon != fewer.horizon:
        return (
            f"no verdict, since their initial decays differ (model.deltanet.horizon {more.horizon} and {fewer.horizon}); "
            "train both with one"
        )
    if min(len(more.runs), len(fewer.runs)) < 2:
        return "no verdict from one seed; train several with --seeds 0,1,2"
    groups: dict[str, list[str]] = {"ahead": [], "behind": [], "not separated": []}
    for value in sorted(high[0].by_value.keys() & low[0].by_value.keys()):
        a, b = summary(high, value, "accuracy"), summary(low, value, "accuracy")
        interval = _difference(more, fewer, high, low, value)
        if a and b and interval:
            outcome = "ahead" if interval[0] > 0 else "behind" if interval[1] < 0 else "not separated"
            shown = f"{value} ({a.mean - b.mean:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}])"
            groups[outcome].append(shown)
    label = manifest.label or "value"
    return "; ".join(f"{group} at {label} = {', '.join(values)}" for group, values in groups.items() if values)


def _difference(
    more: SeedGroup, fewer: SeedGroup, high: Sequence[Measurement], low: Sequence[Measurement], value: int
) -> Interval | None:
    """The 95 % interval of the difference in accuracy at a label value, over seeds and over problems."""
    pooled = [pool([m.by_value[value] for m in measured]) for measured in (high, low)]
    counts = [dict(tally.items()) for tally in pooled]
    if counts[0].keys() != counts[1].keys():
        return None
    columns = [Tally.COLUMNS.index(name) for name in SHARES["accuracy"]]
    by_problem = [[table[problem][column] for problem in counts[0]] for table in counts for column in columns]
    values = [[m.by_value[value].share(*SHARES["accuracy"]) or 0.0 for m in measured] for measured in (high, low)]
    same_samples = not {"data", "train.batch", "data.shuffle", "data.split"} & set(differences(more.first, fewer.first))
    paired = more.seeds == fewer.seeds and more.first.tokens == fewer.first.tokens and same_samples
    return hull(
        difference_interval(*values, paired=paired),
        problem_difference_interval(*by_problem),
    )
