#!/usr/bin/env bash
# Guess: a batch script that calls `scontrol requeue` on its own job and then `scontrol update StartTime=now` makes the job start
#   again at once, since the last update of the start time counts.
# Fact: the start time is looked at once more when the job has left its nodes. A time that has passed by then is replaced by one 121
#   seconds later; a time that is still to come, such as now+15, is kept. ExcNodeList, set in the same moment, is kept in both cases.
# Why it matters: a training that saves and requeues itself at a time limit or on a bad node loses two minutes of every node in each
#   start, and a short back-off in seconds becomes two minutes without a word.
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

# The script requeues its job, asks for a start time, and leaves its node out. Its commands must outlive SLURM's SIGTERM.
cat > job.sh <<'JOB'
#!/usr/bin/env bash
trap '' TERM
scontrol requeue "$SLURM_JOB_ID"
scontrol update "JobId=$SLURM_JOB_ID" "StartTime=$WANTED" "ExcNodeList=$SLURM_JOB_NODELIST"
JOB
# Prints the seconds from the requeue to the start that SLURM then plans, and the nodes that are left out.
planned() {
    local job state
    job=$(WANTED=$1 sbatch --parsable --requeue --output=/dev/null job.sh)
    until state=$(squeue --noheader --jobs="$job" --format='%T %r') && [ "$state" = 'PENDING BeginTime' ]; do sleep 0.1; done
    local submit start
    submit=$(date +%s --date="$(squeue --noheader --jobs="$job" --format=%V)")
    start=$(date +%s --date="$(squeue --noheader --jobs="$job" --format=%S)")
    echo "$((start - submit)) $(scontrol show job "$job" | grep --only-matching 'ExcNodeList=[^ ]*')"
    scancel "$job"
}
scontrol --version
past=$(planned now)
future=$(planned now+15)
echo "StartTime=now: starts after $past; StartTime=now+15: starts after $future (seconds, nodes left out)"
[[ $past =~ ^12[0-2]\ ExcNodeList=n1$ ]] && [[ $future =~ ^1[4-6]\ ExcNodeList=n1$ ]]
