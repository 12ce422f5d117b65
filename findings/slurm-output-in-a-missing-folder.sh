#!/usr/bin/env bash
# Guess: sbatch refuses an --output whose folder does not exist, or SLURM makes the folder, or the job says what is wrong.
# Fact: sbatch accepts it. The job fails before the first line of its script: JobLaunchFailure, ExitCode=0:53 (signal 53, which no
#   program sent). Nothing names the file: not scontrol, and not the log of slurmd at its usual level. A slash in the job's name does the
#   same with --output=%x.out.
# Why it matters: a study of hundreds of jobs whose names are hyperparameters ("lr/3e-4") vanishes from the queue in seconds, and nothing
#   in the user's folders says why. The folder must be made before sbatch is called, and names in patterns must have no slash.
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
SlurmctldPort=26837
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
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26838 CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > munged.log 2>&1 &
until [ -S munge/socket ]; do sleep 0.1; done
slurmctld-wlm -D > slurmctld.log 2>&1 &
slurmd-wlm -D -N n1 -d "$root/sbin/slurmstepd-wlm" > slurmd.log 2>&1 &
until [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" = idle ]; do sleep 0.2; done

cat > job.sh <<JOB
#!/bin/sh
echo started >> $folder/started
JOB
# Submits a job with these options, waits for its end, and prints its state, exit status and reason.
ended() {
    local status=0 job
    job=$(sbatch --wait --parsable "$@" job.sh) || status=$?
    echo "sbatch --wait returned $status; $(scontrol show job "$job" | grep --only-matching --extended-regexp '(JobState|Reason|ExitCode)=[^ ]*' | paste --serial --delimiters ' ')"
}
scontrol --version
missing=$(ended --output="$folder/no/such/folder/out")
slash=$(ended --job-name=lr/3e-4 --output=%x.out)
good=$(ended --output="$folder/out")
echo "a folder that is not there: $missing"
echo "a slash in the name:        $slash"
echo "a folder that is there:     $good"
named=$(grep --count --extended-regexp 'out$|3e-4' slurmd.log || true)
echo "times that the script was started: $(wc -l < started); lines of slurmd's log that name the file: $named"
failed='sbatch --wait returned 1; JobState=FAILED Reason=JobLaunchFailure ExitCode=0:53'
[ "$missing | $slash | $(wc -l < started) $named" = "$failed | $failed | 1 0" ]
[[ $good == 'sbatch --wait returned 0; JobState=COMPLETED '* ]]
