#!/usr/bin/env bash
# Whether scaled branches keep what sleep is for: rule110-small with one pass and with four at equal tokens, with and without
# `model.residual_scale`, in its two blocks and in twelve; three seeds each, one process. Five core-hours for two blocks and
# more for twelve. Folders of runs that are done are used again, and interrupted runs are continued.
#   docs/depth-rule110.sh [FOLDER] [two|twelve] [SEEDS, such as 0,1,2]
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$home/.venv/bin:$PATH" OMP_NUM_THREADS=1
out=${1:-$home/runs/depth-rule110}
sizes=${2:-two twelve}
seeds=${3:-0,1,2}

train() { sleeptrain train rule110-small --seeds "$seeds" "data.sources=[{path: $out/data}]" "$@"; }

[ -e "$out/data/manifest.json" ] || sleeptrain data build rule110-small --out "$out/data"
for size in $sizes; do
    # The scale is (2 * blocks * 4 passes)^-0.75.
    case $size in
        two) layers=AG scale=0.125 ;;
        twelve) layers='(AG)x6' scale=0.0326 ;;
    esac
    runs=()
    for scaled in 1 "$scale"; do
        for passes in 1 4; do
            run=$out/$size-scale$scaled-n$passes
            train "sleep.passes=$passes" "model.layers=$layers" "model.residual_scale=$scaled" run_dir="$run"
            runs+=("$run")
        done
    done
    sleeptrain eval "${runs[@]}" --out "$out/$size-report"
done
