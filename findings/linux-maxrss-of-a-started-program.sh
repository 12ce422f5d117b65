#!/usr/bin/env bash
# Guess: resource.getrusage(RUSAGE_SELF).ru_maxrss of a new program is the peak memory of that program.
# Fact: on Linux it is never below the memory of the process that started it. Executing a program keeps the peak of the memory that
#   is replaced, and with vfork or posix_spawn, which Python's subprocess and many launchers use, that is the parent's memory. VmHWM in
#   /proc/self/status is the program's own peak.
# Why it matters: memory metrics of training processes take the memory of their launcher, data builder or notebook for their own,
#   and differences between two configurations, each measured in a process of its own, come out as 0.
# Seen with psutil 7.2.2, Python 3.11, Linux 6.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install psutil==7.2.2 2>/dev/null
cat > "$folder/child.py" <<'PY'
import resource

import psutil

status = open("/proc/self/status").read()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, peak >> 10, psutil.Process().memory_info().rss >> 20)
PY
cat > "$folder/parent.py" <<'PY'
import platform
import subprocess
import sys


def started():
    return [int(word) for word in subprocess.check_output([sys.executable, sys.argv[1]]).split()]


print(f"Python {platform.python_version()}, Linux {platform.release()}; MiB: ru_maxrss, VmHWM, resident now")
print("started by a small process:    ", *started())
held = bytearray(600 << 20)
held[::4096] = b"x" * len(held[::4096])
found = started()
print("started by one that holds 600: ", *found)
maxrss, peak, resident = found
sys.exit(None if maxrss >= 600 and peak < 100 and resident < 100 else "ru_maxrss is the program's own")
PY
"$folder/venv/bin/python" "$folder/parent.py" "$folder/child.py"
