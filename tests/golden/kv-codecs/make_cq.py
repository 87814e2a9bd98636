#!/usr/bin/env python3
"""
Blocks coded by cq-2b and cq-1b, and attention over them, by an implementation in numpy that shares nothing with the kernels: cq.bin is what
tests/unit/kernels/test_kv_cq.c reads. Run it again only when a codec's version changes:  python3 tests/golden/kv-codecs/make_cq.py

A record, little endian: u32 channels that are coded together (4: cq-2b, 8: cq-1b), head_dim, number of the block in its sequence; f32 what cos and sin of RoPE
are multiplied by; centroids of keys, then of values u16 bf16 [head_dim / channels][256][channels]; keys after RoPE, then values u16 bf16 [64][head_dim];
codes of keys, then of values u8 [head_dim / channels][64]; query u16 bf16 [head_dim]; f32 m, l, and o [head_dim] of attention over the decoded block in
float64. RoPE: channel i and i + head_dim / 2 by 10000^(-2 i / head_dim) radians a position.
"""
import os
import struct

import numpy as np

BLOCK = 64


def bf16(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def wide(h):
    return (h.astype(np.uint32) << 16).view(np.float32)


def turn(x, block, scale, back=False):
    """x [64][d] turned by its positions, in float64."""
    half = x.shape[1] // 2
    angle = (block * BLOCK + np.arange(BLOCK))[:, None] * 10000.0 ** (-np.arange(half) / half)
    c, s = np.cos(angle), np.sin(angle) * (-1 if back else 1)
    low, high = x[:, :half].astype(np.float64), x[:, half:].astype(np.float64)
    return np.concatenate([low * c - high * s, high * c + low * s], 1) * (1 / scale if back else scale)


def code(x, centroids):
    """x [64][d], centroids [groups][256][c] -> codes [groups][64]: the nearest, by squared distance in float64. None is a near tie."""
    groups, _, c = centroids.shape
    out = np.zeros((groups, BLOCK), np.uint8)
    for g in range(groups):
        d = ((x[:, None, g * c:(g + 1) * c].astype(np.float64) - centroids[g][None].astype(np.float64)) ** 2).sum(2)
        best = np.sort(d, 1)
        assert (best[:, 1] > best[:, 0] * (1 + 1e-5)).all()
        out[g] = d.argmin(1)
    return out


def decode(codes, centroids):
    return np.concatenate([centroids[g][codes[g]] for g in range(len(centroids))], 1).astype(np.float64)


def record(rng, channels, d, block, scale):
    books = [bf16(rng.normal(size=(d // channels, 256, channels)) * size) for size in (1.0, 0.3)]
    plain = rng.normal(size=(BLOCK, d))
    keys, values = bf16(turn(plain, block, scale)), bf16(rng.normal(size=(BLOCK, d)) * 0.3)
    query = bf16(rng.normal(size=d))
    k_codes = code(turn(wide(keys), block, scale, back=True), wide(books[0]))
    v_codes = code(wide(values), wide(books[1]))
    k = turn(decode(k_codes, wide(books[0])), block, scale)
    v = decode(v_codes, wide(books[1]))
    s = k @ wide(query).astype(np.float64) / np.sqrt(d)
    p = np.exp(s - s.max())
    out = struct.pack("<IIIf", channels, d, block, scale) + b"".join(b.tobytes() for b in books)
    out += keys.tobytes() + values.tobytes() + k_codes.tobytes() + v_codes.tobytes() + query.tobytes()
    return out + struct.pack("<ff", s.max(), p.sum()) + (p @ v).astype(np.float32).tobytes()


def main():
    rng = np.random.default_rng(20240503)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cq.bin")
    with open(path, "wb") as f:
        for channels, d, block, scale in ((4, 64, 3, 1.0), (8, 64, 1000, 1.0), (4, 16, 0, 1.25), (8, 32, 7, 1.0)):
            f.write(record(rng, channels, d, block, scale))
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
