#!/usr/bin/env bash
#SBATCH --job-name=rule_110_s_study
#SBATCH --array=1
#SBATCH --partition=gpu,big
#SBATCH --account=team-7
#SBATCH --qos=high
#SBATCH --constraint=h100&ib
#SBATCH --reservation=week_48
#SBATCH --exclude=node[07,12-14]
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=2-00:00:00
#SBATCH --signal=USR1@420
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --mem=0
#SBATCH --exclusive
# Checks the nodes of the job, trains, and requeues the job until the run is done: written by sleeptrain.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
# SIGTERM, which SLURM sends to this script too, must not end it before the job is requeued.
trap : TERM
cd -- '/shared/it'"'"'s here' || exit 2
job='/shared/my runs/study/launch/2'
runs=('/shared/my runs/a' '/shared/my runs/b'"'"'s $HOME')
index=${SLURM_ARRAY_TASK_ID:-0}
# SLURM_JOB_ID of the job of an array that starts last is the array's, which scontrol takes for all its jobs.
this=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
run=${runs[index]}
exclude='node[07,12-14]'
module load cuda/13.0 || { echo 'launch: module load cuda/13.0 has failed; correct software.modules of the cluster file and launch again' >&2; exit 2; }
module load nccl || { echo 'launch: module load nccl has failed; correct software.modules of the cluster file and launch again' >&2; exit 2; }
export NCCL_SOCKET_IFNAME=ib0
export NOTE='a "b" $c'
export PYTHONPATH=$job/code
# srun has not read it from the job since SLURM 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
python=(apptainer exec --nv '/shared/my image.sif' python3)
# --wait, --kill-on-bad-exit: a rank that ends first, with status 75, must not end those that still save.
# --overlap: resources of the step before may not be free yet.
srun=(srun --wait=0 --kill-on-bad-exit=0 --overlap --container-image=docker://example.org/train:1 --container-mounts=/shared)

# Prints the decision of sleep_launch.attempt: "go", "end STATUS" or "again SECONDS [NODES TO EXCLUDE]".
decide() {
    "${srun[@]}" --nodes=1 --ntasks=1 --ntasks-per-node=1 \
        "${python[@]}" -m sleep_launch.attempt "$@" --job "$job" --index "$index" --run "$run" --checks "$checks" --limit 5 --delay 120
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
            [ "$value" = 0 ] || exit "$value"
            mapfile -d '' -t words < "$job/then-$index" || exit 1
            "${srun[@]}" --nodes=1 --ntasks=1 --ntasks-per-node=1 "${python[@]}" -m sleeptrain "${words[@]}"
            exit $? ;;
        *) exit 1 ;;
    esac
}

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)
checks=$job/nodes/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
mkdir -p -- "$run" "$checks" || exit 1
"${srun[@]}" "${python[@]}" -m sleeptrain preflight "$checks" --run-dir "$run" --tasks 8 --gpus 8 --space 85899345920 --local '/scratch/$USER'
follow "$(decide begin --nodes "$hosts")"
"${srun[@]}" "${python[@]}" -m sleeptrain train "$job/recipe-$index.yaml"
status=$?
follow "$(decide end --status "$status")"
