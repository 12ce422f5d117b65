#!/usr/bin/env bash
# Guess: a job with --dependency=afterok:ID runs only if job ID ended well. sbatch refuses an ID that it does not know.
# Fact: a dependency on a job that the controller no longer knows counts as met. MinJobAge seconds after its end, 300 by default, a failed
#   job is forgotten: a job submitted before that waits with DependencyNeverSatisfied, one submitted after it starts at once. An ID that
#   never existed, such as a mistyped one, starts at once too. sbatch says nothing.
# Why it matters: a chain of data build, training and evaluation is often submitted by hand or by a script that waits. Training starts on
#   the half of a corpus, or evaluation on a run that failed five minutes ago. Submit the whole chain at once, with
#   --kill-on-invalid-dep=yes, and let each job check what it reads.
# Seen with SLURM 22.05.8 of Debian 12, one controller and one node in a temporary folder, without accounting. Runs as root on Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
SLURM=22.05.8-4+deb12u3
cd "$folder"
apt-get -qq download {slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins}=$SLURM {munge,libmunge2}=0.5.15-2+deb12u1 \
    libhwloc15 libnuma1 liblua5.1-0 liblz4-1 libjson-c5 libyaml-0-2 libdbus-1-3 2>/dev/null
for package in *.deb; do dpkg-deb --extract "$package" files; done
root=$folder/files/usr
export LD_LIBRARY_PATH=$root/lib/x86_64-linux-gnu/slurm-wlm:$root/lib/x86_64-linux-gnu:$folder/files/lib/x86_64-linux-gnu
export PATH=$root/bin:$root/sbin:$PATH SLURM_CONF=$folder/slurm.conf

mkdir -m 700 munge state spool-n1
head --bytes 1024 /dev/urandom > munge/key
chmod 600 munge/key
host=$(hostname)
cat > slurm.conf <<CONF
ClusterName=finding
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
PluginDir=$root/lib/x86_64-linux-gnu/slurm-wlm
SlurmctldPort=26857
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=2
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26858 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
slurmd-wlm -D -N n1 -d "$root/sbin/slurmstepd-wlm" > slurmd.log 2>&1 &
until [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; do sleep 0.2; done

printf '#!/bin/sh\nexit "$STATUS"\n' > job.sh
submitted() { sbatch --parsable --output="$folder/out" "${@:2}" --export=ALL,STATUS="$1" job.sh; }
seen() { scontrol show job "$1" | grep --only-matching --extended-regexp '(JobState|Reason)=[^ ]*' | paste --serial --delimiters ' '; }
# Waits until the job is in this state, and fails after a minute.
until_is() {
    local tries=300
    until [[ $(seen "$1") == *"$2"* ]]; do
        ((tries-- > 0)) || { echo "job $1 is not $2: $(seen "$1")"; exit 1; }
        sleep 0.2
    done
}
scontrol --version
failed=$(submitted 3)
until_is "$failed" JobState=FAILED
early=$(submitted 0 --dependency=afterok:"$failed")
until_is "$early" DependencyNeverSatisfied
echo "afterok of a failed job:                     $(seen "$early")"
while scontrol show job "$failed" > show.log 2>&1; do sleep 0.2; done
echo "the failed job, later:                       $(grep --only-matching 'Invalid job id.*' show.log)"
late=$(submitted 0 --dependency=afterok:"$failed")
mistyped=$(submitted 0 --dependency=afterok:999999)
until_is "$late" JobState=COMPLETED
until_is "$mistyped" JobState=COMPLETED
echo "afterok of it, submitted then:               $(seen "$late")"
echo "afterok of 999999, which never was:          $(seen "$mistyped")"
