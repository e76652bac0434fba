#!/bin/bash
# A trial of a launch over two machines on one: two network namespaces joined by a cable, one process in each (needs root).
#   benchmarks/two_machines.sh --config training/recipes/demo.yaml --train_data my_audio/ --output_dir runs/two
set -e
PYTHON=${PYTHON:-python}
cleanup() {
    ip netns del sjepa-a 2>/dev/null || true
    ip netns del sjepa-b 2>/dev/null || true
}
trap cleanup EXIT
cleanup
ip link add sjepa-va type veth peer name sjepa-vb
for side in a b; do
    ip netns add sjepa-$side
    ip link set sjepa-v$side netns sjepa-$side
done
ip netns exec sjepa-a ip addr add 10.77.0.1/24 dev sjepa-va
ip netns exec sjepa-b ip addr add 10.77.0.2/24 dev sjepa-vb
for side in a b; do
    ip netns exec sjepa-$side ip link set sjepa-v$side up
    ip netns exec sjepa-$side ip link set lo up
done

machine() { # name, rank, arguments of the run
    local side=$1 rank=$2
    shift 2
    ip netns exec sjepa-$side env GLOO_SOCKET_IFNAME=sjepa-v$side ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 \
        "$PYTHON" -m accelerate.commands.launch --multi_gpu --num_machines 2 --num_processes 2 \
        --machine_rank "$rank" --main_process_ip 10.77.0.1 --main_process_port 29500 --rdzv_backend static \
        --same_network --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1 \
        training/pretrain.py "$@"
}
machine b 1 "$@" &
other=$!
machine a 0 "$@"
wait $other
