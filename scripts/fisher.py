#!/usr/bin/env python3
"""
Fisher weights for `longspan calibrate --weights FILE`: how much the loss of a model feels an error of each key (before RoPE) and value. Needs PyTorch and
transformers (and gguf for GGUF files).

  python3 scripts/fisher.py --model DIR --digest DIGEST --text FILE --out FILE [--tokens 16384] [--sequence 1024]

DIGEST is the model's, as `longspan model --json` prints it. Of each sequence the next-token losses are summed and go through one backward
pass; the weight of 4 channels at a token is the sum of their gradients' squares (Coupled Quantization, arXiv:2405.03917: the trace of the diagonal Fisher
block). Written as model/calibration.h says: tokens i32 [sequences][length], keys and values bf16 [layers][KV heads][head_dim / 4][tokens].
"""
import argparse
import hashlib
import json
import os
import struct

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

UNIT = 4


def load(path):
    directory, name = (path, None) if os.path.isdir(path) else os.path.split(path)
    if os.path.isdir(path):
        name = next((n for n in sorted(os.listdir(path)) if n.endswith(".gguf")), None)
    more = {"gguf_file": name} if name else {}
    tokenizer = AutoTokenizer.from_pretrained(directory, **more)
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32, attn_implementation="sdpa", **more)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return tokenizer, model.eval()


def watch(model, kept):
    """Keeps what keys before RoPE and values are made of, by layer: kept[part][layer]."""
    def keeper(part, layer):
        def hook(module, inputs, output):
            output = output.detach().requires_grad_() if not output.requires_grad else output
            output.retain_grad()
            kept[part][layer] = output
            return output
        return hook
    for i, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        (getattr(attention, "k_norm", None) or attention.k_proj).register_forward_hook(keeper(0, i))
        attention.v_proj.register_forward_hook(keeper(1, i))


def squares(output, heads, dim):
    """[layers of one sequence] gradient -> [heads][dim / UNIT][tokens]"""
    g = output.grad.reshape(-1, heads, dim // UNIT, UNIT)
    return g.pow(2).sum(-1).permute(1, 2, 0)


def bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def write(path, origin, arrays):
    described, body = [], b""
    for name, kind, data in arrays:
        described.append({"name": name, "type": kind, "shape": list(data.shape)})
    header = json.dumps({**origin, "arrays": described}, separators=(",", ":")).encode()
    at = 32 + len(header)
    for _, _, data in arrays:
        body += bytes(-(at + len(body)) % 64) + data.tobytes()
    digest = hashlib.sha256(header + body).digest()[:16]
    with open(path + ".tmp", "wb") as f:
        f.write(b"LSCALIB\n" + struct.pack("<II", 1, len(header)) + digest + header + body)
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "digest", "text", "out"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--sequence", type=int, default=1024)
    args = parser.parse_args()
    tokenizer, model = load(args.model)
    config = model.config
    heads, dim = config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    with open(args.text, errors="replace") as f:
        ids = np.array(tokenizer(f.read(), add_special_tokens=False)["input_ids"], np.int32)
    n = min(-(-args.tokens // args.sequence), len(ids) // args.sequence)
    apart = (len(ids) - args.sequence) // (n - 1) if n > 1 else 0
    tokens = np.stack([ids[i * apart:i * apart + args.sequence] for i in range(n)])
    kept = [[None] * config.num_hidden_layers for _ in range(2)]
    watch(model, kept)
    weights = [[], []]
    for i, row in enumerate(tokens):
        batch = torch.from_numpy(row.astype(np.int64))[None]
        with torch.enable_grad():
            logits = model(batch, use_cache=False).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits.float(), batch[0, 1:], reduction="sum").backward()
        for part in range(2):
            weights[part].append(torch.stack([squares(o, heads, dim) for o in kept[part]]).numpy())
        print(f"sequence {i + 1} of {n}", flush=True)
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()[:32]
    origin = {"codec": "weights", "method": "fisher", "model": args.digest, "text": digest, "weights": "", "tokens": int(tokens.size),
              "sequence": args.sequence, "seed": 0}
    arrays = [("tokens", "i32", tokens)]
    arrays += [(name, "bf16", bf16(np.concatenate(w, 3))) for name, w in zip(("keys", "values"), weights)]
    write(args.out, origin, arrays)
    print(args.out, os.path.getsize(args.out), "bytes")


if __name__ == "__main__":
    main()
