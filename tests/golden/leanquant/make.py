#!/usr/bin/env python3
"""Makes tests/golden/leanquant/layer.bin with numpy alone: a layer quantized as model/leanquant.h describes it, by another way.  make.py

U comes from inverting H and factoring the inverse; errors are spread in blocks of 32 inputs; k-means starts evenly spaced and assigns every weight to its nearest
centre. u32 n, rows; H [n][n] f64; weights of inputs in the grids' objective [n] f64; weights [rows][n] f32; for 4, 3, 2 bits, for each row: grid u16 bf16,
codes [n] u8, loss f64.
"""

import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
N, ROWS, BLOCK = 80, 6, 32


def bf16(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def wide(h):
    return (h.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def kmeans(x, weight, centres):
    before = np.inf
    for _ in range(100):
        near = np.abs(x[:, None] - centres[None]).argmin(1)
        old = centres.copy()
        for c in range(len(centres)):
            if weight[near == c].sum() > 0:
                centres[c] = (weight * x)[near == c].sum() / weight[near == c].sum()
        now = sum((weight * (x - centres[near]) ** 2)[near == c].sum() for c in range(len(centres)))
        if (old == centres).all() or before - now <= 1e-6 * now:
            return centres, now
        before = now
    return centres, before


def main():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, N // 2)) @ rng.standard_normal((N // 2, N)) / 6 + 0.3 * rng.standard_normal((500, N))
    x[:, 5::20] *= 8
    h = 2 * x.T @ x / len(x)
    damped = h + 0.1 * np.diag(h).mean() * np.eye(N)
    order = np.argsort(-np.diag(h), kind="stable")
    u = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    assert np.allclose(u.T @ u @ damped[np.ix_(order, order)], np.eye(N), atol=1e-9)
    weight = (np.diag(u) / np.diag(u).min()) ** -4.0

    rows = (0.05 * rng.standard_normal((ROWS, N))).astype(np.float32)
    by_input = np.empty(N)
    by_input[order] = weight
    with open(os.path.join(HERE, "layer.bin"), "wb") as f:
        f.write(np.array([N, ROWS], np.uint32).tobytes() + h.tobytes() + by_input.tobytes() + rows.tobytes())
        for bits in (4, 3, 2):
            for row in rows:
                p = row.astype(np.float64)
                stored = bf16(kmeans(p, by_input, np.linspace(p.min(), p.max(), 1 << bits))[0])
                grid, left = wide(stored), row.astype(np.float64)[order]
                codes, loss = np.zeros(N, np.uint8), 0.0
                for at in range(0, N, BLOCK):
                    end = min(at + BLOCK, N)
                    errors = np.zeros(end - at)
                    for i in range(at, end):
                        c = np.abs(grid - left[i]).argmin()
                        codes[order[i]] = c
                        errors[i - at] = (left[i] - grid[c]) / u[i, i]
                        left[i:end] -= errors[i - at] * u[i, i:end]
                        loss += errors[i - at] ** 2 / 2
                    left[end:] -= errors @ u[at:end, end:]
                f.write(stored.tobytes() + codes.tobytes() + np.float64(loss).tobytes())


main()
