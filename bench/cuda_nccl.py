#!/usr/bin/env python3
"""
The round of check_cuda_peer --bench through NCCL, for comparison: two processes, a query of 8192 bytes out, a partial of 16640 back, rounds in a CUDA
graph. Needs two GPUs and PyTorch. Prints one line of JSON: microseconds a round, the median of the replays.

    bench/cuda_nccl.py
"""
import json
import os
import statistics

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

QUERY, PARTIAL, ROUNDS, REPLAYS = 8192, 16640, 200, 31


def side(rank):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", NCCL_NVLS_ENABLE="0")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2, device_id=torch.device("cuda", rank))
    query = torch.zeros(QUERY, dtype=torch.uint8, device="cuda")
    partial = torch.zeros(PARTIAL, dtype=torch.uint8, device="cuda")

    def round_():
        if rank == 0:
            dist.send(query, 1)
            dist.recv(partial, 1)
        else:
            dist.recv(query, 0)
            dist.send(partial, 0)

    for _ in range(5):
        round_()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(ROUNDS):
            round_()
    took = []
    for _ in range(REPLAYS):
        torch.cuda.synchronize()
        dist.barrier()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        took.append(begin.elapsed_time(end) * 1000 / ROUNDS)
    if rank == 0:
        print(json.dumps({"nccl_2gpu_round_us": round(statistics.median(took), 2), "nccl_2gpu_round_best_us": round(min(took), 2),
                          "nccl": ".".join(map(str, torch.cuda.nccl.version()))}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(side, nprocs=2)
