#!/bin/bash
# Verification and benchmarks on a GPU, in three calls of less than ten minutes each; all output goes to the folder OUT.
#
#     benchmarks/gpu.sh verify OUT     self-test of the kernels for this GPU and Triton against the float64 reference. Passing
#                                      entries are marked in OUT/verified.json, to be copied into kernels/sleep_kernels/. Then
#                                      passes recorded as CUDA graphs against eager passes
#     benchmarks/gpu.sh measure OUT    speed and memory of the kernels, beside flash-linear-attention if FLA is a folder that
#                                      has it: pip install --no-deps --target FOLDER fla-core==0.6.0 einops
#     benchmarks/gpu.sh passes OUT     speed and memory of passes of a 1B hybrid: eager, compiled, recorded, and both
#
# PYTHON selects the interpreter. LIFT=--lift-guard runs fla's backward under Triton 3.4 to 3.7.0 too (see kernels.py).
set -euo pipefail
verb=${1:-} out=${2:-}
case $verb in verify | measure | passes) ;; *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
: "${out:?missing output folder: benchmarks/gpu.sh $verb OUT}"
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
export PYTHONUNBUFFERED=1 FLA_DISABLE_BACKEND_DISPATCH=1 PYTHONPATH="$root/kernels:$root${FLA:+:$FLA}"
python=${PYTHON:-python3} status=0
script() { # name, further arguments
    "$python" "$root/benchmarks/$1.py" --json "$out/$1.json" "${@:2}" | tee "$out/$1.txt" || status=$?
}
case $verb in
verify)
    trap 'cp "$root/kernels/sleep_kernels/verified.json" "$out/"' EXIT # also if a time limit ends this script
    "$python" -m sleep_kernels.self_test --write | tee "$out/self_test.txt" || status=$?
    script cuda_graphs
    ;;
measure) script kernels ${LIFT:-} ;;
passes) script passes ;;
esac
exit $status
