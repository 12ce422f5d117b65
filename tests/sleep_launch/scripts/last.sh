#!/usr/bin/env bash
#SBATCH --job-name=rule_110_s_study-last
#SBATCH --partition=gpu,big
#SBATCH --account=team-7
#SBATCH --qos=high
#SBATCH --reservation=week_48
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=60
#SBATCH --open-mode=append
# Runs when the jobs of an array have ended: written by sleeptrain.
# shellcheck disable=SC2016  # the shell must not read a $ in a name
set -uo pipefail
cd -- '/shared/it'"'"'s here' || exit 2
job='/shared/my runs/study/launch/2'
module load cuda/13.0 || { echo 'launch: module load cuda/13.0 has failed; correct software.modules of the cluster file and launch again' >&2; exit 2; }
module load nccl || { echo 'launch: module load nccl has failed; correct software.modules of the cluster file and launch again' >&2; exit 2; }
export NCCL_SOCKET_IFNAME=ib0
export NOTE='a "b" $c'
export PYTHONPATH=$job/code
python=(apptainer exec --nv '/shared/my image.sif' python3)
srun=(srun --wait=0 --kill-on-bad-exit=0 --overlap --container-image=docker://example.org/train:1 --container-mounts=/shared)
"${srun[@]}" "${python[@]}" -m sleeptrain study 'it'"'"'s' --report
