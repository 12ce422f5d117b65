#!/usr/bin/env bash
#SBATCH --job-name=it_s_a_run_of_HOME
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --requeue
# Checks the nodes of the job, trains, and requeues the job until the run is done: written by sleeptrain.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
# SIGTERM, which SLURM sends to this script too, must not end it before the job is requeued.
trap : TERM
cd -- /home/user/project || exit 2
job='/home/user/project/it'"'"'s a "run" of $HOME/launch/1'
runs=('/home/user/project/it'"'"'s a "run" of $HOME')
index=${SLURM_ARRAY_TASK_ID:-0}
# SLURM_JOB_ID of the job of an array that starts last is the array's, which scontrol takes for all its jobs.
this=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
run=${runs[index]}
exclude=''
module load cuda/13.0 || { echo 'launch: module load cuda/13.0 has failed; correct software.modules of the cluster file and launch again' >&2; exit 2; }
export NCCL_SOCKET_IFNAME=ib0
export PATH=/opt/python/bin:$PATH
export PYTHONPATH=$job/code
# srun has not read it from the job since SLURM 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
python=(/opt/python/bin/python)
# --wait, --kill-on-bad-exit: a rank that ends first, with status 75, must not end those that still save.
# --overlap: resources of the step before may not be free yet.
srun=(srun --wait=0 --kill-on-bad-exit=0 --overlap)

# Prints the decision of sleep_launch.attempt: "go", "end STATUS" or "again SECONDS [NODES TO EXCLUDE]".
decide() {
    "${srun[@]}" --nodes=1 --ntasks=1 --ntasks-per-node=1 \
        "${python[@]}" -m sleep_launch.attempt "$@" --job "$job" --index "$index" --run "$run" --checks "$checks" --limit 3 --delay 60
}

follow() {
    local word value nodes
    read -r word value nodes <<< "$1"
    case $word in
        go) return ;;
        again)
            # SLURM now sends SIGTERM to all that this script runs.
            trap '' TERM
            scontrol requeue "$this" || exit 75
            scontrol update "JobId=$this" "StartTime=now+$value"
            [ -z "$nodes" ] || scontrol update "JobId=$this" "ExcNodeList=${exclude:+$exclude,}$nodes"
            exit 75 ;;
        end)
            exit "$value" ;;
        *) exit 1 ;;
    esac
}

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)
checks=$job/nodes/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
mkdir -p -- "$run" "$checks" || exit 1
"${srun[@]}" "${python[@]}" -m sleeptrain preflight "$checks" --run-dir "$run" --tasks 8 --gpus 8 --space 284256
follow "$(decide begin --nodes "$hosts")"
"${srun[@]}" "${python[@]}" -m sleeptrain train "$job/recipe-$index.yaml"
status=$?
follow "$(decide end --status "$status")"
