#!/usr/bin/env bash
# Whether scaled branches keep what sleep is for: rule110-small, two blocks, with one pass and with four at equal tokens, with and without
# `model.residual_scale`; three seeds each, one process, three hours of one core. Folders of runs that are done are used again, and
# interrupted runs are continued. Twelve blocks are the study `rule110-deep`.
#   docs/depth-rule110.sh [FOLDER] [SEEDS, such as 0,1,2]
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$home/.venv/bin:$PATH" OMP_NUM_THREADS=1
out=${1:-$home/runs/depth-rule110}
seeds=${2:-0,1,2}

[ -e "$out/data/manifest.json" ] || sleeptrain data build rule110-small --out "$out/data"
runs=()
# The scale is (2 * 2 blocks * 4 passes)^-0.75.
for scale in 1 0.125; do
    for passes in 1 4; do
        run=$out/two-scale$scale-n$passes
        sleeptrain train rule110-small --seeds "$seeds" "data.sources=[{path: $out/data}]" "sleep.passes=$passes" \
            "model.residual_scale=$scale" run_dir="$run"
        runs+=("$run")
    done
done
sleeptrain eval "${runs[@]}" --out "$out/report"
