"""Writes a model directory of Hugging Face as a GGUF file, the way llama.cpp's converter does. No third-party packages: weights stay as they are."""

import json
import math
import os
import struct

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
TYPES = {"F32": 0, "F16": 1, "BF16": 30}
ALIGNMENT = 32
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
LAYER_NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
               "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
               "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def text(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    """kind: U32, F32, STRING, or (ARRAY, kind of element)"""
    if isinstance(kind, tuple):
        element = kind[1]
        body = struct.pack("<IIQ", ARRAY, element, len(value)) + b"".join(scalar(element, v) for v in value)
    else:
        body = struct.pack("<I", kind) + scalar(kind, value)
    return text(name) + body


def scalar(kind, value):
    return text(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", F32: "<f"}[kind], value)


def safetensors(path):
    """-> name: (dtype, shape, bytes)"""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}


def widen(data):
    """bfloat16 -> float32"""
    return b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))


def interleave(data, rows, head_dim):
    """Rows of each head from halves (i, i + D/2) to adjacent pairs (2i, 2i + 1), as architecture llama stores q and k."""
    size = len(data) // rows
    order = [head + half * head_dim // 2 + i for head in range(0, rows, head_dim) for i in range(head_dim // 2) for half in (0, 1)]
    return b"".join(data[r * size : (r + 1) * size] for r in order)


def name_of(name):
    if name in NAMES:
        return NAMES[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def rope_keys(arch, config):
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    keys = [key(f"{arch}.rope.freq_base", F32, scaling.get("rope_theta", config.get("rope_theta", 1e4)))]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("linear", "yarn"):
        keys += [key(f"{arch}.rope.scaling.type", STRING, kind), key(f"{arch}.rope.scaling.factor", F32, scaling["factor"])]
    if kind == "yarn":
        keys += [key(f"{arch}.rope.scaling.original_context_length", U32, scaling["original_max_position_embeddings"])]
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if ours in scaling:
                keys.append(key(f"{arch}.rope.scaling.{theirs}", F32, scaling[ours]))
        if "attention_factor" in scaling:  # ggml multiplies what follows from the factor
            keys.append(key(f"{arch}.rope.scaling.attn_factor", F32, scaling["attention_factor"] / (1 + 0.1 * math.log(scaling["factor"]))))
    return keys


def tokenizer_keys(directory):
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as f:
        vocabulary = json.load(f)["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    return [key("tokenizer.ggml.model", STRING, "gpt2"), key("tokenizer.ggml.pre", STRING, "smollm"),
            key("tokenizer.ggml.tokens", (ARRAY, STRING), tokens), key("tokenizer.ggml.token_type", (ARRAY, I32), [1] * len(tokens)),
            key("tokenizer.ggml.merges", (ARRAY, STRING), [])]


def convert(directory, path):
    """The model of directory -> the file path."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    keys = [key("general.architecture", STRING, arch)]
    for ours, theirs in (("num_hidden_layers", "block_count"), ("max_position_embeddings", "context_length"), ("hidden_size", "embedding_length"),
                         ("intermediate_size", "feed_forward_length"), ("num_attention_heads", "attention.head_count"),
                         ("num_key_value_heads", "attention.head_count_kv"), ("vocab_size", "vocab_size")):
        keys.append(key(f"{arch}.{theirs}", U32, config[ours]))
    keys += [key(f"{arch}.attention.key_length", U32, head_dim), key(f"{arch}.attention.value_length", U32, head_dim),
             key(f"{arch}.attention.layer_norm_rms_epsilon", F32, config["rms_norm_eps"])]
    keys += rope_keys(arch, config) + tokenizer_keys(directory)
    heads, data = [], b""
    for name, (dtype, shape, raw) in safetensors(os.path.join(directory, "model.safetensors")).items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            raw = interleave(raw, shape[0], head_dim)
        if len(shape) == 1 and dtype == "BF16":
            dtype, raw = "F32", widen(raw)
        data += b"\0" * (-len(data) % ALIGNMENT)
        heads.append(text(name_of(name)) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape)) +
                     struct.pack("<IQ", TYPES[dtype], len(data)))
        data += raw
    head = b"GGUF" + struct.pack("<IQQ", 3, len(heads), len(keys)) + b"".join(keys) + b"".join(heads)
    with open(path, "wb") as out:
        out.write(head + b"\0" * (-len(head) % ALIGNMENT) + data)
