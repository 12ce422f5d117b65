"""The limit of the cache: the order of removal, processes that share it, and what a killed process leaves."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sleeptrain.config import Problem
from sleeptrain.data import Data, Evaluation, Reader, Source
from sleeptrain.data.cache import ShardCache, lock_of
from sleeptrain.errors import UserError
from tests.data.test_reader import STEPS, flat, in_processes, interleaved, stream


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    """Room for 1,000 bytes."""
    return ShardCache(tmp_path / "cache", 1000)


def put(cache: ShardCache, name: str, size: int) -> Path:
    """A shard that is used now."""
    path = cache.folder / "abc" / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    cache.touch(path)
    return path


def left(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_shards_that_were_used_longest_ago_are_removed(cache):
    first, _, third = (put(cache, f"shard.0000{n}.mds", 300) for n in range(3))
    cache.touch(first)
    cache.make_room(100)
    assert left(cache) == ["shard.00000.mds", "shard.00001.mds", "shard.00002.mds"]
    cache.make_room(101)
    assert "shard.00001.mds" not in left(cache) and first.exists() and third.exists()
    cache.touch(third)
    cache.make_room(700)
    assert not first.exists() and third.exists()


def test_what_a_killed_download_left_is_removed_too(cache):
    put(cache, ".shard.00000.mds.zstd.part.a1B2", 600)
    put(cache, "shard.00001.mds", 300)
    cache.make_room(600)
    assert left(cache) == ["shard.00001.mds"]


def test_a_shard_that_is_prepared_now_stays(cache):
    first, second = put(cache, "shard.00000.mds", 600), put(cache, "shard.00001.mds", 300)
    with lock_of(first):
        cache.make_room(900)
    assert first.exists() and not second.exists()
    cache.make_room(900)
    assert not first.exists()


def test_other_files_stay(cache):
    index = put(cache, "index.json", 900)
    cache.make_room(1000)
    assert index.exists()


def test_no_limit(tmp_path):
    cache = ShardCache(tmp_path, None)
    shard = put(cache, "shard.00000.mds", 10)
    cache.make_room(10**18)
    assert shard.exists()


@pytest.mark.parametrize(
    ("limit", "cache", "expected"),
    [
        ("200GB", "c", []),
        (10**9, "c", []),
        (0, "c", ["must be at least 1 byte"]),
        ("a lot", "c", ["is not a size with its unit, such as 80GiB"]),
        ("200GB", None, ["limits data.cache, which is not set; name its folder"]),
    ],
)
def test_the_limit_is_checked(limit, cache, expected):
    problems = Data([Source("x")], cache=cache, cache_limit=limit).problems()
    assert problems == [Problem("cache_limit", message) for message in expected]
    assert Data([Source("x")], cache="c", cache_limit="1.5KB").cache_bytes == 1500


def sizes(folder: Path) -> list[tuple[int, int]]:
    """Bytes of the shards for training, decompressed and compressed."""
    shards = json.loads((folder / "train" / "index.json").read_text())["shards"]
    return [(shard["raw_data"]["bytes"], shard["zip_data"]["bytes"]) for shard in shards]


def used(cache: Path) -> int:
    total = 0
    for path in cache.rglob("*.mds"):
        with contextlib.suppress(FileNotFoundError):  # the reader's thread has removed it meanwhile
            total += path.stat().st_size
    return total


def test_reading_within_the_limit(data, folder, tmp_path):
    """A cache of three shards, of which the data has more, in two epochs: the limit holds after every step."""
    shards = sizes(folder)
    limit = 3 * max(map(sum, shards)) + (folder / "train" / "index.json").stat().st_size
    assert sum(raw for raw, _ in shards) > limit
    limited = Data([Source(str(folder))], cache=str(tmp_path / "cache"), cache_limit=limit)
    expected, reader = stream(data, 70, micro=3, accumulation=1), Reader(limited, micro=3, seed=5)
    for step in expected:
        assert [batch.ids.tolist() for batch in reader.next_step()] == step
        assert used(tmp_path / "cache") <= limit
    reader.close()
    tokens = [
        np.concatenate([b.tokens.numpy() for b in Evaluation(d, micro=1, split="train")]) for d in (limited, data)
    ]
    assert (tokens[0] == tokens[1]).all() and 0 < used(tmp_path / "cache") <= limit


def test_processes_share_a_limited_cache(data, folder, tmp_path):
    limit = 4 * max(map(sum, sizes(folder)))
    limited = Data([Source(str(folder))], cache=str(tmp_path / "cache"), cache_limit=limit, workers=1)
    expected = [flat(step) for step in stream(data)]
    ranks = in_processes(limited, 2, micro=4, accumulation=1)
    assert [interleaved(rank[step] for rank in ranks) for step in range(STEPS)] == expected
    assert used(tmp_path / "cache") <= limit


def test_a_limit_below_the_shards_of_a_step(folder, tmp_path):
    limited = Data([Source(str(folder))], cache=str(tmp_path), cache_limit="20KB")
    largest = sorted(map(sum, sizes(folder)), reverse=True)
    with pytest.raises(UserError) as caught:
        Reader(limited, micro=2, accumulation=2)
    (message,) = caught.value.errors
    assert message.startswith("data.cache_limit is 20,000 bytes, and a step of 4 rows on one rank reads up to 4 shards")
    assert f"{sum(largest[:4]):,} bytes" in message
    Reader(limited, micro=2, accumulation=1)


def test_a_cache_of_another_content_gives_room(folder, other, tmp_path):
    """What a data set that was built again has left in the cache is removed like all that was used longest ago."""
    served = tmp_path / "served"
    shutil.copytree(other, served)
    limit = 200_000
    data = Data([Source(str(served))], cache=str(tmp_path / "cache"), cache_limit=limit)
    list(Evaluation(data, micro=1, split="train"))
    before = used(tmp_path / "cache")
    shutil.rmtree(served)
    shutil.copytree(folder, served)
    tight = Data([Source(str(served))], cache=str(tmp_path / "cache"), cache_limit=before + 12_000)
    list(Evaluation(tight, micro=1, split="train"))
    held = {path.parent for path in (tmp_path / "cache").rglob("*.mds")}
    assert len(held) == 1 and used(tmp_path / "cache") <= before + 12_000
