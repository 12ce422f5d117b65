"""What a recipe needs before it runs: parameters and memory of every process, FLOPs, traffic, how long stages wait."""

from sleeptrain.plan.layout import Layout, laid_out
from sleeptrain.plan.plan import Plan, draw_up, planned_world, stages_balance
from sleeptrain.plan.show import text, to_json

__all__ = ["Layout", "Plan", "draw_up", "laid_out", "planned_world", "stages_balance", "text", "to_json"]
