"""Shards on real servers: HTTP and S3, with transfers that are cut and bits that are altered on the way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sleep_data import shards
from sleep_data.manifest import digest
from sleep_data.rule110 import Rule110
from sleeptrain.data import Data, Evaluation, Reader, Source
from sleeptrain.data.sources import open_sources, tokenizer_file
from sleeptrain.errors import UserError
from tests.data.servers import BUCKET, CREDENTIALS, Proxy, cut, flip, http_server, in_thread, s3_server, upload
from tests.data.test_reader import STEPS, flat, in_processes, interleaved, stream


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory) -> Path:
    """A folder with the data `r110`, compressed files alone, that servers have."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(folder, root / "r110", ignore=shutil.ignore_patterns("*.mds"))
    return root


@pytest.fixture(scope="module")
def s3(served) -> Iterator[str]:
    with s3_server() as endpoint:
        upload(endpoint, served / "r110", "data/r110")
        yield endpoint


@dataclass
class Remote:
    """Data on a server, and the proxy before it."""

    url: str
    proxy: Proxy
    cache: Path

    def data(self, **options) -> Data:
        return Data([Source(self.url)], cache=str(self.cache), **options)


@pytest.fixture(params=["http", "s3"])
def remote(request, served, tmp_path, monkeypatch) -> Iterator[Remote]:
    if request.param == "http":
        with http_server(served) as server, in_thread(Proxy(server)) as between:
            yield Remote(f"{between.url}/r110", between, tmp_path / "cache")
    else:
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        with in_thread(Proxy(request.getfixturevalue("s3"))) as between:
            monkeypatch.setenv("S3_ENDPOINT_URL", between.url)
            yield Remote(f"s3://{BUCKET}/data/r110", between, tmp_path / "cache")


@pytest.fixture
def http(served, tmp_path) -> Iterator[Remote]:
    """Data over HTTP whose files the test may change."""
    shutil.copytree(served, tmp_path / "served")
    with http_server(tmp_path / "served") as server, in_thread(Proxy(server)) as between:
        yield Remote(f"{between.url}/r110", between, tmp_path / "cache")


@pytest.fixture
def files(tmp_path) -> Path:
    """The files of `http`."""
    return tmp_path / "served" / "r110"


def all_tokens(data, split="train"):
    return np.concatenate([batch.tokens.numpy() for batch in Evaluation(data, micro=1, split=split)])


def cached(remote: Remote, pattern: str = "*.mds") -> list[Path]:
    return sorted(remote.cache.rglob(pattern))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_workers_and_restarts_do_not_change_the_order(remote, data, workers):
    expected = [flat(step) for step in stream(data)]
    both = in_processes(remote.data(workers=workers), 2, micro=2, accumulation=2)
    assert [interleaved(rank[step] for rank in both) for step in range(STEPS)] == expected
    reader = Reader(remote.data(workers=workers), micro=8, seed=5)
    for step in range(12):  # exactly an epoch
        assert flat([batch.ids.tolist() for batch in reader.next_step()]) == expected[step]
    state = reader.state_dict()
    reader.close()
    for rest in (remote.data(), data):
        assert [flat(step) for step in stream(rest, STEPS - 12, state, micro=8, accumulation=1)] == expected[12:]
    assert remote.proxy.count("train/shard.00000.mds.zstd") == 1 and not cached(remote, "*.part*")


@pytest.mark.parametrize("fault", [cut, flip])
def test_a_spoiled_transfer_is_repeated(remote, data, fault, caplog):
    remote.proxy.faults["train/shard.00001.mds.zstd"] = [fault]
    assert (all_tokens(remote.data()) == all_tokens(data)).all()
    assert remote.proxy.count("train/shard.00001.mds.zstd") == 2
    assert remote.proxy.count("train/shard.00002.mds.zstd") == 1
    if fault is flip or not remote.url.startswith("s3"):  # the S3 client repeats a cut transfer itself
        assert re.search(r"shard \S+/train/shard\.00001\.mds\.zstd .*; it is downloaded again", caplog.text)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transfer_that_is_spoiled_twice_ends_with_one_message(remote, workers, capfd):
    remote.proxy.faults["train/shard.00001.mds.zstd"] = [flip] * 9
    reader = Reader(remote.data(workers=workers), micro=8, seed=0)
    with pytest.raises(UserError) as caught:
        for _ in range(13):
            reader.next_step()
    (message,) = caught.value.errors
    # The S3 client compares a checksum of the server first.
    reason = r"(is damaged \(its checksum does not match\)|cannot be read \(FlexibleChecksumError: [^)]*\))"
    shard = re.escape(f"shard {remote.url}/train/shard.00001.mds.zstd")
    assert re.match(f"{shard} {reason}, downloaded twice; restore it there", message)
    assert remote.proxy.count("train/shard.00001.mds.zstd") == 2
    assert not cached(remote, "*00001.mds") and "Traceback" not in "".join(capfd.readouterr())


def test_an_object_that_was_altered_before_the_upload(s3, served, tmp_path, monkeypatch):
    altered = tmp_path / "altered"
    shutil.copytree(served / "r110", altered)
    alter(altered / "train" / "shard.00002.mds.zstd")
    upload(s3, altered, "altered")
    for name, value in {**CREDENTIALS, "S3_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"shard s3://corpus/altered/train/shard\.00002\.mds\.zstd is damaged"):
        all_tokens(Data([Source(f"s3://{BUCKET}/altered")], cache=str(tmp_path / "cache")))


def test_a_shard_that_the_server_lacks(http, files):
    (files / "train" / "shard.00001.mds.zstd").unlink()
    with pytest.raises(UserError, match=r"shard http\S*/train/shard\.00001\.mds\.zstd is missing, downloaded twice"):
        all_tokens(http.data())


def test_a_shard_that_is_truncated_on_the_server(http, files):
    shard = files / "train" / "shard.00001.mds.zstd"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"shard\.00001\.mds\.zstd is damaged \(it has [\d,]+ bytes instead of [\d,]+\)"
    ):
        all_tokens(http.data())


def alter(path: Path) -> None:
    path.write_bytes(flip(path.read_bytes()))


@pytest.mark.parametrize("spoil", [alter, lambda path: path.write_bytes(cut(path.read_bytes())), Path.unlink])
def test_a_shard_in_the_cache_is_verified(http, data, spoil):
    expected = all_tokens(data)
    assert (all_tokens(http.data()) == expected).all()
    spoil(cached(http)[1])
    assert (all_tokens(http.data()) == expected).all()
    assert [http.proxy.count(f"train/shard.0000{n}.mds.zstd") for n in range(3)] == [1, 2, 1]


def test_leftovers_of_a_killed_download(http, data):
    open_sources(http.data(), "train")
    (folder,) = http.cache.glob("*/train")
    for name in (".shard.00000.mds.zstd.part", ".shard.00000.mds.zstd.part.a1B2c3", ".shard.00000.mds.part"):
        (folder / name).write_bytes(b"begun")
    assert (all_tokens(http.data()) == all_tokens(data)).all() and not cached(http, "*.part*")


def rebuild(files: Path, seed: int) -> None:
    """Build other data of the same sizes in the place of `files`."""
    shutil.rmtree(files)
    task = Rule110(strings=2, width=8, transitions=(1, 2))
    shards.build(task, files, {"train": 100, "test": 21}, seed=seed, shard_bytes=5000)


def test_data_that_is_built_again_is_not_read_from_a_warm_cache(http, files):
    before = all_tokens(http.data())
    reader = Reader(http.data(), micro=8)
    reader.next_step()
    state = reader.state_dict()
    reader.close()
    rebuild(files, seed=7)
    after = all_tokens(http.data())
    assert (after == all_tokens(Data([Source(str(files))]))).all() and (after != before).any()
    assert len(list(http.cache.glob("*/train"))) == 2
    with pytest.raises(UserError, match="trained on other data"):
        Reader(http.data(), micro=8).load_state_dict(state)


def test_data_that_is_built_again_during_a_run(http, files):
    reader = Reader(http.data(), micro=8)
    rebuild(files, seed=7)
    with pytest.raises(
        UserError, match=r"downloaded twice; .* data that was built again under this URL needs a new start"
    ):
        for _ in range(13):
            reader.next_step()


def test_an_upload_that_is_not_complete(http, files):
    """The manifest arrives last, or with parts of it missing."""
    (files / "manifest.json").rename(files / "later")
    with pytest.raises(UserError, match=r"http\S*/r110/manifest\.json cannot be downloaded \(FileNotFoundError: 404"):
        open_sources(http.data(), "train")
    (files / "later").rename(files / "manifest.json")
    index = files / "train" / "index.json"
    content = index.read_bytes()
    index.write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"index\.json of the train split does not belong to the manifest of http"):
        open_sources(http.data(), "train")
    index.write_bytes(content)
    open_sources(http.data(), "train")
    for copy in cached(http, "index.json"):
        copy.write_bytes(b"")
    open_sources(http.data(), "train")
    index.unlink()
    with pytest.raises(UserError, match=r"test/index\.json cannot be downloaded"):
        (files / "test" / "index.json").unlink()
        open_sources(http.data(), "test")


def test_the_tokenizer_comes_with_the_data(http, files):
    manifest = json.loads((files / "manifest.json").read_text())
    manifest["tokenizer"]["kind"] = "file"
    (files / "manifest.json").write_text(json.dumps(manifest | {"hash": digest(manifest)}))
    with pytest.raises(UserError, match=r"http\S*/tokenizer\.json cannot be downloaded"):
        open_sources(http.data(), "train")
    (files / "tokenizer.json").write_text("{}")
    opened = open_sources(http.data(), "train")
    assert tokenizer_file(http.data(), opened.manifest).read_text() == "{}"
    local = Data([Source(str(files))], cache=str(http.cache))
    assert tokenizer_file(local, opened.manifest) == files / "tokenizer.json"


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("sleeptrain.data.origin.ATTEMPTS", 1)  # without pauses
    remote = Data([Source("http://127.0.0.1:9/r110")], cache=str(tmp_path))
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:9/r110/manifest\.json cannot be downloaded \(ConnectionError"
    ):
        open_sources(remote, "train")
    with pytest.raises(UserError, match=r"ftp://x/y/manifest\.json cannot be downloaded .*Unsupported remote path"):
        open_sources(Data([Source("ftp://x/y")], cache=str(tmp_path)), "train")
