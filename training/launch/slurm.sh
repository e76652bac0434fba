#!/bin/bash
# OUTPUT_DIR=runs/base sbatch --nodes 4 training/launch/slurm.sh --config training/recipes/base.yaml --train_data /data/list.jsonl
# With COMMAND=training/finetune_ctc.py, also in front, it runs a fine-tuning in place of pretraining.
#
# One launcher a node, one process a GPU. SIGTERM, two minutes before the time limit or at pre-emption, makes the run save
# and end; the job then queues itself again and goes on from there.
#SBATCH --job-name=sjepa
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

# The launcher kills its processes so many seconds after SIGTERM: long enough for a step and a checkpoint, but below the
# 120 s of --signal.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
GPUS=${SLURM_GPUS_ON_NODE:-8}
ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# What an earlier stop has left must not queue a job again that cannot even start.
rm -f "$OUTPUT_DIR/interrupted"

srun --kill-on-bad-exit=0 bash -c "exec accelerate launch --config_file training/launch/nodes.yaml \
    --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * GPUS)) \
    --machine_rank \$SLURM_NODEID --main_process_ip $ADDRESS \
    ${COMMAND:-training/pretrain.py} $(printf '%q ' "$@") --output_dir $OUTPUT_DIR --resume_from_checkpoint auto"

# A launcher of several processes reports every failure as 1: the file says that it was a signal.
if [[ -e "$OUTPUT_DIR/interrupted" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
