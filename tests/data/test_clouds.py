"""Shards through the clients of Google Cloud Storage and of the Hugging Face Hub, from servers on localhost that answer as they do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from sleeptrain.data import Data, Evaluation, Source
from sleeptrain.data.origin import web_address
from sleeptrain.data.sources import open_sources
from sleeptrain.errors import UserError
from tests.data.clouds import GOOGLE_FILE, HUB_FILE, TOKEN, CloudServer, service_account
from tests.data.servers import Proxy, cut, flip, in_thread


@pytest.fixture
def served(folder, tmp_path) -> Path:
    """What the servers have: compressed shards of `r110`."""
    shutil.copytree(folder, tmp_path / "served" / "data" / "r110", ignore=shutil.ignore_patterns("*.mds"))
    return tmp_path / "served"


@pytest.fixture(autouse=True)
def no_accounts(monkeypatch, tmp_path):
    """Nothing of the accounts of whoever runs the tests."""
    for name in (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_CLOUD_PROJECT",
        "GCS_KEY",
        "GCS_SECRET",
        "HF_TOKEN",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # or the client asks for a minute whether this is a machine of Google's
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))


@pytest.fixture(params=["gs", "hf"])
def remote(request, served, tmp_path, monkeypatch):
    """The configuration of data in a cloud, and the proxy before it."""
    with (
        in_thread(CloudServer(served, GOOGLE_FILE if request.param == "gs" else HUB_FILE)) as server,
        in_thread(Proxy(server.url)) as between,
    ):
        if request.param == "gs":
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.url)
            account = service_account(server, tmp_path / "account.json")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
            url = "gs://corpus/data/r110"
        else:
            monkeypatch.setenv("HF_ENDPOINT", between.url)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            url = "hf://datasets/someone/corpus/data/r110"
        yield Data([Source(url)], cache=str(tmp_path / "cache")), between


def all_tokens(data):
    return np.concatenate([batch.tokens.numpy() for batch in Evaluation(data, micro=1, split="train")])


@pytest.mark.parametrize("fault", [None, cut, flip])
def test_equals_the_local_folder(remote, data, tmp_path, fault):
    cloud, between = remote
    if fault is not None:
        between.faults["train/shard.00001.mds.zstd"] = [fault]
    assert (all_tokens(cloud) == all_tokens(data)).all()
    assert between.count("train/shard.00000.mds.zstd") == 1
    assert between.count("train/shard.00001.mds.zstd") == (1 if fault is None else 2)
    files = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not [name for name in files if "part" in name] and "shard.00001.mds" in files


def test_what_is_missing_is_named(remote, served):
    cloud, _ = remote
    (served / "data" / "r110" / "train" / "shard.00002.mds.zstd").unlink()
    with pytest.raises(UserError, match=r"shard \S+/train/shard\.00002\.mds\.zstd .*, downloaded twice") as caught:
        all_tokens(cloud)
    (message,) = caught.value.errors
    assert "\n" not in message
    (served / "data" / "r110" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"r110/manifest\.json cannot be downloaded \(\w+: .*404"):
        open_sources(cloud, "train")


def test_without_credentials_one_line_says_what_to_set(remote, monkeypatch):
    cloud, _ = remote
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError) as caught:
        open_sources(cloud, "train")
    (message,) = caught.value.errors
    wanted = "Application Default Credentials" if "gs://" in message else "401 .*; set HF_TOKEN"
    assert re.search(wanted, message) and "\n" not in message


def test_revisions_of_the_hub(served, monkeypatch, tmp_path, data):
    with in_thread(CloudServer(served, HUB_FILE)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        url = "hf://datasets/someone/corpus@v1.2/data/r110/"
        assert (all_tokens(Data([Source(url)], cache=str(tmp_path / "cache"))) == all_tokens(data)).all()
        assert server.revisions == {"v1.2"}


def test_addresses_of_the_hub():
    assert web_address("hf://datasets/a/b") == "https://huggingface.co/datasets/a/b/resolve/main"
    assert web_address("hf://datasets/a/b@x/c/d") == "https://huggingface.co/datasets/a/b/resolve/x/c/d"
    assert web_address("http://a/b") == "http://a/b"
    for url in ("hf://a/b/c", "hf://datasets/a", "hf://models/a/b"):
        with pytest.raises(ValueError, match="write hf://datasets/OWNER/NAME/FOLDER"):
            web_address(url)
