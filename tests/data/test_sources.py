"""Sources: cached, remote, read-only and damaged shards, and folders without shards."""

import json
import shutil

import numpy as np
import pytest

from sleep_data.build import build_task
from sleeptrain.data import Data, Evaluation, Reader, Source
from sleeptrain.data.sources import DataMissing, open_sources
from sleeptrain.errors import UserError
from sleeptrain.recipe.task_files import with_build_command


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
    assert (
        f"build it with: sleeptrain data build TASK --out {tmp_path / 'nothing'}  (TASK is a file or one of depo,"
        in line
    )
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
    with pytest.raises(UserError, match=r"shard .*shard\.00002\.mds is damaged"):
        all_tokens(Data([Source(str(copy))]))
    with pytest.raises(UserError, match=r"shard .*shard\.00002\.mds is damaged") as caught:
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
