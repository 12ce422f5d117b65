#!/usr/bin/env bash
# Guess: `time: 24:00:00` in a YAML file that a launcher hands to sbatch as --time is 24 hours, since `time: 08:00:00` is 8 hours.
# Fact: YAML 1.1, which PyYAML and OmegaConf read, has numbers to the base of 60. 24:00:00 is the number 86400, and a number is minutes for
#   SLURM: the limit is 60 days. 08:00:00 begins with a zero, is no number, and stays what it says, as 1-00:00:00 does. 30:00, half an hour, is 1800
#   minutes. sbatch says nothing where the partition allows it.
# Why it matters: a job of 8 hours works. One of 24 waits for good where the partition allows less, is not backfilled where it allows as much, and
#   runs on for weeks after a hang; the signal before the end, at which a run saves, is counted from that limit. Quote times in YAML, or write
#   days: 1-00:00:00.
# Seen with SLURM 22.05.8 of Debian 12, one controller in a temporary folder, pyyaml 6.0.3, omegaconf 2.4.0. Runs as root on Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip -q install pyyaml==6.0.3 omegaconf==2.4.0 2>/dev/null
SLURM=22.05.8-4+deb12u3
apt-get -qq download {slurmctld,slurm-client,slurm-wlm-basic-plugins}=$SLURM {munge,libmunge2}=0.5.15-2+deb12u1 \
    libhwloc15 libnuma1 liblua5.1-0 liblz4-1 libjson-c5 libyaml-0-2 libdbus-1-3 2>/dev/null
for package in *.deb; do dpkg-deb --extract "$package" files; done
root=$folder/files/usr
host=$(hostname)
mkdir -m 700 munge state
head --bytes 1024 /dev/urandom > munge/key
chmod 600 munge/key
cat > slurm.conf <<CONF
ClusterName=finding
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
PluginDir=$root/lib/x86_64-linux-gnu/slurm-wlm
SlurmctldPort=26867
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26868 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
cat > times.py <<'PY'
"""What YAML makes of each time, and the limit of a held job that sbatch is given it for."""
import os
import re
import subprocess
import sys
from importlib import metadata

import yaml
from omegaconf import OmegaConf

libraries, root, conf = sys.argv[1:]
environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "SLURM_CONF": conf, "PATH": f"{root}/bin:{os.environ['PATH']}"}


def call(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment).stdout


print(call("scontrol", "--version").strip(), "pyyaml", metadata.version("pyyaml"), "omegaconf", metadata.version("omegaconf"))
for written in ("08:00:00", "12:00:00", "24:00:00", "'24:00:00'", "1-00:00:00", "00:30:00", "30:00", "1:30:00", "90"):
    time = yaml.safe_load(f"time: {written}")["time"]
    assert OmegaConf.create(f"time: {written}").time == time
    job = call("sbatch", "--parsable", "--hold", f"--time={time}", text="#!/bin/sh\ntrue\n").strip()
    limit = re.search(r"TimeLimit=(\S+)", call("scontrol", "show", "job", job))[1]
    print(f"time: {written:11} is {time!r:13} and --time={time:<11} is a limit of {limit}")
PY
libraries=$root/lib/x86_64-linux-gnu/slurm-wlm:$root/lib/x86_64-linux-gnu:$folder/files/lib/x86_64-linux-gnu
export SLURM_CONF=$folder/slurm.conf
LD_LIBRARY_PATH=$libraries "$root/sbin/munged" --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
LD_LIBRARY_PATH=$libraries "$root/sbin/slurmctld-wlm" -D > slurmctld.log 2>&1 &
until LD_LIBRARY_PATH=$libraries "$root/bin/sinfo" > /dev/null 2>&1; do sleep 0.2; done
venv/bin/python times.py "$libraries" "$root" "$SLURM_CONF" | tee seen
diff seen - <<'SEEN'
slurm-wlm 22.05.8 pyyaml 6.0.3 omegaconf 2.4.0
time: 08:00:00    is '08:00:00'    and --time=08:00:00    is a limit of 08:00:00
time: 12:00:00    is 43200         and --time=43200       is a limit of 30-00:00:00
time: 24:00:00    is 86400         and --time=86400       is a limit of 60-00:00:00
time: '24:00:00'  is '24:00:00'    and --time=24:00:00    is a limit of 1-00:00:00
time: 1-00:00:00  is '1-00:00:00'  and --time=1-00:00:00  is a limit of 1-00:00:00
time: 00:30:00    is '00:30:00'    and --time=00:30:00    is a limit of 00:30:00
time: 30:00       is 1800          and --time=1800        is a limit of 1-06:00:00
time: 1:30:00     is 5400          and --time=5400        is a limit of 3-18:00:00
time: 90          is 90            and --time=90          is a limit of 01:30:00
SEEN
