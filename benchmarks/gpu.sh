#!/bin/bash
# Verification and benchmarks on a GPU, in calls of less than ten minutes each; all output goes to the folder OUT, as it is made.
#
#     benchmarks/gpu.sh assemblers OUT  which Triton and ptxas give right kernels, and whether torch.compile works beside them: the
#                                       installed Triton and those of the folders TRITONS, each with its own ptxas and the files PTXAS
#     benchmarks/gpu.sh verify OUT      self-test of the kernels for this GPU and Triton against the float64 reference. The
#                                       verdicts are in OUT/verdicts.json, to be copied into kernels/sleep_kernels/. Then
#                                       passes recorded as CUDA graphs against eager passes
#     benchmarks/gpu.sh tests OUT       the tests that need a GPU, without an installation; `make test-gpu` makes one first
#     benchmarks/gpu.sh training OUT    seconds of a step of hybrid-1b by `sleeptrain train`: compiled, with graphs, eager; profiles
#     benchmarks/gpu.sh measure OUT     speed and memory of the kernels, beside flash-linear-attention if FLA is a folder that
#                                       has it: pip install --no-deps --target FOLDER fla-core==0.6.0 einops
#     benchmarks/gpu.sh choices OUT     times of the rule's kernels with other launch parameters than those of the table
#     benchmarks/gpu.sh passes OUT      speed and memory of passes of a 1B hybrid: eager, compiled, recorded, and both
#
# PYTHON selects the interpreter. VERIFIED=FILE puts such verdicts into place first: without them, training is refused
# and passes run in plain torch. TRITON_PTXAS_PATH selects the assembler, TRITONS and PTXAS are lists with colons. LIFT=--lift-guard runs
# fla's backward under Triton 3.4 to 3.7.0 too (see kernels.py). What is needed beside torch: omegaconf and pydantic for `passes` and
# `verify`, also pytest and hypothesis for `tests`, and for it and `training` all dependencies of pyproject.toml but wandb.
set -euo pipefail
verb=${1:-} out=${2:-}
case $verb in assemblers | verify | tests | training | measure | choices | passes) ;; *) sed -n '2,23s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
: "${out:?missing output folder: benchmarks/gpu.sh $verb OUT}"
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 FLA_DISABLE_BACKEND_DISPATCH=1
export PYTHONPATH="$root:$root/kernels:$root/launch:$root/data_pipelines${FLA:+:$FLA}${PYTHONPATH:+:$PYTHONPATH}"
table=$root/kernels/sleep_kernels/verdicts.json python=${PYTHON:-python3} status=0
if [ -n "${VERIFIED:-}" ]; then cp "$VERIFIED" "$table"; fi
script() { # name, further arguments
    "$python" "$root/benchmarks/$1.py" --json "$out/$1.json" "${@:2}" | tee "$out/$1.txt" || status=$?
}
options() { # option, a list with colons: the option before each member
    local each
    for each in ${2//:/ }; do printf '%s %s ' "$1" "$each"; done
}
case $verb in
# shellcheck disable=SC2046
assemblers) script assemblers $(options --triton "${TRITONS:-}") $(options --ptxas "${PTXAS:-}") ;;
verify)
    trap 'cp "$table" "$out/"' EXIT # also if a time limit ends this script
    "$python" -m sleep_kernels.self_test --ship | tee "$out/self_test.txt" || status=$?
    script cuda_graphs
    ;;
tests)
    # Entries are compiled beside each other here, and found in Triton's cache by the tests, which run one after the other.
    "$python" -m sleep_kernels.self_test | tee "$out/self_test.txt" || status=$?
    (cd "$root" && "$python" -m pytest -v -rs -m gpu -p no:cacheprovider tests/gpu) 2>&1 | tee "$out/tests.txt" || status=$?
    ;;
training) "$python" "$root/benchmarks/training.py" --out "$out" | tee "$out/training.txt" || status=$? ;;
measure) script kernels --until 400 ${LIFT:-} ;;
choices) script launch_choices ;;
passes) script passes ;;
esac
exit $status
