"""Backend selection: the table of launch configurations, its logging, and limits of the kernels."""

import logging
from collections.abc import Iterator

import pytest
import torch

from sleep_kernels import assembler, dispatch, gated_delta_rule, verdicts, verified
from tests.kernels.rule_inputs import make_inputs


def test_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="needs tensors on a GPU"):
        gated_delta_rule(**make_inputs(3), backend="triton")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Backend selection sees a GPU of compute capability 9.0, and a ptxas of the version 12.8.93."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(assembler, "in_use", lambda arch: ("ptxas", "12.8.93"))
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
    assert "runs in Triton: Triton 3.7.1, ptxas 12.8.93, sm_90, bfloat16, d_k=128, d_v=128" in caplog.messages[-1]
    for config in (config_for(d=48), config_for(dtype="float16")):
        assert config is None
        assert "runs in plain torch" in caplog.messages[-1] and "not in the table" in caplog.messages[-1]
    reported = len(caplog.messages)
    config_for(d=48)
    assert len(caplog.messages) == reported, "each decision is logged once"
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.9.0")
    assert config_for(d=64) is None


@pytest.mark.parametrize(
    ("ptxas", "right", "says"),
    [
        ("12.8.93", None, "was never compared with the reference on a GPU; install ptxas 13.0.88 with `pip install 'sleeptrain[gpu]'`, "),
        ("13.0.88", None, "was never compared with the reference on a GPU; run `python -m sleep_kernels.self_test --write`"),
        ("13.0.88", False, "gave wrong results on a GPU; run `"),
        ("13.0.88", True, ""),
    ],
)  # fmt: skip
def test_auto_requires_kernels_that_were_right_from_this_assembler(
    hopper: None, monkeypatch: pytest.MonkeyPatch, ptxas: str, right: bool | None, says: str
) -> None:
    """Where the kernels were right from another ptxas than Triton uses, too, the message says what to install."""
    entry = verified.find_entry("3.7.1", "sm_90", "bfloat16", 128)
    assert entry is not None
    known = {verdicts.VerdictKey.of(entry, "13.0.88"): True if right is None and ptxas != "13.0.88" else right}
    monkeypatch.setattr(verdicts, "verdict", known.get)
    monkeypatch.setattr(assembler, "in_use", lambda arch: ("ptxas", ptxas))
    monkeypatch.setattr(assembler, "packaged", lambda: None)
    monkeypatch.delenv(assembler.VARIABLE, raising=False)
    config, key, reason = dispatch._look_up(0, "bfloat16", 128, 128, True)
    assert (config is not None) == (right is True) and reason.startswith(says) and f"ptxas {ptxas}" in key
    assert dispatch._look_up(0, "bfloat16", 128, 128, False)[0] is not None, "an explicit backend runs it anyway"


def test_every_entry_of_the_table_is_complete() -> None:
    keys = [(e["triton"], e["arch"], e["dtype"], e["d"]) for e in verified.table()]
    assert len(set(keys)) == len(keys)
    assert all(verified.find(*key) is not None for key in keys)


def test_sequences_beyond_32_bit_offsets_run_in_plain_torch() -> None:
    near, far = (torch.empty(2, 1 << 20, 16, d, device="meta") for d in (64, 128))
    assert dispatch.fits_int32_offsets(near, near) and not dispatch.fits_int32_offsets(near, far)
