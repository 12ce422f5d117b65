"""Compiles the Triton kernels of the table for sm_90 without a GPU and prints what ptxas says, as JSON. Run as a script.

    python tests/kernels/static_compile.py [--triton FOLDER] [--only bfloat16-128]

--triton: a folder with another Triton, from `pip install --target FOLDER --no-deps triton==3.6.0`. A process of its own,
because Triton must not be told to interpret, nor be imported twice in two versions.
"""

import argparse
import contextlib
import io
import json
import re
import sys
from typing import Any

KEY_HEADS = 16  # only strides depend on it


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], launch: Any) -> dict[str, int]:
    """Registers, bytes of spills and shared memory, and counts of tensor-core instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    said = log.getvalue()
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert spills and registers, said
    return {
        "registers": int(registers[1]),
        "spill_stores": int(spills[1]),
        "spill_loads": int(spills[2]),
        "shared": compiled.metadata.shared,
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
        "mma": compiled.asm["ptx"].count("mma.sync."),
    }


def rule_kernels(plan: Any, dtype: str, d: int) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], Any]]:
    """Name -> kernel, types of its arguments, constants and launch, as the launchers would call it."""
    from sleep_kernels.triton_gdr_backward import reverse_kernel
    from sleep_kernels.triton_gdr_chunks import invert_kernel, score_kernel
    from sleep_kernels.triton_gdr_forward import sweep_kernel
    from sleep_kernels.triton_gdr_remainder import remainder_kernel

    x, f = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype], "*fp32"
    chunks = {"inverse": x, "running": f, "strength": f, "scores": x, "scores_low": x}
    sizes, numbers = {"T": "i32"}, {"T": "i32", "scale": "fp32"}
    heads = {"H": KEY_HEADS, "HV": KEY_HEADS, "DK": d, "PRECISION": plan.precision}
    replayed = ("states", "residuals", "residuals_low")
    sweep = {n: x for n in ("q", "k", "v", "o", *replayed)} | chunks | {"initial": f, "final": f} | numbers
    reverse = {n: x for n in ("q", "k", "grad_o", "dv")} | chunks | numbers
    remainder = {n: x for n in ("q", "k", "grad_o", "dv", *replayed, "scratch", "dq", "dk")}
    remainder |= {n: f for n in ("running", "strength", "d_states", "dg", "dbeta")} | numbers | {"rows": "i32"}

    def columns(launch: Any) -> dict[str, Any]:
        return heads | {"DV": d, "BV": min(launch.block, d)}

    result = {
        "invert": (
            invert_kernel,
            {"k": x, "g": f, "beta": f} | {n: chunks[n] for n in ("inverse", "running", "strength")} | sizes,
            heads | {"BK": min(plan.invert.block, d)},
            plan.invert,
        ),
        "score": (
            score_kernel,
            {"q": x, "k": x, "running": f, "scores": x, "scores_low": x} | numbers,
            heads | {"BK": min(plan.score.block, d)},
            plan.score,
        ),
        "reverse": (
            reverse_kernel,
            reverse | {"grad_state": f, "d_states": f, "d_initial": f},
            columns(plan.reverse) | {"HAS_GRAD_STATE": True},
            plan.reverse,
        ),
    }
    for name, launch in (("sweep", plan.sweep), ("replay", plan.replay)):
        constants = columns(launch) | {"HAS_INITIAL": True, "REPLAY": name == "replay"}
        result[name] = (sweep_kernel, sweep, constants, launch)
    for name, launch, group in (("remainder", plan.remainder, 1), ("remainder_grouped", plan.remainder_grouped, 2)):
        constants = columns(launch) | {"BK": min(launch.width, d), "HV": KEY_HEADS * group}
        result[name] = (remainder_kernel, remainder, constants, launch)
    return result


def layer_kernels(plan: Any, dtype: str, d: int) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], Any]]:
    """As rule_kernels, for what stands before and after the rule."""
    from sleep_kernels import triton_norm as norm
    from sleep_kernels import triton_prep as prep
    from sleep_kernels import triton_prep_backward as prep_backward

    x, f = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype], "*fp32"
    rows = {"D": d, "ROWS": plan.norm.block}
    norms = {"x": x, "gate": x, "weight": f, "count": "i32", "eps": "fp32"}
    norm_grads = {"grad": x, "dx": x, "d_gate": x, "d_weight": f, "steps": "i32"}
    result = {
        "norm": (norm.norm_kernel, norms | {"y": x}, rows, plan.norm),
        "norm_backward": (norm.norm_backward_kernel, norms | norm_grads, rows, plan.norm),
    }
    inputs = {n: x for n in ("q", "k", "v", "a", "b", "conv_q", "conv_k", "conv_v", "tail")}
    inputs |= {"a_log": f, "dt_bias": f, "order": "*i32", "T": "i32", "strength": "fp32"}
    outputs = {n: x for n in ("q_out", "k_out", "v_out", "new_tail")} | {"g": f, "beta": f}
    grads = {n: x for n in ("dq_out", "dk_out", "dv_out", "d_new_tail", "dq", "dk", "dv", "da", "db", "d_tail")}
    grads |= {n: f for n in ("dg", "dbeta", "d_conv", "d_a_log", "d_dt_bias")}
    for name, packed in (("prep", False), ("prep_packed", True)):
        tokens = {"H": KEY_HEADS, "R": 2, "D": d, "K": 4, "BT": plan.prep.block, "HAS_TAIL": True, "PACKED": packed}
        parts = tokens | {"TAPS": 4, "STEPS": 64 // plan.prep.block}
        result[name] = (prep.prep_kernel, inputs | outputs, tokens, plan.prep)
        result[f"{name}_backward"] = (prep_backward.prep_backward_kernel, inputs | grads, parts, plan.prep)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", metavar="FOLDER", help="another Triton to compile with")
    parser.add_argument("--only", default="", help="compile kernels whose name contains this, e.g. bfloat16-128-sweep")
    arguments = parser.parse_args()
    if arguments.triton:
        sys.path.insert(0, arguments.triton)
    import triton

    from sleep_kernels import verified

    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    report: dict[str, Any] = {"triton": triton.__version__, "kernels": {}}
    for entry in verified.table():
        name = f"{entry['dtype']}-{entry['d']}"
        if entry["triton"] != triton.__version__:
            continue
        shape = (verified.parse(entry), entry["dtype"], entry["d"])
        for kernel, call in (rule_kernels(*shape) | layer_kernels(*shape)).items():
            if arguments.only in f"{name}-{kernel}":
                report["kernels"][f"{name}-{kernel}"] = compile_kernel(*call)
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
