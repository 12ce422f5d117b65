#!/usr/bin/env bash
# Guess: `--signal=USR1@60` warns a job 60 seconds before its time limit. If the limit is raised, the job is warned before the new one.
# Fact: the warning is sent once in a start of a job. A limit that is raised before it moves it; one that is raised after it, even by the
#   job itself on the warning, is reached without another one: SIGTERM comes at the new limit, and SIGKILL after KillWait.
# Why it matters: a training that saves on the warning, and is given more hours to finish, loses what it does from then on unless it saves
#   on SIGTERM within KillWait (30 seconds by default) or stops at the first warning and asks to be requeued, which resets the warning.
# Seen with SLURM 22.05.8 of Debian 12, one controller and two nodes in a temporary folder. Runs as root on Debian 12, for four minutes.
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

# Both get a second minute: `before` at once, `after` when it is warned. One counts what it gets, in the order of arrival.
cat > job.sh <<'JOB'
#!/usr/bin/env bash
raise() { scontrol update "JobId=$SLURM_JOB_ID" TimeLimit="$1"; }
export -f raise
srun bash -c '
    trap "echo USR1; [ $WHEN = before ] || raise 3" USR1
    trap "echo TERM; exit" TERM
    [ $WHEN = after ] || raise 2
    while :; do sleep 1 & wait $!; done'
JOB
scontrol --version
for when in before after; do
    WHEN=$when sbatch --quiet --time=1 --signal=USR1@30 --output="$folder/$when.txt" job.sh
done
until [ -z "$(squeue --noheader --states=PENDING,RUNNING,COMPLETING)" ]; do sleep 1; done
for when in before after; do
    echo "limit raised $when the warning: $(grep --only-matching --extended-regexp '^(USR1|TERM)$' "$when.txt" | tr '\n' ' ')"
done | tee seen
diff seen - <<'SEEN'
limit raised before the warning: USR1 TERM 
limit raised after the warning: USR1 TERM 
SEEN
