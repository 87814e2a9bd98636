#!/usr/bin/env python3
"""nomad (kernels/cpu/kv_nomad.h) in numpy, independent of the C code: writes nomad.bin.

A record, little endian: u32 head_dim; f32 numbers [d][16]; bf16 keys [64][d], values [64][d]; the sealed block; bf16 query [d]; f32 1/a, a b; u8 tables [d][16];
f32 m, l, o [d] of attention over the tables' integers, scale 1/sqrt(d).
"""
import os
import struct

import numpy as np

from make import BLOCK, bf16, int8_part, wide

F = np.float32


def book(numbers):
    numbers = np.sort(numbers.astype(F), axis=1)
    return numbers, F(0.5) * numbers[:, :-1] + F(0.5) * numbers[:, 1:]


def codes_of(keys, bounds):
    """[64][d]: how many bounds a key is above."""
    return (keys[:, :, None] > bounds[None]).sum(2).astype(np.uint8)


def packed(codes):
    """[64][d] -> [d/4][2 halves of the block][16 places][4 channels], positions 16 apart in one byte."""
    d = codes.shape[1]
    c = codes.reshape(2, 2, 16, d // 4, 4)
    return (c[:, 0] | c[:, 1] << 4).transpose(2, 0, 1, 3).tobytes()


def tables(query, numbers):
    products = query[:, None] * numbers
    least, most = products.min(1), products.max(1)
    total = spans = F(0)
    for low, span in zip(least, most - least):
        total, spans = F(total + low), F(spans + span)
    a = min(F(255) / (most - least).max(), F(65535) / spans)
    u = np.minimum(np.floor((products - least[:, None]) * a + F(0.5)), 255).astype(np.uint8)
    return F(1) / a, F(a * total), u


def record(rng, d):
    numbers, bounds = book(rng.normal(size=(d, 16)) * rng.uniform(0.5, 4, size=(d, 1)))
    keys, values = bf16(rng.normal(size=(BLOCK, d)) * 2), bf16(rng.normal(size=(BLOCK, d)) * 0.3)
    query = bf16(rng.normal(size=d))
    codes = codes_of(wide(keys).astype(F), bounds)
    v_bytes, v_decoded = int8_part(wide(values), True)
    unit, base, u = tables(wide(query).astype(F), numbers)
    acc = u[np.arange(d)[None], codes].astype(np.int64).sum(1)
    s = (acc + float(base)) * float(unit) / np.sqrt(d)
    p = np.exp(s - s.max())
    out = struct.pack("<I", d) + numbers.tobytes() + keys.tobytes() + values.tobytes() + packed(codes) + v_bytes
    out += query.tobytes() + struct.pack("<ff", unit, base) + u.tobytes()
    return out + struct.pack("<ff", s.max(), p.sum()) + (p @ v_decoded).astype(F).tobytes()


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nomad.bin")
    with open(path, "wb") as f:
        for d in (16, 48, 64):
            f.write(record(np.random.default_rng(d), d))
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
