"""What a recipe needs before it runs: parameters and memory of every process, FLOPs, traffic, time, and the layouts that fit."""

from sleeptrain.plan.advice import advise
from sleeptrain.plan.automatic import AUTO, resolve_auto
from sleeptrain.plan.data_layout import DataLayout, resolve_data
from sleeptrain.plan.device import DeviceMemory, needed, process_memory
from sleeptrain.plan.hardware import Hardware
from sleeptrain.plan.memory import size
from sleeptrain.plan.ownership import parameter_ownership
from sleeptrain.plan.plan import Plan, make_plan, planned_world, stage_balance
from sleeptrain.plan.recompute import resolve_recompute
from sleeptrain.plan.search import search
from sleeptrain.plan.show import text, to_json
from sleeptrain.plan.show_search import search_json, search_text
from sleeptrain.plan.show_time import time_json, time_text
from sleeptrain.plan.step_time import step_time

__all__ = [
    "AUTO",
    "DataLayout",
    "DeviceMemory",
    "Hardware",
    "Plan",
    "advise",
    "make_plan",
    "needed",
    "parameter_ownership",
    "planned_world",
    "process_memory",
    "resolve_auto",
    "resolve_data",
    "resolve_recompute",
    "search",
    "search_json",
    "search_text",
    "size",
    "stage_balance",
    "step_time",
    "text",
    "time_json",
    "time_text",
    "to_json",
]
