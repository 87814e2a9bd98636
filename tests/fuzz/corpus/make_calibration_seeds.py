#!/usr/bin/env python3
"""Makes tests/fuzz/corpus/calibration: small calibrations.  Their digests are zeros: fuzz_calibration.c makes them fit."""

import json
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calibration")
KINDS = {"f32": ("f32", 4, [2, 3]), "bf16": ("bf16", 2, [1, 1, 2, 16, 4]), "u8": ("u8", 1, [70])}

os.makedirs(HERE, exist_ok=True)
for name, (kind, size, shape) in KINDS.items():
    count = 1
    for n in shape:
        count *= n
    arrays = [{"name": "keys", "type": kind, "shape": shape}, {"name": "values", "type": kind, "shape": shape}]
    header = json.dumps({"codec": "cq-2b", "method": "kmeans", "model": "0" * 32, "text": "1" * 32, "weights": "", "tokens": 64,
                         "sequence": 64, "seed": 1, "arrays": arrays}).encode()
    file = b"LSCALIB\n" + struct.pack("<II", 1, len(header)) + bytes(16) + header
    for i in range(2):
        file += bytes(-len(file) % 64) + bytes((7 * j + i) % 64 for j in range(count * size))
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(file)
