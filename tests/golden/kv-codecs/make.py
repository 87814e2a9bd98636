#!/usr/bin/env python3
"""
Sealed blocks and attention over them, by an implementation in numpy that shares nothing with the kernels: codecs.bin is what tests/unit/kernels/test_kv_golden.c
reads. Run it again only when a codec's version changes:  python3 tests/golden/kv-codecs/make.py

A record, little endian: u32 codec (0 int8, 1 int4-rot, 2 fp8, 3 kivi4, 4 kivi2), u32 head_dim; keys, then values u16 bf16 [64][head_dim]; sealed keys, then values, as bytes; query
u16 bf16 [head_dim]; f32 m, l, and o [head_dim] of attention over the decoded block in float64, in the plain basis.
"""
import os
import struct

import numpy as np

BLOCK = 64


def bf16(x):
    """Nearest even, as the upper halves of float32."""
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def wide(h):
    return (h.astype(np.uint32) << 16).view(np.float32)


def hadamard(order):
    h = np.ones((1, 1))
    while len(h) < order:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(order)


def rotation(d):
    order = d & -d
    return np.kron(np.eye(d // order), hadamard(order))


def planes(values):
    return np.asarray(values, np.float16).tobytes()


def in_fours(codes):
    """[rows][columns] -> rows in fours beside one another: [rows/4][columns][4]"""
    r, c = codes.shape
    return codes.reshape(r // 4, 4, c).transpose(0, 2, 1).tobytes()


def int8_part(x, value):
    """x [64][d] -> (bytes, decoded [64][d])"""
    top = np.abs(x).max(1).astype(np.float32)
    scale = (top / np.float32(127)).astype(np.float16)
    scale = np.where(scale.astype(np.float32) * 127 < top, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float16)
    wide_scale = scale.astype(np.float32)
    inverse = np.where(wide_scale > 0, np.float32(1) / np.where(wide_scale > 0, wide_scale, 1), 0).astype(np.float32)
    codes = np.clip(np.rint(x.astype(np.float32) * inverse[:, None]), -127, 127).astype(np.int8)
    return in_fours(codes if value else codes.T) + planes(scale), codes * wide_scale[:, None].astype(np.float64)


def int4_part(x, value):
    """x [64][d] -> (bytes, decoded [64][d] in the rotated basis)"""
    d = x.shape[1]
    turned = butterflies(x.astype(np.float32))
    least = turned.min(1).astype(np.float16)
    low = least.astype(np.float32)
    scale = np.maximum((turned.max(1) - low) / np.float32(15), np.float32(0)).astype(np.float16)
    wide_scale = scale.astype(np.float32)
    inverse = np.where(wide_scale > 0, np.float32(1) / np.where(wide_scale > 0, wide_scale, 1), 0).astype(np.float32)
    codes = np.clip(np.floor((turned - low[:, None]) * inverse[:, None] + np.float32(0.5)), 0, 15).astype(np.uint8)
    rows = codes if value else codes.T
    half = len(rows) // 2
    packed = rows[:half] | rows[half:] << 4
    decoded = codes * wide_scale[:, None].astype(np.float64) + low[:, None].astype(np.float64)
    return in_fours(packed) + planes(scale) + planes(least), decoded


def pairs(x, value):
    """x [64][d] -> in the order of an open part's elements, [-1][2]: pairs of channels in keys, of positions in values."""
    m = x if value else x.T
    rows, columns = m.shape
    return m.reshape(rows // 2, 2, columns).transpose(0, 2, 1).reshape(-1, 2)


def unpaired(p, value, d):
    rows, columns = (BLOCK, d) if value else (d, BLOCK)
    m = p.reshape(rows // 2, columns, 2).transpose(0, 2, 1).reshape(rows, columns)
    return m if value else m.T


def kivi_part(bits):
    """Groups of 32 positions of a key's channel, or of 32 channels of a value: 2^bits numbers from the least one up."""
    def part(x, value):
        d, top = x.shape[1], 2**bits - 1
        groups = pairs(x.astype(np.float32), value).reshape(-1, 32, 2)
        least = groups.min(1).astype(np.float16)
        low = least.astype(np.float32)[:, None, :]
        scale = np.maximum((groups.max(1) - low[:, 0]) / np.float32(top), np.float32(0)).astype(np.float16)
        wide_scale = scale.astype(np.float32)[:, None, :]
        inverse = np.where(wide_scale > 0, np.float32(1) / np.where(wide_scale > 0, wide_scale, 1), 0).astype(np.float32)
        codes = np.clip(np.floor((groups - low) * inverse + np.float32(0.5)), 0, top).astype(np.uint8)
        runs = codes.reshape(-1, 8 // bits, 8 * bits)
        packed = sum(runs[:, i].astype(np.uint32) << bits * i for i in range(8 // bits)).astype(np.uint8)
        decoded = wide(bf16(codes * wide_scale + low)).astype(np.float64)
        return packed.tobytes() + planes(scale) + planes(least), unpaired(decoded.reshape(-1, 2), value, d)
    return part


E4M3 = np.array([(m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0**(e - 7)) for e in range(16) for m in range(8)][:127])


def fp8_part(x, value):
    """The nearest of E4M3's numbers (of two, the one with the even code), of the least power of two under which 448 is enough."""
    d, p = x.shape[1], pairs(x, value)
    exponent = int(np.ceil(np.log2(np.abs(p).max() / 448)))
    size = np.abs(p) / 2.0**exponent
    above = np.searchsorted(E4M3, size).clip(1, 126)
    below = above - 1
    far, near = E4M3[above] - size, size - E4M3[below]
    codes = np.where((far < near) | ((far == near) & (above % 2 == 0)), above, below)
    decoded = np.copysign(E4M3[codes] * 2.0**exponent, p)
    bytes_ = (codes | np.where(np.signbit(p), 128, 0)).astype(np.uint8).tobytes()
    return bytes_ + np.array([2.0**exponent] + [0] * 15, np.float32).tobytes(), unpaired(decoded, value, d)


def lossless_part(x, value):
    """Exponents as places in the sorted list of the 15 commonest (of equally common ones the lower); class 15: a byte of the list behind."""
    d = x.shape[1]
    bits = bf16(pairs(x, value)).reshape(-1)
    exponents = (bits >> 7) & 255
    found, counts = np.unique(exponents, return_counts=True)
    table = np.sort(found[np.lexsort((found, -counts))[:15]])
    known = np.isin(exponents, table)
    classes = np.where(known, np.searchsorted(table, exponents), 15).astype(np.uint8).reshape(-1, 2, 32)
    rest = ((bits >> 8) & 0x80 | bits & 0x7F).astype(np.uint8)
    tail = np.concatenate([np.pad(table, (0, 16 - len(table))), exponents[~known]]).astype(np.uint8).tobytes()
    room = -(-(96 * d + 2 * d) // 64) * 64 - 96 * d
    assert len(tail) <= room and (~known).any()
    return rest.tobytes() + (classes[:, 0] | classes[:, 1] << 4).tobytes() + tail.ljust(room, b"\0"), x.astype(np.float64)


CODECS = (int8_part, int4_part, fp8_part, kivi_part(4), kivi_part(2), lossless_part)
COMMON = 5  # codecs that are drawn from one stream of numbers


def butterflies(x):
    """x times the rotation, in float32 in the order that the codec states: nearest pairs first, then one product with 1/sqrt(order)."""
    d = x.shape[1]
    order, half = d & -d, 1
    x = x.copy()
    while half < order:
        y = x.reshape(-1, d // (2 * half), 2, half)
        a, b = y[:, :, 0].copy(), y[:, :, 1].copy()
        y[:, :, 0], y[:, :, 1] = a + b, a - b
        half *= 2
    return x * np.float32(np.float32(1) / np.sqrt(np.float32(order)))


def record(rng, codec, d):
    k, v = rng.normal(size=(BLOCK, d)), rng.normal(size=(BLOCK, d)) * 0.3
    k[:, 3] += 6
    v[7] *= 20
    k[11] = 0
    v[12] = 2
    if CODECS[codec] is lossless_part:  # so that some exponents are not among the commonest
        k[20] *= 2.0**-np.arange(d)
        v[20] *= 2.0**-np.arange(d)
    keys, values, query = bf16(k), bf16(v), bf16(rng.normal(size=d) * 1.5)
    part = CODECS[codec]
    k_bytes, k_decoded = part(wide(keys), False)
    v_bytes, v_decoded = part(wide(values), True)
    turn = rotation(d) if codec == 1 else np.eye(d)
    assert np.abs(butterflies(wide(keys)) - wide(keys) @ rotation(d)).max() < 1e-4
    s = (k_decoded @ turn) @ wide(query).astype(np.float64) / np.sqrt(d)
    p = np.exp(s - s.max())
    o = p @ (v_decoded @ turn)
    out = struct.pack("<II", codec, d) + keys.tobytes() + values.tobytes() + k_bytes + v_bytes + query.tobytes()
    return out + struct.pack("<ff", s.max(), p.sum()) + o.astype(np.float32).tobytes()


def main():
    rng = np.random.default_rng(20240611)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "codecs.bin")
    with open(path, "wb") as f:
        for codec in range(COMMON):
            for d in (32, 64, 80, 128) if codec < 2 else (32, 64, 96):
                f.write(record(rng, codec, d))
        for d in (16, 48):
            f.write(record(np.random.default_rng(d), CODECS.index(lossless_part), d))
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
