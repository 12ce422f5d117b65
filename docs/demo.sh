#!/usr/bin/env bash
# `make demo`: builds shards, trains models with one pass and with four, prints a report, generates text. Two CPU cores.
# The echoed commands can be pasted, after: source .venv/bin/activate
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
out=runs/demo
library=$(python -c 'import os; print(os.path.dirname(os.__file__))')

step() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
run() { printf '\033[2m$'; printf ' %q' "$@"; printf '\033[0m\n'; "$@"; }
two() { run python -m sleep_launch.local --processes 2 -- sleeptrain train "$@"; }

step "demo: results in $out, which is emptied first"
rm -rf "$out"

step "(a) shards: Rule 110, and Python's own source files as text"
run sleeptrain data build rule110-demo --out $out/data/rule110-demo
run sleeptrain data build text --out $out/data/text "paths=[$library/asyncio, $library/email, $library/http, $library/json, $library/unittest]" holdout=10

step "(b) the same small hybrid on Rule 110 with one pass and with four: same data, same seed, two processes each"
two rule110-demo sleep.passes=1 run_dir=$out/n1
two rule110-demo sleep.passes=4 run_dir=$out/n4

step "(c) text: every window is predicted in pass 1 and then sleeps"
two text-small run_dir=$out/text "data.sources=[{path: $out/data/text}]" train.steps=250

step "(d) accuracy by number of transitions t"
run sleeptrain eval $out/n1 $out/n4 --out $out

step "(e) the text model generates text"
run sleeptrain generate $out/text --prompt "def read(self, size):" --tokens 200 --temperature 0.7 --seed 1

step "(f) results"
cat <<END
$out/report.md          the table above with a plot and an explanation
$out/n1, $out/n4        run folders: config.yaml, metrics.jsonl, checkpoints/
These are runs of one seed, which decide nothing: docs/passes.sh trains three seeds, and one pass for the time of four.
This took $(( SECONDS / 60 )) minutes and $(( SECONDS % 60 )) seconds.
Next, after: source .venv/bin/activate
  sleeptrain eval $out/n4 --passes 1,2,4,8        the model at other numbers of passes
  sleeptrain train rule110-demo --explain         every value with its source
  sleeptrain report $out/n1 $out/n4 $out/text     curves of the three runs, one HTML file
docs/first-hour.md goes on from here.
END
