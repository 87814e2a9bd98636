#!/usr/bin/env python3
"""
Golden values of the selectors, from an implementation of its own in numpy float64: keys and queries are drawn by a formula that the test repeats, blocks
are scored and chosen here, and the sketches, scores and lists are written to selectors.inc. Lists are only written where the last chosen and the first
left out differ by more than float32 and bfloat16 could undo.

    python3 make_selectors.py > selectors.inc
"""
import sys

import numpy as np

M = (1 << 64) - 1
SEED = 0x534B4554434836


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & M
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M
    return x ^ (x >> 31)


def rng_at(seed, a, b):
    return mix64(mix64(mix64(seed) ^ a) ^ b)


def bf16(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16) & 0xFFFFFFFF).astype(np.uint32).view(np.float32).astype(np.float64)


def draw(kind, layer, block, shape):
    """Each number uniform in +-1 by itself, with an offset in +-2 that its block and channel share; in bfloat16."""
    heads, positions, dim = shape
    out = np.zeros(shape)
    for h in range(heads):
        for d in range(dim):
            shift = ((rng_at(kind + 100, layer * 4096 + block, d) >> 40) / 2 ** 24 - .5) * 4
            for p in range(positions):
                own = ((rng_at(kind, layer * 4096 + block, (h * positions + p) * dim + d) >> 40) / 2 ** 24 - .5) * 2
                out[h, p, d] = shift + own
    return bf16(out.astype(np.float32))


def hadamard(n):
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


def srht(x):
    n = 1 << (len(x) - 1).bit_length()
    r = min(n, 64)
    signs = np.array([-1. if rng_at(SEED, 0, i) >> 63 else 1. for i in range(n)])
    order = list(range(n))
    for i in range(r):
        j = i + rng_at(SEED, 1, i) % (n - i)
        order[i], order[j] = order[j], order[i]
    at = sorted(order[:r])
    padded = np.zeros(n)
    padded[:len(x)] = x
    # orthonormal transform, then sampled and scaled so that products are unbiased
    return (hadamard(n) / np.sqrt(n) @ (signs * padded))[at] * np.sqrt(n / r)


def top(scores, own, budget):
    """Blocks of a row of block own, budget of them in all; None if the choice hangs on rounding."""
    forced = {0, own - 2, own - 1, own}
    order = sorted((c for c in range(own) if c not in forced), key=lambda c: -scores[c])
    n = budget - 4
    if n and n < len(order):
        a, b = scores[order[n - 1]], scores[order[n]]
        if abs(a - b) <= .02 * max(abs(a), abs(b)):
            return None
    return sorted(forced | set(order[:n]))


def numbers(name, values):
    print(f"static const float {name}[] = {{")
    values = list(values)
    for i in range(0, len(values), 8):
        print("    " + " ".join(f"{v:.9g}f," if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.f," for v in values[i:i + 8]))
    print("};")


def lists(name, chosen):
    print(f"static const struct golden_list {name}[] = {{")
    for layer, own, head, blocks in chosen:
        bits = sum(1 << c for c in blocks)
        print(f"    {{ {layer}, {own}, {head}, 0x{bits:x} }},")
    print("};")


H, J, BLOCKS, LAYERS, B = 4, 2, 40, 3, 64


def main():
    for dim in (16, 80):
        ks = [[draw(1, l, b, (J, B, dim)) for b in range(BLOCKS)] for l in range(LAYERS)]
        qs = [[draw(2, l, b, (H, B, dim)) for b in range(BLOCKS)] for l in range(LAYERS)]

        # sketch-walk
        kt = [[srht(k.mean(0).mean(0)) for k in layer] for layer in ks]
        qt = [[srht(q.mean(0).mean(0)) for q in layer] for layer in qs]
        numbers(f"golden_walk_sketch_{dim}", np.concatenate([qt[1][7], kt[1][7]]))
        ws = []
        for l in range(LAYERS):
            w = np.zeros((BLOCKS, BLOCKS))
            for i in range(BLOCKS):
                a = np.array([qt[l][i] @ kt[l][j] for j in range(i + 1)]) / np.sqrt(dim)
                p = np.exp(a - a.max())
                w[i, :i + 1] = bf16(((p / p.sum()) ** 8).astype(np.float32))
            ws.append(w)
        chosen = []
        for own in range(4, BLOCKS):
            r = ws[0][own - 1, :own]
            for l in range(LAYERS):
                if l:
                    r = (r / r.max()) @ ws[l][:own, :own]
                picked = top(r, own, max(4, -(-(own + 1) * 3 // 10)))
                if picked:
                    chosen.append((l, own, 0, picked))
        lists(f"golden_walk_{dim}", chosen)
        print(f"{dim}: {len(chosen)} walk lists of {LAYERS * (BLOCKS - 4)}", file=sys.stderr)

        # quest: the row at position 5 of block own
        chosen, scores = [], []
        for own in range(4, BLOCKS):
            for j in range(J):
                q = qs[2][own][j * H // J:(j + 1) * H // J, 5]
                s = np.array([max(np.maximum(x * k[j].min(0), x * k[j].max(0)).sum() for x in q) for k in ks[2][:own]])
                if own == BLOCKS - 1 and j == 1:
                    scores = s
                picked = top(s, own, max(4, -(-(own + 1) * 3 // 10)))
                if picked:
                    chosen.append((2, own, j, picked))
        numbers(f"golden_quest_scores_{dim}", scores)
        lists(f"golden_quest_{dim}", chosen)
        print(f"{dim}: {len(chosen)} quest lists of {J * (BLOCKS - 4)}", file=sys.stderr)


if __name__ == "__main__":
    main()
