#!/usr/bin/env python3
"""
Writes blocks.bin: for each codec of CODECS in this order, a row of 768 elements in random bytes with finite scales, then what the `gguf`
package expands it to (float32).

    make_blocks.py     (gguf, numpy; any recent version)
"""
import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# where the halves lie in a block that must be finite numbers
CODECS = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ELEMENTS = 768

random = numpy.random.default_rng(5)
with open(pathlib.Path(__file__).parent / "blocks.bin", "wb") as out:
    for name, halves in CODECS.items():
        codec = GGMLQuantizationType[name]
        block, size = GGML_QUANT_SIZES[codec]
        rows = random.integers(0, 256, (ELEMENTS // block, size), dtype=numpy.uint8)
        for at in halves:
            rows[:, at : at + 2] = random.normal(0, 0.01, (len(rows), 1)).astype(numpy.float16).view(numpy.uint8)
        out.write(rows.tobytes())
        out.write(quants.dequantize(rows.reshape(1, -1), codec).astype("<f4").tobytes())
