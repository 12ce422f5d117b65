#!/usr/bin/env bash
# `make demo`: from nothing to two trained models, a report and some generated text, on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
out=runs/demo
library=$(python -c 'import os; print(os.path.dirname(os.__file__))')

step() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
two() { run python -m sleep_launch.local --processes 2 -- sleeptrain train "$@"; }

step "demo: starting anew in $out"
rm -rf "$out"

step "(a) shards: Rule 110, and Python's own source files as text"
run sleeptrain data build rule110-demo --out $out/data/rule110
run sleeptrain data build text --out $out/data/text "paths=[$library/asyncio, $library/email, $library/http, $library/json, $library/unittest]" window=64 windows_per_sample=4 holdout=10

step "(b) the same small hybrid on Rule 110 with one pass and with four: same data, same seed, two processes each"
two rule110-demo sleep.passes=1 run_dir=$out/n1
two rule110-demo sleep.passes=4 run_dir=$out/n4
step "    one pass again, for about as long as four passes took"
two rule110-demo sleep.passes=1 run_dir=$out/n1-longer train.steps=1400

step "(c) text: every window is predicted, then slept over"
two text-small run_dir=$out/text "data.sources=[{path: $out/data/text}]" train.steps=250

step "(d) accuracy by number of transitions t"
run sleeptrain eval $out/n1 $out/n4 $out/n1-longer --out $out

step "(e) the text model writes"
run sleeptrain generate $out/text --prompt "def read(self, size):" --tokens 200 --temperature 0.7 --seed 1

step "(f) where everything is"
cat <<END
$out/report.md          the table above, with a plot and how to read it
$out/n1, $out/n4        run folders: config.yaml, metrics.jsonl, checkpoints/
Ten minutes and one seed say little where intervals overlap; configs/rule110-small.yaml is sized to tell N apart, and
benchmarks/results/ has what it found.
Try next:
  sleeptrain eval $out/n4 --passes 1,2,4,8        the model at other numbers of passes
  sleeptrain train rule110-demo --explain         every setting, and where it comes from
  sleeptrain doctor                               what works on this machine
END
