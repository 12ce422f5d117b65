"""Sources: cached, remote, read-only and damaged shards, and folders without shards."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sleep_data.build import build_task
from sleep_data.manifest import digest
from sleeptrain.data import Data, Evaluation, Reader, Source
from sleeptrain.data.sources import DataMissing, open_sources
from sleeptrain.errors import UserError
from sleeptrain.recipe.task_files import with_build_command
from tests.system import needs_system


@pytest.fixture
def copy(folder, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    for raw in out.rglob("*.mds"):
        raw.unlink()
    return out


def all_tokens(data, split="train"):
    return np.concatenate([batch.tokens.numpy() for batch in Evaluation(data, micro=1, split=split)])


def test_a_cache_does_not_change_the_source(copy, data, tmp_path):
    before = sorted(path.name for path in copy.rglob("*") if not path.name.startswith("."))
    cached = Data([Source(str(copy))], cache=str(tmp_path / "cache"))
    assert (all_tokens(cached) == all_tokens(data)).all()
    assert before == sorted(path.name for path in copy.rglob("*") if not path.name.startswith("."))
    shutil.rmtree(copy / "train")  # all shards are in the cache
    assert (all_tokens(cached) == all_tokens(data)).all()


def test_a_remote_source(copy, data, tmp_path, monkeypatch):
    """A test URL scheme, which a downloader class of the streaming library serves from a folder."""
    import streaming.base.storage.download as download

    class FolderDownloader(download.CloudDownloader):
        @staticmethod
        def _client_identifier():
            return "folder"

        def clean_up(self):
            pass

        def _download_file_impl(self, remote, local, timeout):
            shutil.copyfile(str(copy) + remote.removeprefix("folder://data"), local)

    monkeypatch.setitem(download.DOWNLOADER_MAPPINGS, "folder", FolderDownloader)
    remote = Data([Source("folder://data")], cache=str(tmp_path / "cache"), workers=2)
    reader, plain = Reader(remote, micro=5, seed=1), Reader(data, micro=5, seed=1)
    for _ in range(25):
        [downloaded], [local] = reader.next_step(), plain.next_step()
        assert downloaded.tokens.equal(local.tokens) and downloaded.ids.equal(local.ids)
    reader.close()
    with pytest.raises(UserError, match=r"folder://elsewhere/manifest\.json cannot be downloaded"):
        open_sources(Data([Source("folder://elsewhere")], cache=str(tmp_path / "cache")), "train")


def test_a_missing_folder_names_the_command_that_builds_it(tmp_path):
    path = tmp_path / "rule110-tiny"
    with pytest.raises(DataMissing, match=f"data folder {path} does not exist; build it") as caught:
        open_sources(Data([Source(str(path))]), "train")
    [line] = with_build_command(caught.value)
    assert line.endswith(f"build it with: sleeptrain data build rule110-tiny --out {path}  (or another task)")
    with pytest.raises(DataMissing) as caught:
        open_sources(Data([Source(str(tmp_path / "nothing"))]), "train")
    [line] = with_build_command(caught.value)
    assert f"build it with: sleeptrain data build TASK --out {tmp_path / 'nothing'}  (TASK is a file or one of " in line
    path.mkdir()
    with pytest.raises(UserError, match="is empty"):
        open_sources(Data([Source(str(path))]), "train")
    (path / "notes.txt").write_text("?")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        open_sources(Data([Source(str(path))]), "train")


def test_a_missing_split(data):
    with pytest.raises(UserError, match="no split 'valid'; it has test, train"):
        open_sources(data, "valid")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_shard_is_named(copy, workers, capfd):
    shard = sorted((copy / "train").glob("*.zstd"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"shard .*shard\.00002\.mds\.zstd is damaged"):
        all_tokens(Data([Source(str(copy))]))
    with pytest.raises(UserError, match=r"shard .*shard\.00002\.mds\.zstd is damaged") as caught:
        reader = Reader(Data([Source(str(copy))], workers=workers), micro=4, seed=0)
        for _ in range(25):
            reader.next_step()
    assert "Traceback" not in str(caught.value) + "".join(capfd.readouterr())


def test_a_missing_shard_is_named(copy):
    sorted((copy / "train").glob("*.zstd"))[1].unlink()
    with pytest.raises(UserError, match=r"shard .*shard\.00001\.mds\.zstd is missing"):
        all_tokens(Data([Source(str(copy))]))


def test_an_incomplete_shard_is_decompressed_again(copy, data):
    (copy / "train" / "shard.00001.mds").write_bytes(b"incomplete")
    (copy / "train" / "shard.00002.mds.tmp").write_bytes(b"also incomplete")
    assert (all_tokens(Data([Source(str(copy))])) == all_tokens(data)).all()


def test_a_decompressed_shard_that_was_altered_is_made_again(copy, data, caplog):
    source = Data([Source(str(copy))])
    expected = all_tokens(source)
    shard = copy / "train" / "shard.00001.mds"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    assert (all_tokens(source) == expected).all() and (expected == all_tokens(data)).all()
    assert "shard.00001.mds is damaged (its checksum does not match); it is made again from" in caplog.text
    shard.write_bytes(content)
    shard.with_name("shard.00001.mds.zstd").unlink()
    with pytest.raises(UserError, match=r"shard .*shard\.00001\.mds\.zstd is missing; build or copy the data again"):
        all_tokens(source)


@pytest.mark.parametrize("cached", [False, True])
def test_shards_without_compression(copy, data, tmp_path, cached):
    """As the library writes them on request: the file that is downloaded is the one that is read."""
    expected = all_tokens(data)
    assert (all_tokens(Data([Source(str(copy))])) == expected).all()
    for path in (copy / "train").glob("*.zstd"):
        path.unlink()
    index = copy / "train" / "index.json"
    body = json.loads(index.read_text())
    for shard in body["shards"]:
        shard["zip_data"] = shard["compression"] = None
    index.write_text(json.dumps(body))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["hash"] = hashlib.sha256(index.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest | {"hash": digest(manifest)}))
    source = Data([Source(str(copy))], cache=str(tmp_path / "cache") if cached else None)
    assert (all_tokens(source) == expected).all()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    shard = copy / "train" / "shard.00001.mds"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    tried = ", downloaded twice" if cached else ""
    with pytest.raises(UserError, match=rf"shard {shard} is damaged \(its checksum does not match\){tried};"):
        all_tokens(source)


def test_a_build_that_failed_is_not_taken_for_whole(copy, tmp_path):
    """What a killed build leaves: a folder beside the destination with shards and perhaps indexes, without a manifest."""
    staging = tmp_path / ".r110.killed.staging"
    copy.rename(staging)
    (staging / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"has no manifest\.json: it is not a folder of shards, or its build was interr"
    ):
        open_sources(Data([Source(str(staging))]), "train")
    with pytest.raises(DataMissing, match="does not exist; build it"):
        open_sources(Data([Source(str(tmp_path / "r110"))]), "train")


DISK_FULL = """
import sys
from sleeptrain.data import Data, Evaluation, Source
from sleeptrain.errors import UserError
try:
    list(Evaluation(Data([Source(sys.argv[1])], cache=sys.argv[2]), micro=1, split="train"))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_full_disk(copy, tmp_path):
    """A real tmpfs, mounted where only the test sees it."""
    unshare = needs_system("unshare", package="util-linux")
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: only root may mount a file system")
    cache = tmp_path / "cache"
    cache.mkdir()
    script = f'mount -t tmpfs -o size=32k tmpfs {cache} && exec "$@"'
    command = [unshare, "--mount", "sh", "-c", script, "sh", sys.executable, "-c", DISK_FULL, str(copy), str(cache)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    expected = r"shard \S+\.mds cannot be written \(the disk is full\); free space, or bound the cache with data\.cache_limit\n"
    assert re.fullmatch(expected, ran.stdout), ran.stdout + ran.stderr


def test_shards_of_another_manifest(copy, other):
    shutil.copyfile(other / "train" / "index.json", copy / "train" / "index.json")
    with pytest.raises(UserError, match="does not belong to the manifest"):
        open_sources(Data([Source(str(copy))]), "train")
    (copy / "train" / "index.json").unlink()
    with pytest.raises(UserError, match="no readable index of its train split"):
        open_sources(Data([Source(str(copy))]), "train")


def test_a_changed_manifest(copy):
    body = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(body | {"pad": 0}))
    with pytest.raises(UserError, match="was changed"):
        open_sources(Data([Source(str(copy))]), "train")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"transitions": [1, 4]}, "tokenizer is"), ({"width": 10, "transitions": [1, 2]}, "length is 20 .* and 24")],
)
def test_sources_that_differ(folder, tmp_path, parameters, message):
    build_task({"task": "rule110"}, tmp_path / "b", {"strings": 2, "width": 8, "train": 5, "test": 0} | parameters)
    with pytest.raises(UserError, match=f"do not fit together: {message}"):
        open_sources(Data([Source(str(folder)), Source(str(tmp_path / "b"))]), "train")


def test_a_read_only_folder_needs_a_cache(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"read-only.*data\.cache"):
        open_sources(Data([Source(str(folder))]), "train")
