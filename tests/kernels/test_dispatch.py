"""Backend selection: the table of launch configurations, its logging, and limits of the kernels."""

import logging
from collections.abc import Iterator

import pytest
import torch

from sleep_kernels import dispatch, gated_delta_rule, verified
from tests.kernels.rule_inputs import make_inputs


def test_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs tensors on a GPU"):
        gated_delta_rule(**make_inputs(3), backend="triton")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Backend selection sees a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    dispatch._config_for_gpu.cache_clear()
    yield
    dispatch._config_for_gpu.cache_clear()


def config_for(d: int = 128, dtype: str = "bfloat16", verified_only: bool = False) -> verified.LaunchConfig | None:
    return dispatch._config_for_gpu("gated_delta_rule", 0, dtype, d, d, verified_only)


def test_table_lookup_and_its_logging(
    hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sleep_kernels")
    assert config_for() is not None
    assert "runs in Triton: Triton 3.7.1, sm_90, bfloat16, d_k=128, d_v=128" in caplog.messages[-1]
    for config in (config_for(d=48), config_for(dtype="float16")):
        assert config is None
        assert "runs in plain torch" in caplog.messages[-1] and "not in the table" in caplog.messages[-1]
    reported = len(caplog.messages)
    config_for(d=48)
    assert len(caplog.messages) == reported, "each decision is logged once"
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.9.0")
    assert config_for(d=64) is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_auto_requires_an_entry_verified_on_a_gpu(hopper: None, monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    entry = dict(next(e for e in verified.table() if e["triton"] == "3.7.1" and e["d"] == 128))
    monkeypatch.setattr(verified, "table", lambda: (entry | {"verified_on_gpu": on_gpu},))
    verified.find.cache_clear()
    assert (config_for(verified_only=True) is not None) == on_gpu
    verified.find.cache_clear()


def test_every_entry_of_the_table_is_complete() -> None:
    keys = [(e["triton"], e["arch"], e["dtype"], e["d"]) for e in verified.table()]
    assert len(set(keys)) == len(keys)
    assert all(verified.find(*key) is not None for key in keys)


def test_sequences_beyond_32_bit_offsets_run_in_plain_torch() -> None:
    near, far = (torch.empty(2, 1 << 20, 16, d, device="meta") for d in (64, 128))
    assert dispatch.fits_int32_offsets(near, near) and not dispatch.fits_int32_offsets(near, far)
