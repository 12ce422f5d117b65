#!/usr/bin/env bash
# Guess: a batch script gets what its #SBATCH lines ask for. Whether sbatch is called on a login node, in an interactive job or by another
#   job makes no difference.
# Fact: the SLURM_* variables of the job around sbatch go along. Those that the new job does not set itself are options for its srun. A script
#   without a number of tasks starts as many as the job around it had. srun with --mem, as for an interactive shell, leaves its only task
#   SLURM_DISTRIBUTION=cyclic: ranks 0 and 1 of the new job are then on different nodes, where they were on one. Nothing is said.
# Why it matters: training is submitted from interactive jobs, and evaluation by the job that trained. Every evaluation then runs as often as
#   the training had tasks, and a tensor-parallel group lies across the slow network. sleeptrain hands sbatch an environment without these
#   variables.
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
SlurmctldPort=26867
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
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[26868-26869] CPUs=4 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
for node in n1 n2; do slurmd-wlm -D -N $node -d "$root/sbin/slurmstepd-wlm" > slurmd-$node.log 2>&1 & done
until [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; do sleep 0.2; done

cat > ranks.sh <<'JOB'
#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=2
echo ranks $(srun --label node.sh | sort --numeric-sort | cut --delimiter=: --fields=2)
JOB
cat > tasks.sh <<'JOB'
#!/bin/sh
#SBATCH --nodes=1 --exclusive
echo "tasks $(srun echo task | wc --lines)"
JOB
mkdir bin
printf '#!/bin/sh\necho "$SLURMD_NODENAME"\n' > bin/node.sh
chmod +x bin/node.sh
export PATH=$folder/bin:$PATH
# Submits a script by the given words, and prints what its job has written.
seen() {
    local tries=300
    rm -f out
    "${@:2}" sbatch --output="$folder/out" "$1" > submitted.log 2>&1
    until grep --silent --extended-regexp 'ranks|tasks' out 2>/dev/null && [ -z "$(squeue --noheader)" ]; do
        ((tries-- > 0)) || { echo "$1 has not run"; exit 1; }
        sleep 0.2
    done
    cat out
}
# shellcheck disable=SC2046  # words that are split are wanted
clean() { env $(compgen -e | grep ^SLURM_ | grep --invert-match ^SLURM_CONF | sed 's/^/--unset=/') "$@"; }
export -f clean
{
    sbatch --version
    echo "two tasks on each of two nodes, from a login shell:       $(seen ranks.sh env)"
    echo "the same, from a task that was started with --mem:        $(seen ranks.sh srun --ntasks=1 --mem=100)"
    echo "the same, without its variables:                          $(seen ranks.sh srun --ntasks=1 --mem=100 bash -c 'clean "$@"' -)"
    echo "a script without a number of tasks, from a login shell:   $(seen tasks.sh env)"
    echo "the same, from a shell of a job of two tasks:             $(seen tasks.sh salloc --quiet --ntasks=2)"
    echo "the same, without its variables:                          $(seen tasks.sh salloc --quiet --ntasks=2 bash -c 'clean "$@"' -)"
} | tee seen
diff seen - <<'SEEN'
slurm-wlm 22.05.8
two tasks on each of two nodes, from a login shell:       ranks n1 n1 n2 n2
the same, from a task that was started with --mem:        ranks n1 n2 n1 n2
the same, without its variables:                          ranks n1 n1 n2 n2
a script without a number of tasks, from a login shell:   tasks 1
the same, from a shell of a job of two tasks:             tasks 2
the same, without its variables:                          tasks 1
SEEN
