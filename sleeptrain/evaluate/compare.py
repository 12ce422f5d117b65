"""Comparisons of runs that were trained with different numbers of passes, with verdicts where there are several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from sleeptrain.data.manifest import Manifest
from sleeptrain.evaluate.intervals import difference_interval
from sleeptrain.evaluate.measure import Measurement
from sleeptrain.evaluate.seeds import SeedGroup, summary


def compare(groups: Sequence[SeedGroup], manifest: Manifest) -> list[str]:
    """One line for each pair of recipes with different numbers of passes: cost, and the verdict on each label value.

    Recipes are compared at the number of passes they were trained with. "ahead" and "behind" mean that the 95 % interval of
    the difference of mean accuracies over seeds excludes 0. The differences are paired where both recipes have the same seeds
    and saw the same samples. The line states the ratios of both tokens and time, because a comparison at equal tokens and one
    at equal time answer different questions.
    """
    pairs = [(a, b) for a in groups for b in groups if a.first.trained_passes > b.first.trained_passes]
    return [line for more, fewer in pairs if (line := _compare(more, fewer, manifest))]


def _compare(more: SeedGroup, fewer: SeedGroup, manifest: Manifest) -> str | None:
    high, low = more.as_trained(), fewer.as_trained()
    if high is None or low is None:
        return None
    cost = f"{more.first.tokens / max(1, fewer.first.tokens):.2f} times the tokens"
    if more.seconds and fewer.seconds:
        cost += f" and {more.seconds / fewer.seconds:.2f} times the time"
    return (
        f"{more.name} (N={more.first.trained_passes}) with {cost} of {fewer.name} (N={fewer.first.trained_passes}): "
        f"{_verdict(more, fewer, high, low, manifest)}."
    )


def _verdict(
    more: SeedGroup, fewer: SeedGroup, high: Sequence[Measurement], low: Sequence[Measurement], manifest: Manifest
) -> str:
    """Which label values are ahead, behind or not separated; or why there is no verdict."""
    if more.horizon != fewer.horizon:
        return (
            f"no verdict, since their initial decays differ (model.deltanet.horizon {more.horizon} and {fewer.horizon}); "
            "train both with one"
        )
    if min(len(more.runs), len(fewer.runs)) < 2:
        return "no verdict from one seed; train several with --seeds 0,1,2"
    paired = more.seeds == fewer.seeds and more.first.tokens == fewer.first.tokens
    groups: dict[str, list[str]] = {"ahead": [], "behind": [], "not separated": []}
    for value in sorted(high[0].by_value.keys() & low[0].by_value.keys()):
        a, b = (summary(measured, value, "accuracy", "interval") for measured in (high, low))
        interval = difference_interval(a.values, b.values, paired=paired) if a and b else None
        if a and b and interval:
            outcome = "ahead" if interval[0] > 0 else "behind" if interval[1] < 0 else "not separated"
            shown = f"{value} ({a.mean - b.mean:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}])"
            groups[outcome].append(shown)
    label = manifest.label or "value"
    return "; ".join(f"{group} at {label} = {', '.join(values)}" for group, values in groups.items() if values)
