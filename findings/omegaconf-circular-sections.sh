#!/usr/bin/env bash
# Guess: OmegaConf reports two sections that refer to each other as it does two values: with an interpolation error.
# Fact: two values that refer to each other raise InterpolationResolutionError ("Recursive interpolation detected"), an
#   OmegaConfBaseException. For two sections that contain references to each other, OmegaConf.resolve raises the same class,
#   but OmegaConf.to_container(resolve=True) raises Python's RecursionError, which `except OmegaConfBaseException` does not
#   catch and which names no key.
# Why it matters: a trainer that turns OmegaConf's errors into one line for the user ends in a stack trace of a thousand
#   frames for this typo in a recipe, or not, depending on the function that resolves. sleeptrain catches both.
# Seen with omegaconf 2.4.0 and Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install omegaconf==2.4.0 2>/dev/null
"$folder/venv/bin/python" - <<'PY'
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CASES = {
    "values": {"a": {"x": "${b.y}"}, "b": {"y": "${a.x}"}},
    "sections": {"a": {"x": "${b}"}, "b": {"y": "${a}"}},
}
CALLS = {"resolve": OmegaConf.resolve, "to_container": lambda config: OmegaConf.to_container(config, resolve=True)}
EXPECTED = {("sections", "to_container"): RecursionError}

for what, data in CASES.items():
    for name, call in CALLS.items():
        try:
            call(OmegaConf.create(data))
            raise SystemExit(f"changed: {what} are resolved by {name}")
        except (OmegaConfBaseException, RecursionError) as error:
            print(f"{what:8} {name:12} {type(error).__name__}: {str(error).splitlines()[0]}")
            expected = EXPECTED.get((what, name), OmegaConfBaseException)
            assert isinstance(error, expected), f"changed: {what}, {name}"
PY
