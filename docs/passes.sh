#!/usr/bin/env bash
# Remakes the table of the README: Rule 110 with one pass, with four, and with one pass for about the time of four, three seeds
# each, one process each. About half an hour of one CPU core. Folders of runs that are done are used again.
#   docs/passes.sh [FOLDER]
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$home/.venv/bin:$PATH"
out=${1:-$home/runs/passes}

train() { OMP_NUM_THREADS=1 sleeptrain train rule110-demo --seeds 0,1,2 "data.sources=[{path: $out/data}]" "$@"; }

sleeptrain data build rule110-demo --out "$out/data"
train sleep.passes=1 run_dir="$out/n1"
train sleep.passes=4 run_dir="$out/n4"
train sleep.passes=1 run_dir="$out/n1-longer" train.steps=1400
sleeptrain eval "$out/n1" "$out/n4" "$out/n1-longer" --out "$out/report"
