#!/usr/bin/env bash
# Guess: `scontrol requeue "$SLURM_JOB_ID"` in a batch script requeues the job that runs the script, in a job array as elsewhere: every task
#   of an array has a job id of its own.
# Fact: every task has one but the one that starts last. Its SLURM_JOB_ID is the id of the array, and commands take that for all tasks:
#   the requeue also ends and requeues those that run, and `scontrol update` changes them all. In the other tasks the same line works as
#   one would guess, so that a test with the first task shows nothing. ARRAY_INDEX names one task in every case.
# Why it matters: sweeps run as arrays whose scripts requeue themselves at the time limit or on a bad node. As soon as the last one does,
#   all the others are stopped, and lose what they have computed since their last checkpoint if they cannot save within KillWait.
# Seen with SLURM 22.05.8 of Debian 12, one controller and two nodes in a temporary folder. Runs as root on Debian 12.
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

mkdir -m 700 munge state spool-n1 spool-n2
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
SlurmctldPort=26827
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
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[26828-26829] CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
for node in n1 n2; do slurmd-wlm -D -N $node -d "$root/sbin/slurmstepd-wlm" > slurmd-$node.log 2>&1 & done
until [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; do sleep 0.2; done

# The script writes down that it runs. In the task with index WHICH it then waits for the others, and requeues its own job by the name
# that FORM gives it.
cat > job.sh <<'JOB'
#!/usr/bin/env bash
trap '' TERM
touch "runs-$SLURM_ARRAY_TASK_ID"
if [ "$SLURM_ARRAY_TASK_ID" = "$WHICH" ]; then
    until [ "$(ls runs-* | wc -l)" = 3 ]; do sleep 0.1; done
    eval "job=$FORM"
    scontrol requeue "$job"
    scontrol update "JobId=$job" StartTime=now+600
fi
until [ -e end ]; do sleep 0.1; done
JOB
# Prints, for each task of an array of which one requeues its job, its index and whether it runs on.
after_requeue() {
    local array tasks
    rm -f runs-* end
    array=$(WHICH=$1 FORM=$2 sbatch --parsable --requeue --array=0-2 --output=/dev/null job.sh)
    until squeue --noheader --array --jobs="$array" --format='%K %T' | grep -Eq "^$1 (COMPLETING|PENDING)" && [ -e runs-2 ]; do sleep 0.1; done
    tasks=$(squeue --noheader --array --jobs="$array" --format='%K %T' | sort)
    touch end
    scancel "$array"
    until [ -z "$(squeue --noheader)" ]; do sleep 0.1; done
    echo "${tasks//$'\n'/, }" | sed 's/RUNNING/runs on/g; s/COMPLETING\|PENDING/is requeued/g'
}
scontrol --version
{
    echo "task 0, SLURM_JOB_ID: $(after_requeue 0 '$SLURM_JOB_ID')"
    echo "task 2, SLURM_JOB_ID: $(after_requeue 2 '$SLURM_JOB_ID')"
    echo "task 2, ARRAY_INDEX: $(after_requeue 2 '${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID')"
} | tee seen
diff seen - <<'SEEN'
task 0, SLURM_JOB_ID: 0 is requeued, 1 runs on, 2 runs on
task 2, SLURM_JOB_ID: 0 is requeued, 1 is requeued, 2 is requeued
task 2, ARRAY_INDEX: 0 runs on, 1 runs on, 2 is requeued
SEEN
