"""Checkpoints that are not whole: every kind of damage to every file is named, and the one before is used."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from sleeptrain import checkpoint
from sleeptrain.checkpoint.format import Damaged, read_index
from sleeptrain.engine import Engine
from sleeptrain.errors import RunFailed, UserError
from tests.checkpoint.saving import fresh, load, save
from tests.distributed import run
from tests.engine.tiny import same, snapshot, train

FILES = (
    "part-00000.weights.safetensors",
    "part-00000.moments.safetensors",
    "part-00000.json",
    "config.yaml",
    "checkpoint.json",
)


def flipped(where: float) -> Callable[[Path, Path], None]:
    def damage(file: Path, other: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(where * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return damage


def truncated(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def missing(file: Path, other: Path) -> None:
    file.unlink()


def swapped(file: Path, other: Path) -> None:
    """The same file of the other step."""
    if file.name != "config.yaml":  # which is equal in both
        shutil.copy(other, file)


def empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


DAMAGES = {
    "first byte": flipped(0), "middle byte": flipped(0.5), "last byte": flipped(1), "truncated": truncated,
    "missing": missing, "empty": empty, "of another step": swapped,
}  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder with checkpoints of steps 1 and 2, and the state of step 1."""
    folder = tmp_path_factory.mktemp("two")
    engine = fresh("adamw", "fp32", 1)
    train(engine, range(1))
    save(engine, folder, 1)
    first = snapshot(engine)
    train(engine, range(1, 2))
    save(engine, folder, 2)
    return folder, first


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine to load into, which has made a step."""
    made = fresh("adamw", "fp32", 1)
    train(made, range(1))
    return made


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside(
    two: tuple[Path, list[Any]],
    engine: Engine,
    tmp_path: Path,
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    file = folder / "step-00000002" / name
    DAMAGES[damage](file, folder / "step-00000001" / name)
    found = checkpoint.newest_whole(engine.process, folder, 0.0)
    assert found is not None
    if (name, damage) == ("config.yaml", "of another step"):
        assert found[0].name == "step-00000002"
        return
    assert found[0].name == "step-00000001"
    assert f"warning: {file} " in capsys.readouterr().err
    assert (folder / "damaged-step-00000002").is_dir() and not (folder / "step-00000002").exists()
    checkpoint.load(engine, *found)
    assert same(snapshot(engine), two[1])


@pytest.mark.parametrize(
    ("damage", "name"), [(truncated, "part-00000.weights.safetensors"), (missing, "checkpoint.json")]
)
def test_a_run_without_a_whole_checkpoint_does_not_start_again(
    two: tuple[Path, list[Any]], engine: Engine, tmp_path: Path, damage: Callable[[Path, Path], None], name: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    for step in (1, 2):
        damage(folder / f"step-0000000{step}" / name, folder)
    for _ in range(2):
        with pytest.raises(
            UserError, match="no whole checkpoint, and damaged ones: damaged-step-00000001, damaged-step-00000002"
        ):
            checkpoint.newest_whole(engine.process, folder, 0.0)
    assert checkpoint.newest_whole(engine.process, tmp_path / "none", 0.0) is None


def test_weights_of_a_damaged_checkpoint_are_not_read(two: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    file = folder / "step-00000002" / "part-00000.weights.safetensors"
    flipped(1)(file, file)
    with pytest.raises(UserError, match=r"its hash differs; name another checkpoint: step-00000001"):
        checkpoint.load_weights(folder / "step-00000002")


def test_weights_are_read_without_moments(two: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """Evaluation reads and verifies a third of the bytes; a run that continues needs the rest."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    file = folder / "step-00000002" / "part-00000.moments.safetensors"
    assert file.stat().st_size > 1.5 * file.with_name("part-00000.weights.safetensors").stat().st_size
    file.unlink()
    assert checkpoint.load_weights(file.parent).keys() == checkpoint.weight_shapes(file.parent).keys()


def test_an_index_leads_to_no_file_outside(two: tuple[Path, list[Any]], tmp_path: Path) -> None:
    from sleeptrain.checkpoint import format

    path = tmp_path / "step-00000002"
    shutil.copytree(two[0] / "step-00000002", path)
    index = read_index(path)
    for name in ("../outside.json", "/etc/hostname", "part-00000.json/../../x", "other.json"):
        format.write_index(path, format.Index(**{**vars(index), "files": {name: format.FileRecord(1, "0")}}))
        with pytest.raises(Damaged, match="no file of a checkpoint"):
            read_index(path)


class Marks:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_pickle_in_the_folder_is_not_executed(two: tuple[Path, list[Any]], engine: Engine, tmp_path: Path) -> None:
    """Neither beside the files of a checkpoint, nor in the place of one."""
    folder, mark = tmp_path / "checkpoints", tmp_path / "executed"
    shutil.copytree(two[0], folder)
    content = pickle.dumps(Marks(str(mark)))
    pickle.loads(content)
    assert mark.exists(), "the test's own pickle works"
    mark.unlink()
    for step in (1, 2):
        (folder / f"step-0000000{step}" / "mp_rank_00_model_states.pt").write_bytes(content)
    for name in FILES:
        (folder / "step-00000002" / name).write_bytes(content)
    load(engine, folder)
    assert not mark.exists() and (folder / "damaged-step-00000002").is_dir()


def test_a_newer_format_is_refused_and_not_set_aside(
    two: tuple[Path, list[Any]], engine: Engine, tmp_path: Path
) -> None:
    from sleeptrain.checkpoint import format

    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    file = folder / "step-00000002" / "checkpoint.json"
    body = json.loads(file.read_text())["checkpoint"] | {"version": 99}
    file.write_text(json.dumps({"checkpoint": body, "xxh3": format._hash_of(body)}))
    with pytest.raises(UserError, match="has version 99 of the format"):
        checkpoint.newest_whole(engine.process, folder, 0.0)
    assert (folder / "step-00000002").is_dir()


def other_views(folder: str, views: list[str]) -> tuple[str, list[str]]:
    """What a rank finds, and its errors, where every rank has a folder of its own."""
    engine = fresh("adamw", "fp32", 1)
    err = io.StringIO()
    try:
        with redirect_stderr(err):
            found = checkpoint.newest_whole(engine.process, Path(folder) / views[engine.process.rank], 0.0)
    except UserError as error:
        return "refused", error.errors
    return found[0].name if found else "none", [err.getvalue()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three views of a run folder of two ranks: `new` with steps 1 and 2, `old` with step 1, `other` with another step 2."""
    folder = tmp_path_factory.mktemp("views")
    run(write_views, 2, str(folder))
    return folder


def write_views(folder: str) -> None:
    engine, root = fresh("adamw", "fp32", 1), Path(folder)
    for step in (1, 2):
        train(engine, range(step - 1, step))
        save(engine, root / "new", step)
    train(engine, range(2, 3))
    save(engine, root / "other", 2)
    if engine.process.rank == 0:
        shutil.copytree(root / "new", root / "old")
        shutil.rmtree(root / "old" / "step-00000002")


def test_ranks_with_other_views_of_the_folder_do_not_mix_states(shared: Path, tmp_path: Path) -> None:
    """Rank 0 decides. A rank that sees other files is named on all ranks, and nothing is set aside."""
    for view in ("old", "other"):
        shutil.copytree(shared, tmp_path / view)
        (first, errors), (second, none) = run(other_views, 2, str(tmp_path / view), ["new", view])
        assert (first, second, none) == ("refused", "refused", [])
        assert errors[0].startswith("rank 1 on ") and "a file system that all nodes share" in errors[0]
        assert not list((tmp_path / view).glob("*/damaged-*"))
    # Rank 0 has the old view: all ranks continue there.
    shutil.copytree(shared, tmp_path / "behind")
    assert [name for name, _ in run(other_views, 2, str(tmp_path / "behind"), ["old", "new"])] == ["step-00000001"] * 2


def test_damage_that_another_rank_finds_is_set_aside(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared, tmp_path / "views")
    flipped(0.7)(tmp_path / "views" / "new" / "step-00000002" / "part-00001.weights.safetensors", tmp_path)
    (first, [warning]), (second, _) = run(other_views, 2, str(tmp_path / "views"), ["new", "new"])
    assert first == second == "step-00000001" and "part-00001.weights.safetensors is not what was written" in warning


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    two: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(two[0], folder)
    engine = fresh("adamw", "fp32", 1)
    train(engine, range(1))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("sleeptrain.checkpoint.format._write_all", full)
    with pytest.raises(RunFailed) as caught:
        save(engine, folder, 3)
    message = str(caught.value)
    assert "cannot write checkpoint step-00000003: No space left on device" in message
    assert "bytes wanted" in message and f"the last good one is {folder / 'step-00000002'}" in message
    monkeypatch.undo()
    assert not list(folder.glob(".*"))
    save(engine, folder, 3)
    assert load(engine, folder).step == 3


def one_rank_cannot_write(folder: str) -> tuple[str, int]:
    """The error of a save in which rank 1 cannot write, and the step of the next save, which it can."""
    from sleeptrain.checkpoint import save as module

    engine = fresh("adamw", "fp32", 1)
    train(engine, range(1))
    save(engine, Path(folder), 1)
    write = module.write_tensors
    if engine.process.rank == 1:
        module.write_tensors = lambda *_: (_ for _ in ()).throw(MemoryError("no memory"))  # type: ignore[assignment]
    try:
        save(engine, Path(folder), 2)
    except RunFailed as error:
        message = str(error)
    module.write_tensors = write
    assert engine.process.rank or not list(Path(folder).glob(".*"))
    save(engine, Path(folder), 3)
    return message, load(engine, Path(folder)).step


def test_a_rank_that_cannot_write_ends_the_save_on_all_ranks(tmp_path: Path) -> None:
    for message, step in run(one_rank_cannot_write, 2, str(tmp_path)):
        assert message.startswith("rank 1 cannot write checkpoint step-00000002: MemoryError: no memory (")
        assert message.endswith(
            "the last good one is " + str(tmp_path / "step-00000001") + "; the same command continues from it"
        )
        assert step == 3
