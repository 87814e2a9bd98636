#!/usr/bin/env python3
"""
Tiny GPTQ and AWQ checkpoints, packed here as AutoGPTQ and AutoAWQ publish them, and what transformers says of their dequantized weights in float32
-> tests/integration/test_quantized.py.

    shared.safetensors    embedding and norms in float16
    <case>.safetensors    qweight, qzeros, scales and g_idx of every matrix
    quantized.json        the prompt, the rows, and of each case its name and config.json
    logits.bin            of each case, float32 [rows][256]

Needs numpy, torch, transformers, safetensors. Packing goes value by value through Python's integers; longspan reads words.
"""
import json
import math
import os
import random
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = [0, 31, 64, 99]
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 256, "hidden_act": "silu", "tie_word_embeddings": True,
         "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16"}


def gptq(bits, group, desc_act=False, sym=False, fmt="gptq"):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": desc_act, "sym": sym, "true_sequential": True, "damp_percent": 0.01,
            "checkpoint_format": fmt, "lm_head": False, "static_groups": False, "meta": {"quantizer": "none"}}


# rounded: longspan holds such matrices in float16
CASES = [
    ("gptq-4", gptq(4, 32), False),
    ("gptq-4-sym-row", gptq(4, -1, sym=True), False),
    ("gptq-4-desc-act", gptq(4, 16, desc_act=True), True),
    ("gptq-3-v2", gptq(3, 32, fmt="gptq_v2"), False),
    ("gptq-2", gptq(2, 64), False),
    ("gptq-8-sym", gptq(8, 32, sym=True), False),
    ("gptq-8", gptq(8, 32), True),
    ("awq-4", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}, False),
]


def bit_words(values, bits):
    """Values one after the other, lowest bits first, as int32 words."""
    whole = sum(int(v) << (i * bits) for i, v in enumerate(values))
    return np.frombuffer(whole.to_bytes(len(values) * bits // 8, "little"), np.int32)


def awq_words(values):
    """Eight values a word, in the order 0 2 4 6 1 3 5 7."""
    words = []
    for at in range(0, len(values), 8):
        words.append(sum(int(values[at + column]) << (4 * i) for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7))))
    return np.array(words, np.uint32).view(np.int32)


def quantize(w, c, draw):
    """w [out][in] -> tensors and the dequantized weight in float64."""
    out, n_in = w.shape
    bits, top = c["bits"], 2 ** c["bits"] - 1
    size = c["group_size"] if c["group_size"] > 0 else n_in
    groups = -(-n_in // size)
    of = np.arange(n_in) // size
    if c.get("desc_act"):
        of = of[draw.permutation(n_in)]
    scales, zeros = np.zeros((groups, out), np.float16), np.zeros((groups, out), np.int64)
    q = np.zeros((out, n_in), np.int64)
    for g in range(groups):
        part = w[:, of == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if c.get("sym"):
            high = np.maximum(high, -low)
            low = -high
        scales[g] = np.maximum((high - low) / top, 1e-5)
        s = scales[g].astype(np.float64)
        zeros[g] = (top + 1) // 2 if c.get("sym") else np.clip(np.round(-low / s), 0, top)
        q[:, of == g] = np.clip(np.round(part / s[:, None]) + zeros[g][:, None], 0, top)
    wide = (q - zeros[of].T) * scales.astype(np.float64)[of].T
    if c["quant_method"] == "awq":
        return {"qweight": np.stack([awq_words(column) for column in q.T]), "qzeros": np.stack([awq_words(z) for z in zeros]), "scales": scales}, wide
    stored = zeros if c["checkpoint_format"] == "gptq_v2" else (zeros - 1) % (top + 1)
    return {"qweight": np.stack([bit_words(row, bits) for row in q], 1), "qzeros": np.stack([bit_words(z, bits) for z in stored]), "scales": scales,
            "g_idx": of.astype(np.int32)}, wide


def build():
    with tempfile.TemporaryDirectory() as directory:
        with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as out:
            json.dump(LLAMA, out)
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(directory), attn_implementation="eager").float().eval()


def main():
    text, draw = random.Random(5), np.random.default_rng(6)
    prompt = "".join(text.choice("etaoin shrdlu,.") for _ in range(100))
    model = build()
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    drawn = {k: draw.standard_normal(v.shape) for k, v in state.items()}
    shared = {k: torch.tensor(1 + 0.3 * x if x.ndim == 1 else x, dtype=torch.float16) for k, x in drawn.items() if "_proj" not in k}
    save_file(shared, os.path.join(HERE, "shared.safetensors"), metadata={"format": "pt"})
    logits = []
    for name, config, rounded in CASES:
        stored, dense = {}, {k: v.float() for k, v in shared.items()}
        for key, x in drawn.items():
            if "_proj" not in key:
                continue
            parts, wide = quantize(x * (1.5 if ".q_" in key or ".k_" in key else 1) / math.sqrt(x.shape[1]), config, draw)
            stem = key[: -len("weight")]
            stored.update({stem + part: torch.from_numpy(np.ascontiguousarray(v)) for part, v in parts.items()})
            if config["quant_method"] == "gptq" and ".o_" in key:  # as AutoGPTQ writes for models without biases
                stored[stem + "bias"] = torch.zeros(x.shape[0], dtype=torch.float16)
            dense[key] = torch.tensor(wide.astype(np.float16) if rounded else wide, dtype=torch.float32)
        save_file(stored, os.path.join(HERE, name + ".safetensors"), metadata={"format": "pt"})
        model.load_state_dict(dense, strict=False)
        model.tie_weights()
        with torch.no_grad():
            logits.append(model(torch.tensor([list(prompt.encode())])).logits[0, ROWS].numpy())
    with open(os.path.join(HERE, "logits.bin"), "wb") as out:
        out.write(np.stack(logits).astype(np.float32).tobytes())
    with open(os.path.join(HERE, "quantized.json"), "w", encoding="utf-8") as out:
        json.dump({"prompt": prompt, "rows": ROWS, "cases": [{"name": name, "config": {**LLAMA, "quantization_config": c}} for name, c, _ in CASES]},
                  out, indent=1)
        out.write("\n")


main()
