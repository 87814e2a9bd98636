#!/usr/bin/env python3
"""Makes tests/golden/df11/*.bin with numpy alone: bf16 weights coded by an implementation of model/df11.h's description that shares nothing with it.  make.py

The best code of at most 11 bits comes from a search over how many codes end at each length (Golin and Rote), not from package-merge. A file: u32 rows, cols, bytes of
the stream, bits of it without the groups' last bytes being filled; code lengths [256] u8; weights [rows][cols] u16; signs [groups][blocks][512] u8; offsets
[groups][tiles] u32; starts [groups + 1] u64; the stream.
"""

import functools
import os

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
BITS = 11


def bf16(x):
    u = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def best_lengths(counts):
    symbols = sorted((s for s in range(256) if counts[s]), key=lambda s: -counts[s])
    w = [int(counts[s]) for s in symbols]
    n = len(w)
    if n == 1:
        return {symbols[0]: 1}
    left = [sum(w[i:]) for i in range(n + 1)]

    @functools.lru_cache(None)
    def best(level, placed, nodes):
        """Cheapest way to place the symbols from `placed` on, with `nodes` places open at this length: cost, and how many end here."""
        if placed == n:
            return (0, 0)
        if level == BITS:
            return (0, n - placed) if nodes >= n - placed else (float("inf"), 0)
        found = (float("inf"), 0)
        for ends in range(min(nodes, n - placed) + 1):
            inner = min(2 * (nodes - ends), n - placed - ends)
            if inner == 0 and placed + ends < n:
                continue
            found = min(found, (left[placed + ends] + best(level + 1, placed + ends, inner)[0], ends))
        return found

    lengths, placed, nodes, level = {}, 0, 2, 1
    while placed < n:
        ends = best(level, placed, nodes)[1]
        for s in symbols[placed : placed + ends]:
            lengths[s] = level
        placed += ends
        nodes = min(2 * (nodes - ends), n - placed)
        level += 1
    return lengths


def canonical(lengths):
    codes, code, before = {}, 0, 0
    for length, s in sorted((length, s) for s, length in lengths.items()):
        code <<= length - before
        codes[s] = format(code, f"0{length}b")
        code, before = code + 1, length
    return codes


def encode(name, w):
    rows, cols = w.shape
    groups, blocks = -(-rows // 16), -(-cols // 32)
    e = w >> 7 & 255
    lengths = best_lengths(np.bincount(e.ravel(), minlength=256))
    codes = canonical(lengths)
    first = min(lengths, key=lambda s: (lengths[s], s))
    padded = np.full((groups * 16, blocks * 32), first << 7, np.uint16)
    padded[:rows, :cols] = w
    # group, output, block, row, parity -> group, block, row, output, parity
    order = padded.reshape(groups, 16, blocks, 16, 2).transpose(0, 2, 3, 1, 4).reshape(groups, blocks * 512)
    signs = (order >> 15 << 7 | order & 127).astype(np.uint8)
    offsets, starts, stream, total = [], [0], b"", 0
    for g in range(groups):
        text, at = [], 0
        for i, s in enumerate(order[g] >> 7 & 255):
            if i % 2048 == 0:
                offsets.append(at)
            text.append(codes[int(s)])
            at += len(codes[int(s)])
        bits = np.array(list("".join(text)), np.uint8)
        stream += np.packbits(bits, bitorder="little").tobytes()
        total += at
        starts.append(len(stream))
    table = np.array([lengths.get(s, 0) for s in range(256)], np.uint8)
    with open(os.path.join(HERE, name + ".bin"), "wb") as f:
        f.write(np.array([rows, cols, len(stream), total], np.uint32).tobytes() + table.tobytes() + w.astype(np.uint16).tobytes() + signs.tobytes())
        f.write(np.array(offsets, np.uint32).tobytes() + np.array(starts, np.uint64).tobytes() + stream)


def main():
    rng = np.random.default_rng(11)
    encode("normal", bf16(rng.standard_normal((40, 300)) * 0.02))
    # scales that halve from row to row: more exponents than 11 bits would hold without the limit
    skewed = rng.standard_normal((19, 130)) * np.exp2(-1.5 * np.arange(19))[:, None]
    skewed[:, :100] = rng.uniform(1, 2, (19, 100))
    encode("skewed", bf16(skewed))
    encode("constant", np.full((3, 5), 0xBF80, np.uint16))
    patterns = (np.arange(17 * 64) * 61 % 65536).astype(np.uint16).reshape(17, 64)
    patterns[0, :6] = [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x0001]
    encode("patterns", patterns)


if __name__ == "__main__":
    main()
