#!/usr/bin/env bash
# Guess: np.random.default_rng of different sequences of whole numbers gives different, independent streams: [seed, epoch], [seed, epoch, rank]
#   and [seed] are other generators.
# Fact: up to four words of 32 bits, zeros at the end do not count: 7, [7], [7, 0] and [7, 0, 0] are one stream. Each number is cut into
#   words of 32 bits, and where one number ends and the next begins is not kept: [7 + 2**32, 3] is [7, 1, 3]. SeedSequence.spawn counts from a
#   fifth word on: its first child of 7 is [7, 0, 0, 0, 0].
# Why it matters: epoch 0, rank 0 and worker 0 are part of every run. The noise of rank 0 ([seed, 0]) is drawn from the numbers of the initial weights
#   ([seed]), and the order of an epoch ([seed, epoch]) from those of rank 0 in it. Seeds of 64 bits from a hash or a clock reach into the
#   place of the next number. Put what tells the uses apart first, as a number that is not 0, or spawn.
# Seen with numpy 2.1.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install numpy==2.1.3 2>/dev/null
"$folder/venv/bin/python" - <<'PY' | tee "$folder/seen"
import numpy as np

BIG = 2**32
print("numpy", np.__version__)


def draw(seed):
    return " ".join(f"{number:3}" for number in np.random.default_rng(seed).integers(0, 1000, 5))


for seeds in (
    {"7": 7, "[7]": [7], "[7, 0]": [7, 0], "[7, 0, 0]": [7, 0, 0], "[7, 0, 0, 0]": [7, 0, 0, 0], "[7, 0, 0, 0, 0]": [7, 0, 0, 0, 0]},
    {"[0, 7]": [0, 7], "[0, 0, 7]": [0, 0, 7], "[1, 7]": [1, 7], "[1, 7, 0]": [1, 7, 0]},
    {"7 + 3 * 2**32": 7 + 3 * BIG, "[7, 3]": [7, 3]},
    {"[7 + 2**32, 3]": [7 + BIG, 3], "[7, 1, 3]": [7, 1, 3]},
):
    for name, seed in seeds.items():
        print(f"{name:16} {draw(seed)}")
parent, child = np.random.SeedSequence(7), np.random.SeedSequence(7).spawn(1)[0]
print(f"{'spawned of 7':16} {draw(child)}")
assert draw(parent) != draw(child)
PY
diff "$folder/seen" - <<'SEEN'
numpy 2.1.3
7                944 625 684 897 578
[7]              944 625 684 897 578
[7, 0]           944 625 684 897 578
[7, 0, 0]        944 625 684 897 578
[7, 0, 0, 0]     944 625 684 897 578
[7, 0, 0, 0, 0]  305 797 203  53 814
[0, 7]           796  38 225 777 564
[0, 0, 7]        995 129  11 628 977
[1, 7]           777 359 515 616 555
[1, 7, 0]        777 359 515 616 555
7 + 3 * 2**32    727 975 538 884 347
[7, 3]           727 975 538 884 347
[7 + 2**32, 3]   594 516 214 208 524
[7, 1, 3]        594 516 214 208 524
spawned of 7     305 797 203  53 814
SEEN
