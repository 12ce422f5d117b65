"""What a recipe needs before it runs: parameters and memory of every process, FLOPs, traffic, pipeline bubbles."""

from sleeptrain.plan.data_layout import DataLayout, resolve_data
from sleeptrain.plan.plan import Plan, make_plan, planned_world, stage_balance
from sleeptrain.plan.show import text, to_json

__all__ = ["DataLayout", "Plan", "make_plan", "planned_world", "resolve_data", "stage_balance", "text", "to_json"]
