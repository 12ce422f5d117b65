"""Keys of DeepSpeed's configuration: known ones are accepted; unknown, invalid and reserved ones are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sleeptrain.engine.deepspeed_keys import refused_keys
from sleeptrain.engine.settings import RESERVED_KEYS, deepspeed_config

KNOWN: dict[str, Any] = {
    "zero_optimization": {"overlap_comm": True, "offload_optimizer": {"device": "cpu"}, "stage3_max_reuse_distance": 0},
    "bf16": {"check_grad_overflow": False},
    "fp16": {"loss_scale": 0},
    "comms_logger": {"enabled": True, "verbose": False},
    "flops_profiler": {"enabled": True, "profile_step": 1, "module_depth": -1, "detailed": True, "output_file": None},
    "aio": {"block_size": 1048576, "queue_depth": 8},
    "activation_checkpointing": {"partition_activations": False, "number_checkpoints": None, "profile": False},
    "timers": {"throughput": {"enabled": True, "synchronized": True}},
    "checkpoint": {"use_node_local_storage": False, "parallel_write": {"pipeline_stage": False}},
    "data_types": {"grad_accum_dtype": "fp32"},
    "csv_monitor": {"enabled": False},
    "compile": {"offload_activation": False},
    "pipeline": {"stages": "auto"},
    "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
    "wall_clock_breakdown": True,
    "communication_data_type": "bf16",
    "steps_per_print": 10,
}  # fmt: skip


@pytest.mark.parametrize("key", KNOWN)
def test_documented_keys_are_accepted(key: str) -> None:
    assert refused_keys({key: KNOWN[key]}, RESERVED_KEYS) == []


def test_keys_of_the_derived_configuration_are_known() -> None:
    config = deepspeed_config(nn.Linear(3, 3), clip=1.0, precision="bf16", zero=1, micro=1, accumulation=1)
    assert refused_keys({**config, **KNOWN}, {}) == []


@pytest.mark.parametrize(
    ("section", "path", "why"),
    [
        ({"wall_clock_breakdwn": True}, "wall_clock_breakdwn", "unknown key; did you mean wall_clock_breakdown?"),
        ({"nonsense": {}}, "nonsense", "unknown key"),
        ({"zero_optimization": {"overlap_com": True}}, "zero_optimization.overlap_com", "unknown key; did you mean overlap_comm?"),
        ({"zero_optimization": {"stage3_max_reuse_distanse": 0}}, "zero_optimization.stage3_max_reuse_distanse", "unknown key; did you mean stage3_max_reuse_distance?"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "zero_optimization.offload_optimizer.devise", "unknown key; did you mean device?"),
        ({"flops_profiler": {"enabld": True}}, "flops_profiler.enabld", "unknown key; did you mean enabled?"),
        ({"data_types": {"grad_accum_type": "fp32"}}, "data_types.grad_accum_type", "unknown key; did you mean grad_accum_dtype?"),
        ({"zero_optimization": {"offload_optimizer": {"device": "gpu"}}}, "zero_optimization.offload_optimizer.device", "DeepSpeed does not take this: Input should be 'none', 'cpu' or 'nvme'"),
        ({"communication_data_type": "fp8"}, "communication_data_type", "DeepSpeed does not take this: Invalid communication_data_type. Supported data types: ['fp16', 'bf16', 'fp32']. Got: fp8"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "is decided by optim.clip; set optim.clip instead"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "is decided by mesh.zero; set mesh.zero instead"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "is decided by train.precision; set train.precision instead"),
    ],
)  # fmt: skip
def test_refused_keys_are_named_with_the_reason_and_the_way_out(section: dict[str, Any], path: str, why: str) -> None:
    assert refused_keys(section, RESERVED_KEYS) == [(path, why)]


def test_a_section_that_is_not_a_mapping_is_refused() -> None:
    ((path, why),) = refused_keys({"zero_optimization": 3}, RESERVED_KEYS)
    assert path == "zero_optimization" and "must be a mapping" in why


def test_a_reserved_key_does_not_hide_other_errors_of_its_section() -> None:
    refused = refused_keys({"zero_optimization": {"stage": 2, "overlap_com": True}}, RESERVED_KEYS)
    assert [path for path, _ in refused] == ["zero_optimization.stage", "zero_optimization.overlap_com"]
