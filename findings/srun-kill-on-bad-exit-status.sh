#!/usr/bin/env bash
# Guess: both tasks of a job end with status 75 after a signal that asks them to save, so that srun ends with 75, with
#   --kill-on-bad-exit=1 as without it: no task has crashed.
# Fact: with the option the first task that ends with any status but 0 makes srun send SIGTERM to the others at once, and SIGKILL
#   after the kill wait. srun then ends with the largest status of all tasks: 143 or 137, those of its victims.
# Why it matters: ranks that save at a scheduler's request end fractions of a second after each other. A batch script that requeues
#   on 75 never does, and SLURM's RequeueExit=75 does not fire; a rank that still writes is killed. The status has to be kept
#   elsewhere, and the option left out.
# Seen with SLURM 22.05.8 of Debian 12, one controller and one node in a temporary folder. Runs as root on Debian 12.
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

mkdir -m 700 munge state spool
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
SlurmctldPort=26817
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26818 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
slurmd-wlm -D -N n1 -d "$root/sbin/slurmstepd-wlm" > slurmd.log 2>&1 &
until [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; do sleep 0.2; done

# After SIGUSR1 task 0 takes a tenth of a second to save, task 1 two seconds. Both then end with 75.
cat > task.sh <<'TASK'
trap 'saving=1' USR1
touch "ready-$1-$SLURM_PROCID"
until [ "${saving:-}" ]; do sleep 0.1; done
[ "$SLURM_PROCID" = 0 ] && sleep 0.1 || sleep 2
exit 75
TASK
status_of() {
    local name=$1 status=0
    shift
    srun --ntasks=2 --job-name="$name" "$@" bash task.sh "$name" > "$name.log" 2>&1 &
    local srun=$!
    until [ -e "ready-$name-0" ] && [ -e "ready-$name-1" ]; do sleep 0.1; done
    scancel --signal=USR1 "$(squeue --noheader --name="$name" --format=%i)"
    wait $srun || status=$?
    echo "$status"
}
srun --version
without=$(status_of plain)
with=$(status_of killing --kill-on-bad-exit=1)
echo "status of srun, both tasks saving and ending with 75: $without without --kill-on-bad-exit, $with with it"
grep -m 1 'task 0: Exited with exit code 75' killing.log
[ "$without" = 75 ] && [ "$with" = 143 ]
