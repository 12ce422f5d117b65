"""Shapes that have passed the self-test and are kept."""

from dataclasses import replace

import torch

from sleep_kernels.comparison import ErrorReport, Shape
from sleep_kernels.passed_shapes import PassedShapes, sources_hash

SHAPE = Shape(2, 192, 2, 4, 64, torch.bfloat16)


def report(error, shape=SHAPE, reproducible=True):
    return ErrorReport(shape, "triton", {"o": error}, reproducible, 0.1)


def test_what_has_passed_is_kept_for_its_shape_and_machine(tmp_path):
    cache, other = PassedShapes(tmp_path / "new", "one GPU"), replace(SHAPE, taps=3)
    assert cache.missing([SHAPE, other]) == [SHAPE, other]
    cache.keep(report(1e-3))
    assert cache.missing([SHAPE, other]) == [other]
    assert PassedShapes(cache.folder, "another GPU").missing([SHAPE]) == [SHAPE]
    assert [path.read_text().splitlines()[-1] for path in cache.folder.iterdir()] == ["one GPU"]


def test_failures_are_not_kept(tmp_path):
    cache = PassedShapes(tmp_path, "one GPU")
    for failed in (report(0.5), report(float("nan")), report(1e-3, reproducible=False)):
        cache.keep(failed)
    assert cache.missing([SHAPE]) == [SHAPE] and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").touch()
    cache = PassedShapes(tmp_path / "file", "one GPU")
    cache.keep(report(1e-3))
    assert cache.missing([SHAPE]) == [SHAPE]


def test_the_machine_is_gpu_versions_assembler_and_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    found = PassedShapes.of(torch.device("cuda", 0))
    assert found.folder == tmp_path / "sleeptrain" / "passed-shapes"
    for part in ("NVIDIA H200", "sm_90", torch.__version__, "3.7.1", "ptxas", sources_hash()):
        assert part in found.machine
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    assert PassedShapes.of(torch.device("cuda", 0)) != found
