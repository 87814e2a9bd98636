#!/usr/bin/env python3
"""
PyTorch beside bench/cuda_kernels, in the same words: decode attention (32 query heads, 8 KV heads, head size 128, one row, one layer), causal prefill
attention, products. The best of its back ends; medians of replayed graphs. One JSON object.

    bench/cuda_peers.py [--quick]
"""
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

QUICK = "--quick" in sys.argv
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
out = {"torch": torch.__version__}


def median_ms(run, n, repeats=30):
    """Of one of n runs in a graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(0)
        run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            run(i)
    times = []
    for _ in range(repeats):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) / n)
    return statistics.median(times)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def best(name, unit, scale, make):
    found = {}
    for label, backend in BACKENDS.items():
        try:
            with sdpa_kernel([backend]):
                found[label] = make()
        except Exception as e:  # a back end that refuses the shape
            print(f"{name} {label}: {str(e)[:200]}", file=sys.stderr)
    for label, ms in found.items():
        out[f"torch_{name}_{label}_ms"] = round(ms, 4)
    if found:
        ms = min(found.values())
        out[f"torch_{name}_ms"] = round(ms, 4)
        out[f"torch_{name}_{unit}"] = round(scale / ms / 1e9, 3)


with torch.no_grad():
    for context, name in ((32 << 10, "32k"), (128 << 10, "128k"), (512 << 10, "512k"), (1 << 20, "1m"))[:2 if QUICK else 4]:
        copies = 4 if context == 32 << 10 else 1
        q = noise(1, 32, 1, 128)
        k, v = [noise(1, 8, context, 128) for _ in range(copies)], [noise(1, 8, context, 128) for _ in range(copies)]
        best(f"decode_attn_bf16_{name}", "TBps", context * 8 * 128 * 4,
             lambda: median_ms(lambda i: F.scaled_dot_product_attention(q, k[i % copies], v[i % copies], enable_gqa=True), 8))
        del k, v
    for rows, name in ((8 << 10, "8k"), (32 << 10, "32k"))[:1 if QUICK else 2]:
        q, k, v = noise(1, 32, rows, 128), noise(1, 8, rows, 128), noise(1, 8, rows, 128)
        best(f"prefill_attn_bf16_{name}", "TFLOPs", 2 * rows * rows * 32 * 128,
             lambda: median_ms(lambda i: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 1))
    a, b = noise(8192, 8192), noise(8192, 8192)
    out["torch_gemm_8192_TFLOPs"] = round(2 * 8192**3 / median_ms(lambda i: a @ b, 2) / 1e9, 1)
    x = noise(2048, 4096)
    w = noise(28672, 4096)
    out["torch_linear_up_2048_TFLOPs"] = round(2 * 2048 * 4096 * 28672 / median_ms(lambda i: F.linear(x, w), 2) / 1e9, 1)
    total = 0
    for n_out, n_in in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)):
        n = 8 if n_out * n_in < 6e7 else 2
        ws, x = [noise(n_out, n_in) for _ in range(n)], noise(1, n_in)
        total += median_ms(lambda i: F.linear(x, ws[i % n]), 8) * (1 if n_out == 128256 else 32)
        del ws
    out["torch_linear_8b_1_ms"] = round(total, 3)
print(json.dumps(out, indent=1))
