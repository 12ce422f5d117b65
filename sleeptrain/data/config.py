"""The configuration section `data:`: the folders of shards to read, and how to read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sleeptrain.config import Problem
from sleeptrain.data.mixture import Mix, Points, point_problems
from sleeptrain.sizes import read_size


@dataclass(frozen=True)
class Source:
    """One folder of shards, as `sleeptrain data build` writes it."""

    path: str
    """A local folder, or a URL: http://, https://, or one that mosaicml-streaming can download from (s3://, gs://, oci://, ...). A URL
    needs `data.cache`."""
    proportion: float | list[tuple[int, float]] | None = None
    """Relative share of this source in the rows of a step; or points [step, share], steps from 0 on, with straight lines between
    them; null: the number of its rows, so that all sources are read at once, each row once in an epoch. 0: only evaluated."""
    name: str | None = None
    """Name in metrics and reports; null: the last part of the path."""

    def __post_init__(self) -> None:
        if not is_remote(self.path):
            object.__setattr__(self, "path", os.path.expanduser(self.path))

    @property
    def label(self) -> str:
        """The name of this source, given or from its path."""
        return self.path.rstrip("/").rpartition("/")[2] if self.name is None else self.name

    @property
    def points(self) -> Points:
        """The proportion, where there is one, as points."""
        match self.proportion:
            case None:
                raise ValueError(f"{self.label} has no proportion")
            case list(points):
                return tuple((step, share) for step, share in points)
            case share:
                return ((0, share),)


@dataclass(frozen=True)
class Data:
    """Sources of samples, and how they are read."""

    sources: list[Source] = field(default_factory=list)
    """Folders of shards, of which every step reads rows."""
    split: str = "train"
    """Split for training."""
    eval_split: str = "test"
    """Split for evaluation, which reads every sample once."""
    row: int | None = None
    """Tokens of a row of text: a multiple of sleep.window that divides the blocks of the data; null: eight windows. Data of tasks has
    rows of its own."""
    lane: int | None = None
    """Tokens of text that a row of the batch, a lane, reads one after the other over several steps, at most, and at least half as many.
    The state is carried from step to step. A multiple of a row's tokens; null: every row begins with an empty state."""
    shuffle: bool = True
    """Shuffle each epoch of each source in another order; if false, samples of a source come in the order in which they were written."""
    workers: int = 0
    """Worker processes of each rank that prefetch batches; 0 reads in the training process."""
    cache: str | None = None
    """Local folder of each machine for downloaded shards, and for decompressed ones if the sources are read-only."""
    cache_limit: int | str | None = None
    """Bytes that the shards in the cache may take, or a size such as 200GB: those used longest ago are removed for others."""

    def __post_init__(self) -> None:
        if self.cache is not None:
            object.__setattr__(self, "cache", os.path.expanduser(self.cache))

    @property
    def cache_bytes(self) -> int | None:
        """`cache_limit` in bytes. ValueError if it is no size."""
        return read_size(self.cache_limit) if isinstance(self.cache_limit, str) else self.cache_limit

    def located(self) -> Data:
        """This section with absolute paths, which mean the same in every current folder."""
        sources = [
            source if is_remote(source.path) else replace(source, path=os.path.abspath(source.path))
            for source in self.sources
        ]
        return replace(self, sources=sources, cache=None if self.cache is None else os.path.abspath(self.cache))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources."""
        return tuple(source.label for source in self.sources)

    def mix(self, rows: Sequence[int]) -> Mix:
        """The shares of the sources in every step; `rows` are the rows of each source."""
        if self.sources[0].proportion is None:
            return Mix.by_size(rows)
        return Mix(tuple(source.points for source in self.sources))

    def problems(self) -> list[Problem]:
        """Problems that can be found without opening any file."""
        problems = []
        if not self.sources:
            problems.append(Problem("sources", "is empty; give at least one, such as [{path: runs/data/rule110-tiny}]"))
        if self.row is not None and self.row < 1:
            problems.append(Problem("row", "must be at least 1 token"))
        if self.lane is not None and self.lane < 1:
            problems.append(Problem("lane", "must be at least 1 token"))
        if self.workers < 0:
            problems.append(Problem("workers", "must be 0 or more"))
        problems += self._cache_limit_problems()
        paths = [source.path for source in self.sources]
        for i, source in enumerate(self.sources):
            if source.path in paths[:i]:
                problems.append(Problem(f"sources.{i}.path", "is listed twice; list it once with a larger proportion"))
            elif source.label in self.names[:i]:
                problems.append(
                    Problem(f"sources.{i}", f"is the second source called {source.label}; give it another name")
                )
            if source.proportion is not None:
                problems += point_problems(f"sources.{i}.proportion", source.points)
            if is_remote(source.path) and self.cache is None:
                problems.append(
                    Problem("cache", f"is required to download {source.path}; name a folder on a local disk")
                )
        if len({source.proportion is None for source in self.sources}) > 1:
            problems.append(Problem("sources", "either all sources have a proportion, or none"))
        elif self.sources and not problems and (step := self.mix(()).zero_step()) is not None:
            problems.append(Problem("sources", f"all proportions are 0 at step {step}; a step needs a source to read"))
        return problems

    def _cache_limit_problems(self) -> list[Problem]:
        if self.cache_limit is None:
            return []
        try:
            size = self.cache_bytes
        except ValueError as error:
            return [Problem("cache_limit", str(error).removeprefix(f"{self.cache_limit!r} "))]
        if size is None or size < 1:
            return [Problem("cache_limit", "must be at least 1 byte")]
        return [] if self.cache else [Problem("cache_limit", "limits data.cache, which is not set; name its folder")]


def is_remote(path: str) -> bool:
    """Whether a source is a URL to download from, not a local folder."""
    return "://" in path
