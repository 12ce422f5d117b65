"""`train.profile`: a trace and a table of the named steps, of every rank, and of no other step."""

import gzip
import json
from pathlib import Path

import pytest

from sleeptrain.errors import UserError
from sleeptrain.recipe import load_recipe
from sleeptrain.train.profile import profiled
from tests.distributed import run
from tests.train.jobs import recipe_file, rule110_data, trained

SHORT = ["sleep.window=9", "sleep.passes=2", "train.batch=8", "train.steps=3", "checkpoint.every=0"]


def profile(folder):
    where = Path(folder)
    trained(where, "run", where / "rule110", [*SHORT, "train.profile=[2]"])


def test_named_steps_are_profiled_on_every_rank(tmp_path):
    rule110_data(tmp_path)
    recipe_file(tmp_path)
    run(profile, 2, str(tmp_path))
    folder = tmp_path / "run" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"step-2.rank-{rank}.{kind}" for rank in (0, 1) for kind in ("json.gz", "txt")
    ]
    for rank in (0, 1):
        events = json.loads(gzip.decompress((folder / f"step-2.rank-{rank}.json.gz").read_bytes()))["traceEvents"]
        assert any(event.get("name") == "sleep_kernels::gated_delta_rule_chunked" for event in events)
        assert "aten::mm" in (folder / f"step-2.rank-{rank}.txt").read_text()


def test_a_profile_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file where the folder should be")
    with profiled([5], 5, tmp_path, 0):
        done = True
    assert done and "the profile of step 5 is not written" in caplog.text


def test_steps_are_counted_from_one():
    with pytest.raises(UserError, match=r"train.profile = \[0, 3\] .*: is a list of steps, which are counted from 1"):
        load_recipe("rule110-tiny", ["train.profile=[0,3]"])
