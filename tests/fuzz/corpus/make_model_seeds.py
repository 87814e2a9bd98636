#!/usr/bin/env python3
"""Writes the seeds of fuzz_gguf, fuzz_safetensors and fuzz_hf_config into the folders beside this file. Needs nothing but Python."""
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def save(what, name, data):
    os.makedirs(os.path.join(HERE, what), exist_ok=True)
    with open(os.path.join(HERE, what, name), "wb") as f:
        f.write(data)


# ---- GGUF: one layer of width 32, two heads of 16 ----

def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def value(v):
    if isinstance(v, bool):
        return 7, struct.pack("<?", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, text(v)
    kind = 8 if isinstance(v[0], str) else 5
    return 9, struct.pack("<IQ", kind, len(v)) + b"".join(text(x) if kind == 8 else struct.pack("<i", x) for x in v)


def gguf(matrix_type, tied, version=3, alignment=None, extra=(), arch="llama", vectors=()):
    """vectors: more tensors of the layer, name -> length"""
    keys = {
        "general.architecture": arch, f"{arch}.block_count": 1, f"{arch}.context_length": 64, f"{arch}.embedding_length": 32,
        f"{arch}.feed_forward_length": 32, f"{arch}.attention.head_count": 2, f"{arch}.attention.head_count_kv": 1,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.freq_base": 1e5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": ["<|eot_id|>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ x }}",
    }
    if alignment:
        keys["general.alignment"] = alignment
    keys.update(extra)
    step = alignment or 32
    row = {0: 128, 1: 64, 30: 64, 8: 34, 2: 18, 3: 20, 6: 22, 7: 24}
    tensors = [("token_embd.weight", [32, 4], matrix_type), ("output_norm.weight", [32], 0)]
    if not tied:
        tensors.append(("output.weight", [32, 4], matrix_type))
    for name, rows in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32), ("ffn_up", 32),
                       ("ffn_down", 32)):
        tensors.append((f"blk.0.{name}.weight", [32, rows], matrix_type))
    tensors += [("blk.0.attn_norm.weight", [32], 0), ("blk.0.ffn_norm.weight", [32], 0)]
    tensors += [(f"blk.0.{name}", [n], 0) for name, n in dict(vectors).items()]
    head, data = b"", b""
    for name, dims, kind in tensors:
        data += bytes(-len(data) % step)
        head += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        head += struct.pack("<IQ", kind, len(data))
        data += bytes(i % 61 for i in range(row[kind] * dims[0] // 32 * (dims[1] if len(dims) > 1 else 1)))
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for k, v in keys.items():
        kind, payload = value(v)
        out += text(k) + struct.pack("<I", kind) + payload
    out += head
    return out + bytes(-len(out) % step) + data


save("gguf", "q4_0", gguf(2, False))
save("gguf", "q4_1_tied", gguf(3, True, version=2))
save("gguf", "q8_0_aligned", gguf(8, True, alignment=64))
save("gguf", "q5_0", gguf(6, False))
save("gguf", "q5_1_tied", gguf(7, True))
save("gguf", "bf16", gguf(30, True, extra={"llama.rope.scaling.type": "none", "llama.vocab_size": 4}))
save("gguf", "qwen2_yarn", gguf(2, True, arch="qwen2", vectors={"attn_q.bias": 32, "attn_k.bias": 16, "attn_v.bias": 16}, extra={
    "qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0, "qwen2.rope.scaling.original_context_length": 16,
    "qwen2.rope.scaling.yarn_beta_fast": 8.0, "qwen2.rope.scaling.attn_factor": 1.5, "qwen2.attention.sliding_window": 64}))
save("gguf", "qwen3_linear", gguf(8, True, arch="qwen3", vectors={"attn_q_norm.weight": 16, "attn_k_norm.weight": 16}, extra={
    "qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 2.0}))
save("gguf", "refused", gguf(2, True, extra={"llama.expert_count": 8}))

# ---- safetensors ----


def safetensors(header, data):
    h = json.dumps(header, separators=(",", ":")).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(h)) + h + bytes(data)


save("safetensors", "two", safetensors({"__metadata__": {"format": "pt"},
                                        "a": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]},
                                        "b": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]}}, 20))
save("safetensors", "empty", safetensors({}, 0))
save("safetensors", "odd", safetensors({"a": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
                                        "z": {"dtype": "U8", "shape": [0, 9], "data_offsets": [3, 3]}}, 3))
save("safetensors", "hole", safetensors({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, 3))

# ---- JSON files; the first byte says which ----

config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
          "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300,
          "max_position_embeddings": 256, "rms_norm_eps": 1e-05, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": [1, 2],
          "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
          "attention_bias": False, "sliding_window": None}
yarn = {**config, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1,
        "sliding_window": 1024, "original_max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16,
                            "beta_slow": 2, "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": None}}
tokenizer = {"added_tokens": [{"id": 0, "content": "<|bos|>", "special": True}],
             "post_processor": {"type": "Sequence", "processors": [
                 {"type": "ByteLevel"},
                 {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|bos|>"}}, {"Sequence": {"id": "A"}}],
                  "special_tokens": {"<|bos|>": {"ids": [0]}}}]},
             "model": {"type": "BPE", "ignore_merges": True, "vocab": {"a": 1, "b": 2, "ab": 3, "c": 4, "abc": 5},
                       "merges": ["a b", ["ab", "c"]]}}
for letter, name, content in (("c", "config", config), ("c", "config_yarn", yarn), ("t", "tokenizer", tokenizer), ("g", "generation", {"eos_token_id": [1, 2]}),
                              ("s", "template", {"chat_template": [{"name": "default", "template": "{{ x }}"}]})):
    save("hf_config", name, letter.encode() + json.dumps(content).encode())
