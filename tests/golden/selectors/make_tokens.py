#!/usr/bin/env python3
"""
Golden values of the selectors that score positions, from an implementation of its own in numpy float64: socket (softmax over the corners of the hypercube,
as the paper has it, not the product that the kernels make) and double-sparsity. Keys, values and queries are drawn by a formula that the test repeats.

    python3 make_tokens.py > tokens.inc
"""
import itertools
import sys

import numpy as np

from make_selectors import bf16, draw, lists, numbers, rng_at, top

H, J, BLOCKS, TABLES, PLANES, TAU, SEED = 4, 2, 16, 60, 8, .4, 0x534F434B4554


def plane(table, p, dim):
    """Sums of twelve uniform numbers of 16 bits: mean 0, variance 1."""
    n, out = 8 * table + p, []
    for d in range(dim):
        parts = [rng_at(SEED, n, 3 * d + i) >> 16 * k & 0xFFFF for i in range(3) for k in range(4)]
        out.append((sum(parts) - 6 * 65535) / 65536)
    return out


def socket(planes, q, k, v):
    """Scores of a block's positions: ||v|| sum over tables of softmax(corners . tanh(W q) / sqrt(D) / tau)[code of k]; and the codes."""
    dim = len(q)
    corners = np.array(list(itertools.product((-1, 1), repeat=PLANES)))  # plane 0 is the most significant bit, 1 is 1
    h = np.tanh(planes @ q) / np.sqrt(dim)                               # [tables][planes]
    logits = h @ corners.T / TAU
    e = np.exp(logits - logits.max(1, keepdims=True))
    prob = e / e.sum(1, keepdims=True)
    codes = (planes @ k.T >= 0).transpose(0, 2, 1) @ (1 << np.arange(PLANES)[::-1])  # [tables][positions]
    norm = np.sqrt((v ** 2).sum(1)).astype(np.float16).astype(np.float64)
    return norm * sum(prob[t][codes[t]] for t in range(TABLES)), codes


def labels(q, k):
    """Scores of a block's positions from some channels in 4 bits."""
    dim = len(q)
    n = min(dim, max(4, dim // 8))
    channels = sorted(sorted(range(dim), key=lambda d: (-np.abs(k[:, d]).sum(), d))[:n])
    x = k[:, channels]
    least = np.float16(x.min(1)).astype(np.float64)
    scale = np.float16((x.max(1) - least) / 15).astype(np.float64)
    code = np.clip(np.floor((x - least[:, None]) / scale[:, None] + .5), 0, 15)
    return (code * scale[:, None] + least[:, None]) @ q[channels], channels


def main():
    for dim in (16, 80):
        ks = [draw(1, 5, b, (J, 64, dim)) for b in range(BLOCKS)]
        vs = [draw(3, 5, b, (J, 64, dim)) for b in range(BLOCKS)]
        qs = draw(2, 5, BLOCKS, (H, 64, dim))
        planes = np.array([[plane(t, p, dim) for p in range(PLANES)] for t in range(TABLES)])
        of = {"socket": lambda q, b, j: socket(planes, q, ks[b][j], vs[b][j])[0], "labels": lambda q, b, j: labels(q, ks[b][j])[0]}
        for name, score in of.items():
            chosen, scores = [], []
            for row, j in itertools.product((5, 40, 41, 63), range(J)):
                group = qs[j * H // J:(j + 1) * H // J, row]
                s = np.array([max(score(q, b, j).max() for q in group) for b in range(BLOCKS)])
                scores.append(s)
                for own in range(6, BLOCKS + 1):
                    picked = top(s, own, max(5, -(-(own + 1) * 2 // 5)))
                    if picked:
                        chosen.append((row, own, j, picked))
            numbers(f"golden_{name}_scores_{dim}", np.concatenate(scores))
            lists(f"golden_{name}_{dim}", chosen)
            print(f"{dim}: {len(chosen)} lists of {name}", file=sys.stderr)
        codes = socket(planes, qs[0, 0], ks[3][1], vs[3][1])[1]
        numbers(f"golden_socket_codes_{dim}", [float(c) for c in codes[:, 9]])
        numbers(f"golden_labels_channels_{dim}", [float(c) for c in labels(qs[0, 0], ks[3][1])[1]])


main()
