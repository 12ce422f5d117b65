"""Compiles the Triton kernels of the table for sm_90 without a GPU and prints ptxas statistics as JSON. Run as a script.

    python tests/kernels/static_compile.py [--triton FOLDER] [--only bfloat16-128]

--triton: a folder with another Triton version, from `pip install --target FOLDER --no-deps triton==3.6.0`. Runs in its own
process, because Triton must not be in interpreter mode, and two versions cannot be imported together.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from typing import Any

KEY_HEADS = 16  # affects strides only


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], launch: Any) -> dict[str, float]:
    """Compile one kernel: registers, bytes of spills and of shared memory, counts of tensor-core instructions, and CPU seconds of
    Triton and ptxas."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    log, before = io.StringIO(), cpu_seconds()
    with contextlib.redirect_stdout(log):
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    output = log.getvalue()
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    registers = re.search(r"Used (\d+) registers", output)
    assert spills and registers, output
    return {
        "registers": int(registers[1]),
        "spill_stores": int(spills[1]),
        "spill_loads": int(spills[2]),
        "shared": compiled.metadata.shared,
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
        "mma": compiled.asm["ptx"].count("mma.sync."),
        "seconds": round(cpu_seconds() - before, 1),
    }


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started and seen end."""
    return sum(os.times()[:4])


def rule_kernels(config: Any, dtype: str, d: int) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], Any]]:
    """Kernels of the gated delta rule by name: kernel, argument types, constants and launch, as its caller passes them."""
    from sleep_kernels.triton_gdr_backward import chunk_bwd_dh_kernel
    from sleep_kernels.triton_gdr_dqk import chunk_bwd_dqk_kernel
    from sleep_kernels.triton_gdr_forward import chunk_fwd_kernel
    from sleep_kernels.triton_gdr_intra import solve_tril_kernel

    x, f = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype], "*fp32"
    intra = {"inverse": x, "g_cumsum": f, "beta_fp32": f}
    sizes, numbers = {"T": "i32"}, {"T": "i32", "scale": "fp32"}
    heads = {"H": KEY_HEADS, "HV": KEY_HEADS, "DK": d, "PRECISION": config.precision}
    recomputed = ("states", "residuals")
    chunk_fwd = {n: x for n in ("q", "k", "v", "o", *recomputed)} | intra | {"initial": f, "final": f} | numbers
    chunk_bwd_dh = {n: x for n in ("q", "k", "grad_o", "dv")} | intra | numbers
    chunk_bwd_dqk = {n: x for n in ("q", "k", "grad_o", "dv", *recomputed, "d_states", "dq", "dk")}
    chunk_bwd_dqk |= {n: f for n in ("g_cumsum", "beta_fp32", "dg", "dbeta")} | numbers | {"rows": "i32"}

    def columns(launch: Any) -> dict[str, Any]:
        return heads | {"DV": d, "BV": min(launch.block, d)}

    result = {
        "solve_tril": (
            solve_tril_kernel,
            {"k": x, "g": f, "beta": f} | intra | sizes,
            heads | {"BK": min(config.solve_tril.block, d)},
            config.solve_tril,
        ),
        "chunk_bwd_dh": (
            chunk_bwd_dh_kernel,
            chunk_bwd_dh | {"grad_state": f, "d_states": x, "d_initial": f},
            columns(config.chunk_bwd_dh) | {"HAS_GRAD_STATE": True},
            config.chunk_bwd_dh,
        ),
    }
    for name, launch in (("chunk_fwd", config.chunk_fwd), ("chunk_recompute", config.chunk_recompute)):
        constants = columns(launch) | {"HAS_INITIAL": True, "RECOMPUTE": name == "chunk_recompute"}
        result[name] = (chunk_fwd_kernel, chunk_fwd, constants, launch)
    for name, launch, group in (
        ("chunk_bwd_dqk", config.chunk_bwd_dqk, 1),
        ("chunk_bwd_dqk_grouped", config.chunk_bwd_dqk_grouped, 2),
    ):
        constants = columns(launch) | {"BK": min(launch.width, d), "HV": KEY_HEADS * group}
        result[name] = (chunk_bwd_dqk_kernel, chunk_bwd_dqk, constants, launch)
    return result


def layer_kernels(config: Any, dtype: str, d: int) -> dict[str, tuple[Any, dict[str, str], dict[str, Any], Any]]:
    """As rule_kernels, for delta_inputs, gated_rms_norm and the sums of their programs."""
    from sleep_kernels.triton_delta_inputs import delta_inputs_kernel
    from sleep_kernels.triton_delta_inputs_backward import delta_inputs_backward_kernel
    from sleep_kernels.triton_norm import norm_backward_kernel, norm_kernel
    from sleep_kernels.triton_partial_sums import COLUMNS, ROWS, partial_sums_kernel
    from sleep_kernels.verified import KernelLaunch

    x, f = {"bfloat16": "*bf16", "float32": "*fp32"}[dtype], "*fp32"
    rows = {"D": d, "ROWS": config.norm.block}
    norms = {"x": x, "gate": x, "weight": f, "count": "i32", "eps": "fp32"}
    norm_grads = {"grad": x, "dx": x, "d_gate": x, "d_weight": f, "steps": "i32"}
    sums = {"partial": f, "total": x, "count": "i32", "width": "i32"}
    result = {
        "partial_sums": (
            partial_sums_kernel,
            sums,
            {"COLUMNS": COLUMNS, "ROWS": ROWS},
            KernelLaunch(warps=4, stages=1, block=COLUMNS),
        ),
        "norm": (norm_kernel, norms | {"y": x}, rows, config.norm),
        "norm_backward": (norm_backward_kernel, norms | norm_grads, rows, config.norm),
    }
    inputs = {n: x for n in ("qkv", "ba", "conv_q", "conv_k", "conv_v", "tail")}
    inputs |= {"a_log": f, "dt_bias": f, "order": "*i32", "reach": "*i32", "T": "i32", "strength": "fp32"}
    outputs = {n: x for n in ("q_out", "k_out", "v_out", "new_tail")} | {"g": f, "beta": f}
    grads = {n: x for n in ("dq_out", "dk_out", "dv_out", "d_new_tail", "d_qkv", "d_ba", "d_tail")}
    grads |= {n: f for n in ("dg", "dbeta", "d_weights")}
    launch = config.delta_inputs
    for name, packed in (("delta_inputs", False), ("delta_inputs_packed", True)):
        constants = {"H": KEY_HEADS, "R": 2, "D": d, "K": 4, "BT": launch.block, "HAS_TAIL": True}
        constants |= {"PACKED": packed, "DOCUMENTS": packed}
        backward_constants = constants | {"TAPS": 4, "STEPS": 64 // launch.block}
        result[name] = (delta_inputs_kernel, inputs | outputs, constants, launch)
        result[f"{name}_backward"] = (delta_inputs_backward_kernel, inputs | grads, backward_constants, launch)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", metavar="FOLDER", help="folder of another Triton version to compile with")
    parser.add_argument(
        "--only", default="", help="compile kernels whose name contains this, e.g. bfloat16-128-chunk_fwd"
    )
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
