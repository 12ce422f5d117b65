"""What a recipe needs before it runs: parameters and memory of every process, FLOPs, traffic, pipeline bubbles."""

from sleeptrain.plan.data_layout import DataLayout, resolve_data
from sleeptrain.plan.device import DeviceMemory, process_memory
from sleeptrain.plan.ownership import parameter_ownership
from sleeptrain.plan.plan import Plan, make_plan, planned_world, stage_balance
from sleeptrain.plan.recompute import AUTO, resolve_recompute
from sleeptrain.plan.show import text, to_json

__all__ = [
    "AUTO",
    "DataLayout",
    "DeviceMemory",
    "Plan",
    "make_plan",
    "parameter_ownership",
    "planned_world",
    "process_memory",
    "resolve_data",
    "resolve_recompute",
    "stage_balance",
    "text",
    "to_json",
]
