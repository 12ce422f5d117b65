"""The configuration section `data:`: which folders of shards are read, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from sleeptrain.config import Problem


@dataclass(frozen=True)
class Source:
    """One folder of shards, as `sleeptrain data build` writes it."""

    path: str
    """A local folder, or a remote URL that mosaicml-streaming can fetch (s3://, gs://, oci://, ...); needs `data.cache`."""
    proportion: float | None = None
    """Share of each epoch that comes from here, relative to the other sources; none: every sample once an epoch."""


@dataclass(frozen=True)
class Data:
    """Where samples come from. An epoch has as many samples as all sources together, whatever their proportions."""

    sources: list[Source] = field(default_factory=list)
    split: str = "train"
    """What is trained on."""
    eval_split: str = "test"
    """What evaluation reads, every sample once."""
    shuffle: bool = True
    """Another order in each epoch; if not, the order in which the samples were written."""
    workers: int = 0
    """Processes that read ahead, for each rank; 0 reads in the training process."""
    cache: str | None = None
    """Folder for shards that are fetched, and for unpacked ones if the sources are read-only; local to each machine."""

    def problems(self) -> list[Problem]:
        """What can be said without opening anything."""
        found = []
        if not self.sources:
            found.append(Problem("sources", "is empty; give at least one, such as [{path: runs/data/rule110-tiny}]"))
        if self.workers < 0:
            found.append(Problem("workers", "must be 0 or more"))
        paths = [source.path for source in self.sources]
        for i, source in enumerate(self.sources):
            if source.path in paths[:i]:
                found.append(Problem(f"sources.{i}.path", "is listed twice; use one source with a larger proportion"))
            if source.proportion is not None and not source.proportion > 0:
                found.append(Problem(f"sources.{i}.proportion", "must be above 0"))
            if is_remote(source.path) and self.cache is None:
                found.append(Problem("cache", f"is needed to fetch {source.path}; name a folder on a local disk"))
        if len({source.proportion is None for source in self.sources}) > 1:
            found.append(Problem("sources", "either every source has a proportion or none has"))
        return found


def is_remote(path: str) -> bool:
    """Whether a source is fetched and not read in place."""
    return "://" in path
