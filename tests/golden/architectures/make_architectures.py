#!/usr/bin/env python3
"""
Small random models of each architecture and RoPE scaling, and what transformers says of them in float32 -> tests/integration/test_architectures.py.

    llama.safetensors, qwen2.safetensors, qwen3.safetensors
                          weights in bfloat16; cases share them
    architectures.json    the prompt, the rows, and of each case its name, weights and config.json as its family spells it
    logits.bin            of each case, float32 [rows][256]

Needs torch, transformers, safetensors. Logits of a scaled case must differ from those of the same weights without scaling, or the test would not see it.
"""
import json
import math
import os
import random
import shutil
import tempfile

import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZER = os.path.join(HERE, "../spec/toy/tokenizer.json")
VOCABULARY, LENGTH, ORIGINAL = 256, 600, 160
ROWS = [0, 63, 159, 160, 255, 256, 319, 400, 511, 512, 599]

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, "hidden_act": "silu", "tie_word_embeddings": False, "max_position_embeddings": 640,
         "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
QWEN2 = {**LLAMA, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True,
         "rms_norm_eps": 1e-6, "rope_theta": 1e4, "use_sliding_window": False, "sliding_window": 512, "max_window_layers": 2}
QWEN3 = {**QWEN2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
         "attention_bias": False}


def of(kind, base, **more):
    return {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), **base, **more}


CASES = [
    ("llama2", "llama", of("Llama", LLAMA, pretraining_tp=1, rope_scaling=None)),
    ("llama-linear", "llama", of("Llama", LLAMA, rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.5})),
    ("llama-llama3", "llama", of("Llama", LLAMA, rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL})),
    ("llama-yarn", "llama", of("Llama", LLAMA, rope_theta=1e4, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL})),
    ("llama-yarn-mscale", "llama", of("Llama", LLAMA, rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL, "mscale": 1.0, "mscale_all_dim": 0.5,
        "truncate": False})),
    ("mistral", "llama", of("Mistral", LLAMA, rope_theta=1e6, sliding_window=None, head_dim=None)),
    ("qwen2", "qwen2", of("Qwen2", QWEN2)),
    ("qwen2-yarn", "qwen2", of("Qwen2", {**QWEN2, "max_position_embeddings": ORIGINAL}, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL})),
    ("qwen3", "qwen3", of("Qwen3", QWEN3, rope_scaling=None)),
    ("qwen3-yarn", "qwen3", of("Qwen3", QWEN3, rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": ORIGINAL, "attention_factor": 1.3,
        "beta_fast": 8.0, "beta_slow": 0.5})),
]


def weights(name, seed):
    """Every tensor of the first case with these weights, drawn; spread so that attention is neither flat nor on one position."""
    config = next(config for _, which, config in CASES if which == name)
    with tempfile.TemporaryDirectory() as directory:
        model = build(directory, config)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, x in model.state_dict().items():
        r = torch.randn(x.shape, generator=draw)
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if key.endswith("norm.weight"):
            r = 1 + 0.3 * r
        elif key.endswith(".bias"):
            r = 0.5 * r
        elif key.endswith(("q_proj.weight", "k_proj.weight")):
            r = 1.5 * r / math.sqrt(x.shape[1])
        elif not key.startswith("model.embed"):
            r = r / math.sqrt(x.shape[1])
        tensors[key] = r.to(torch.bfloat16)
    save_file(tensors, os.path.join(HERE, name + ".safetensors"), metadata={"format": "pt"})


def build(directory, config):
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as out:
        json.dump(config, out)
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(directory))


def logits(config, name, tokens):
    with tempfile.TemporaryDirectory() as directory:
        build(directory, config)
        shutil.copy(os.path.join(HERE, name + ".safetensors"), os.path.join(directory, "model.safetensors"))
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0, ROWS]


def main():
    text = random.Random(3)
    prompt = "".join(text.choice("etaoin shrdlu,.") for _ in range(LENGTH))
    for seed, name in enumerate(("llama", "qwen2", "qwen3")):
        weights(name, 100 + seed)
    with open(os.path.join(HERE, "logits.bin"), "wb") as out:
        for name, which, config in CASES:
            got = logits(config, which, list(prompt.encode()))
            out.write(got.numpy().tobytes())
            scaling = config.get("rope_scaling") or config.get("rope_parameters")
            if scaling:
                plain = {k: v for k, v in config.items() if k not in ("rope_scaling", "rope_parameters")}
                other = logits({**plain, "rope_theta": 1e4}, which, list(prompt.encode()))
                far = ((got - other).norm(dim=1) / other.norm(dim=1))[ROWS.index(256):]
                print(f"{name}: {far.median():.3f} from no scaling")
                assert far.median() > 0.05
    with open(os.path.join(HERE, "architectures.json"), "w", encoding="utf-8") as out:
        cases = [{"name": name, "weights": which, "config": config} for name, which, config in CASES]
        json.dump({"transformers": transformers.__version__, "prompt": prompt, "rows": ROWS, "cases": cases}, out, indent=1)
        out.write("\n")


main()
