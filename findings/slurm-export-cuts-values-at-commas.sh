#!/usr/bin/env bash
# Guess: `sbatch --export=ALL,CUDA_VISIBLE_DEVICES=0,1` hands the job that value, or sbatch refuses the "1", which names no variable.
# Fact: commas separate the entries, whatever follows. The job has CUDA_VISIBLE_DEVICES=0, "1" is taken for a variable that is not set,
#   and nothing is said. Single quotes keep the comma, and stay in the value: '0,1' with its quotes. A value with commas gets through
#   unchanged where it is in the environment of sbatch and --export has the name alone, or ALL.
# Why it matters: lists are what training takes from the environment: devices, network interfaces (NCCL_SOCKET_IFNAME=eth0,eth1),
#   NCCL_IB_HCA, debug subsystems. The job runs on one device or one adapter of many, and no log says so.
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
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26828 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
slurmd-wlm -D -N n1 -d "$root/sbin/slurmstepd-wlm" > slurmd.log 2>&1 &
until [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; do sleep 0.2; done

cat > job.sh <<'JOB'
#!/bin/sh
echo "<$DEVICES>"
JOB
# Prints the value of DEVICES that a job has which was submitted with these options.
seen() {
    sbatch --quiet --wait --output=out "$@" job.sh
    cat out
}
scontrol --version
given=$(seen --export=ALL,DEVICES=0,1)
quoted=$(seen "--export=ALL,DEVICES='0,1'")
inherited=$(DEVICES=0,1 seen --export=ALL)
named=$(DEVICES=0,1 seen --export=PATH,DEVICES)
echo "--export=ALL,DEVICES=0,1: $given"
echo "--export=ALL,DEVICES='0,1': $quoted"
echo "DEVICES=0,1 sbatch --export=ALL: $inherited; --export=PATH,DEVICES: $named"
[ "$given $quoted $inherited $named" = "<0> <'0,1'> <0,1> <0,1>" ]
