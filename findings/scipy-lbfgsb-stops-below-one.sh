#!/usr/bin/env bash
# Guess: L-BFGS-B finds the same minimum whatever constant the objective is multiplied by: its tolerances are relative, and `success` says
#   that it is there.
# Fact: they are relative only where the objective is above 1. Below, a step must gain 2e-9 in absolute terms. A scaling law that is fitted
#   to log losses with Huber's loss has an objective of 1e-4: it stops far from the minimum, with success True and "RELATIVE REDUCTION OF F".
#   The same objective times a thousand has residuals of the size of the noise.
# Why it matters: with noise of 0.1 % the exponents and the irreducible loss are wrong by a fifth, and nothing tells them from a good fit. The
#   size of the next model is chosen by them. Divide residuals by their expected size, and compare several starts.
# Seen with scipy 1.16.3 and numpy 2.1.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install scipy==1.16.3 numpy==2.1.3 2>/dev/null
cat > "$folder/fit.py" <<'PY'
import numpy as np
import scipy
from scipy.optimize import minimize

print("scipy", scipy.__version__, "numpy", np.__version__)
parameters, tokens = (grid.ravel() for grid in np.meshgrid(1e7 * 2.0 ** np.arange(6), 1e9 * 4.0 ** np.arange(4)))
NOISE, DELTA = 1e-3, 1e-3
losses = np.log(1.7 + 400 / parameters**0.34 + 410 / tokens**0.28) + np.random.default_rng(0).normal(0, NOISE, len(tokens))


def residuals(x):
    a, alpha, b, beta, e = x
    return np.logaddexp.reduce([a - alpha * np.log(parameters), b - beta * np.log(tokens), np.full(len(tokens), e)]) - losses


def huber(x):
    size = np.abs(residuals(x))
    return np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum()


for factor in (1, 1e3, 1e6):
    found = minimize(lambda x: factor * huber(x), [5, 0.5, 5, 0.5, 0.5], method="L-BFGS-B", options={"maxfun": 100_000, "maxiter": 10_000})
    error = np.sqrt(np.mean(residuals(found.x) ** 2)) / NOISE
    print(f"objective * {factor:g}: success {found.success}, exponents {found.x[1]:.2f} and {found.x[3]:.2f} of 0.34 and 0.28,", end=" ")
    print(f"irreducible loss {np.exp(found.x[4]):.2f} of 1.70, residuals {error:.1f} times the noise")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/fit.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
scipy 1.16.3 numpy 2.1.3
objective * 1: success True, exponents 0.27 and 0.23 of 0.34 and 0.28, irreducible loss 1.30 of 1.70, residuals 5.2 times the noise
objective * 1000: success True, exponents 0.34 and 0.29 of 0.34 and 0.28, irreducible loss 1.72 of 1.70, residuals 0.8 times the noise
objective * 1e+06: success True, exponents 0.34 and 0.29 of 0.34 and 0.28, irreducible loss 1.72 of 1.70, residuals 0.8 times the noise
SEEN
