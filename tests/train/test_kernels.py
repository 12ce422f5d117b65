"""Kernel selection by `train.kernels`: on a CPU, and on a simulated GPU."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sleep_kernels import verdicts
from sleep_kernels.comparison import ErrorReport, Shape
from sleep_kernels.passed_shapes import PassedShapes
from sleeptrain.errors import UserError
from sleeptrain.model.config import AttentionConfig, DeltaNetConfig, MlpConfig, Model
from sleeptrain.model.language import LanguageModel
from sleeptrain.parallel.process import Process, init_distributed
from sleeptrain.program import Window
from sleeptrain.train import kernels
from sleeptrain.train.config import Train
from sleeptrain.train.kernels import use_kernels
from tests.distributed import run

CPU, GPU = (Process(0, 1, 0, torch.device(kind, 0)) for kind in ("cpu", "cuda"))
WINDOWS = [Window(0, 300, False), Window(300, 600, False), Window(600, 605, True), Window(605, 606, True)]
SHAPES = [Shape(2, length, 2, 4, 64, torch.bfloat16) for length in (5, 128 + 300 % 64)]


EQUAL = DeltaNetConfig(2, 4, 64)


def model(layers: str = "AGG", deltanet: DeltaNetConfig = EQUAL) -> LanguageModel:
    sizes = {"attention": AttentionConfig(2, 1, 8), "deltanet": deltanet, "mlp": MlpConfig(8)}
    with torch.device("meta"):
        return LanguageModel(Model(16, layers, vocab=4, **sizes))


def use(choice: str, process: Process, layers: str = "AGG", deltanet: DeltaNetConfig = EQUAL) -> list[str]:
    """The backend of every Gated DeltaNet block."""
    language_model = model(layers, deltanet)
    use_kernels(language_model, Train(kernels=choice, precision="bf16"), WINDOWS, 3, process)  # type: ignore[arg-type]
    return [block.mixer.backend for block, letter in zip(language_model.layers, layers, strict=True) if letter == "G"]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], list[Shape]]:
    """Simulates a GPU with verified kernels; called with their error, it returns the list of shapes that are then compared.

    No verdict is known after a call.
    """
    monkeypatch.setattr(kernels, "fallback_reason", lambda *arguments: None)
    caches = iter([PassedShapes(tmp_path / str(call), "a GPU") for call in range(3)])

    def with_error(error: float) -> list[Shape]:
        compared: list[Shape] = []

        def self_test(device: torch.device, shapes: Any) -> list[ErrorReport]:
            assert device == GPU.device
            compared.extend(shapes)
            return [ErrorReport(shape, "triton", {"gradient of initial_state": error}, True, 0.1) for shape in shapes]

        cache = next(caches)
        monkeypatch.setattr(PassedShapes, "of", lambda device: cache)
        monkeypatch.setattr(kernels, "self_test", self_test)
        return compared

    return with_error


def test_a_cpu_uses_plain_torch_without_a_comparison(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "self_test", None)
    assert use("auto", CPU) == use("chunked", CPU) == ["chunked", "chunked"]
    assert caplog.messages == []


def test_required_kernels_without_a_gpu_are_refused() -> None:
    with pytest.raises(UserError) as raised:
        use("require_fused", CPU)
    assert raised.value.errors == [
        "train.kernels = require_fused, but torch sees no GPU here; use train.kernels=auto to train in plain torch"
    ]


def test_a_model_without_gated_deltanet_ignores_require_fused() -> None:
    assert use("require_fused", CPU, "AA") == []


def test_unverified_kernels_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "SHIPPED", tmp_path / "shipped.json")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with pytest.raises(UserError) as raised:
        use("require_fused", GPU)
    (message,) = raised.value.errors
    assert re.search(
        r"require_fused, but Triton 3\.7\.1, ptxas [\d.]+, sm_90, bfloat16, d_k=64, d_v=64 was never compared", message
    )
    assert "python -m sleep_kernels.self_test --write" in message
    assert use("auto", GPU) == ["chunked", "chunked"]
    assert len(caplog.messages) == 1 and "never compared" in caplog.messages[0]


def test_verified_kernels_are_compared_on_the_shapes_of_the_run(
    verified: Callable[[float], list[Shape]], caplog: pytest.LogCaptureFixture
) -> None:
    for choice in ("auto", "require_fused"):
        compared = verified(1e-3)
        assert use(choice, GPU) == ["auto", "auto"]
        assert compared == SHAPES  # once each, although two blocks and two windows have the same shape
    assert caplog.messages == []
    compared = verified(1e-3)
    assert use("chunked", GPU) == ["chunked", "chunked"] and compared == []


def test_a_second_start_compares_only_what_has_not_passed(verified: Callable[[float], list[Shape]]) -> None:
    for error, again in ((1e-3, []), (0.5, SHAPES)):
        compared = verified(error)
        backends = use("auto", GPU)
        assert compared == SHAPES
        compared.clear()
        assert use("auto", GPU) == backends and compared == again


def test_keys_and_values_of_two_sizes_have_no_fused_kernels(
    verified: Callable[[float], list[Shape]], caplog: pytest.LogCaptureFixture
) -> None:
    compared, unequal = verified(1e-3), DeltaNetConfig(2, 4, 64, generator=8, value_dim=128)
    assert use("auto", GPU, deltanet=unequal) == ["chunked", "chunked"] and compared == []
    reason = "they take keys and values of one size, and those of the model have 64 and 128"
    assert caplog.messages == [f"using plain torch instead of fused kernels: {reason}"]
    with pytest.raises(UserError, match=f"require_fused, but {reason}"):
        use("require_fused", GPU, deltanet=unequal)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_an_excessive_error_falls_back_with_one_warning_or_is_refused(
    verified: Callable[[float], list[Shape]], caplog: pytest.LogCaptureFixture, error: float
) -> None:
    caplog.set_level(logging.INFO)
    verified(error)
    assert use("auto", GPU) == ["chunked", "chunked"]
    assert len(caplog.messages) == 1
    assert (
        "error against the float64 reference exceeds the bound" in caplog.messages[0]
        and "in gradient of initial_state" in caplog.messages[0]
    )
    with pytest.raises(UserError, match="error against the float64 reference exceeds the bound"):
        use("require_fused", GPU)


def require_fused_on_this_rank() -> list[str]:
    """The errors of this rank; the stage of rank 0 has no Gated DeltaNet block."""
    process = init_distributed()
    try:
        use("require_fused", process, "AG"[process.rank])
    except UserError as error:
        return error.errors
    return ["trains"]


def test_every_rank_raises_and_only_rank_0_has_the_message() -> None:
    first, second = run(require_fused_on_this_rank, 2)
    assert len(first) == 1 and "but rank 1: torch sees no GPU here" in first[0]
    assert second == []
