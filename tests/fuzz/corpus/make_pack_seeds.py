#!/usr/bin/env python3
"""Makes tests/fuzz/corpus/pack: small packs, as fuzz_pack.c wants them.  make_pack_seeds.py PATH-OF-LONGSPAN"""

import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPE = "layers=1,d=16,heads=1,kv=1,head_dim=16,ff=16,vocab=256,positions=64"
SEEDS = {"bf16": ("bf16", "random:" + SHAPE), "lossless": ("lossless-fast", "random:" + SHAPE + ",qkv_bias=1,qk_norm=1"),
         "df11": ("df11", "random:" + SHAPE.replace("d=16", "d=32")), "grids": ("as-is", "random:" + SHAPE + ",codec=leanquant-3"),
         "as_is": ("as-is", "random:" + SHAPE.replace("16", "32") + ",codec=q4_1,tied=1")}

os.makedirs(os.path.join(HERE, "pack"), exist_ok=True)
for name, (weights, model) in SEEDS.items():
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, "made")
        subprocess.run([sys.argv[1], "pack", "--model", model, "--weights", weights, "--out", out, "--json"], check=True,
                       stdout=subprocess.DEVNULL)
        header, vocabulary, tensors = (open(os.path.join(out, f), "rb").read()
                                       for f in ("pack.json", "vocabulary.bin", "weights.bin"))
    with open(os.path.join(HERE, "pack", name), "wb") as f:
        f.write(struct.pack("<II", len(header), len(vocabulary)) + header + vocabulary + tensors)
