#!/usr/bin/env python3
"""
What the executable specification (numpy; --reference names the folder that holds its spec.py) says, for the tests:

    trees.txt         random numbers of leaves, slots and readers; the tree as a program (leaf numbers, + merges the two topmost), and its
                      maximal nodes, each with its reader                                        -> tests/unit/worker/test_tree.c
    toy/              the toy model as a Hugging Face directory (float32)
    logits.bin        its logits, float32 [rows][256], for the rows of spec.json, keys and values rounded to bfloat16 as the specification does
    logits_exact.bin  the same with nothing rounded                                             -> tests/integration/test_spec.py

    make_spec.py --reference DIR
"""
import argparse
import json
import os
import random
import struct
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
LAYERS, POSITIONS, LENGTH, STRIDE = 2, 2048, 1100, 29


def program(node):
    return str(node) if isinstance(node, int) else f"{program(node[0])} {program(node[1])} +"


def leaves(node):
    return [node] if isinstance(node, int) else leaves(node[0]) + leaves(node[1])


def trees(spec):
    draw = random.Random(5)
    with open(os.path.join(HERE, "trees.txt"), "w", encoding="ascii") as out:
        print("# slots | reader of each leaf | the whole tree | reader: maximal node, ...", file=out)
        for case in range(120):
            n, slots = draw.choice((1, 2, 3, draw.randrange(4, 20), draw.randrange(20, 90))), 1 << draw.randrange(7)
            workers = draw.choice((1, 2, 2, 3, 4))
            deal = draw.choice((lambda i: i % workers, lambda i: draw.randrange(workers), lambda i: i * workers // n))
            readers = [deal(i) for i in range(n)]
            tree = spec.tree(n, slots)
            found = []
            for w in range(workers):
                found += [(w, node) for node in spec.maximal_nodes(tree, lambda i, w=w: readers[i] == w)]
            order = leaves(tree)
            found.sort(key=lambda x: order.index(leaves(x[1])[0]))
            print(slots, "|", *readers, "|", program(tree), "|", ", ".join(f"{w}: {program(node)}" for w, node in found), file=out)


def safetensors(path, tensors):
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            out.write(np.ascontiguousarray(x, np.float32).tobytes())


def byte_names():
    """GPT-2's printable character of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, other = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in names:
            names[b] = chr(other)
            other += 1
    return names


def toy(spec, m):
    t = {"model.embed_tokens.weight": m.emb, "model.norm.weight": np.ones(m.d, np.float32), "lm_head.weight": m.head.T}
    for i, w in enumerate(m.w):
        p = f"model.layers.{i}."
        t[p + "input_layernorm.weight"], t[p + "post_attention_layernorm.weight"] = w["g1"], w["g2"]
        for ours, theirs in (("q", "self_attn.q_proj"), ("k", "self_attn.k_proj"), ("v", "self_attn.v_proj"), ("o", "self_attn.o_proj"),
                             ("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj")):
            t[p + theirs + ".weight"] = w[ours].T
    safetensors(os.path.join(HERE, "toy/model.safetensors"), t)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": m.d, "intermediate_size": m.ffn,
              "num_hidden_layers": m.layers, "num_attention_heads": m.H, "num_key_value_heads": m.J, "head_dim": m.D, "rms_norm_eps": 1e-5,
              "vocab_size": m.vocab, "max_position_embeddings": POSITIONS, "tie_word_embeddings": False, "hidden_act": "silu",
              "rope_theta": 100.0, "torch_dtype": "float32"}
    tokenizer = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "decoder": {"type": "ByteLevel"},
                 "added_tokens": [], "model": {"type": "BPE", "vocab": {name: b for b, name in byte_names().items()}, "merges": []}}
    for name, what in (("config.json", config), ("tokenizer.json", tokenizer)):
        with open(os.path.join(HERE, "toy", name), "w", encoding="utf-8") as out:
            json.dump(what, out, ensure_ascii=False, indent=1)
            out.write("\n")


def logits(spec, m, prompt):
    """All rows at once, on one worker: spec.py's check proves that no other layout differs by a bit."""
    config = spec.Config(block=64, leaf_blocks=4, slots=64)
    blocks = -(-len(prompt) // config.block)
    rows = [spec.Row(0, pos, token, spec.PROMPT, 0) for pos, token in enumerate(prompt)]
    plan = spec.Plan(1, 1, frozenset(), rows, {0: [("block", c) for c in range(blocks)]}, {0: [0] * (len(prompt) // config.leaf + 1)},
                     {0: {0}}, {0: None})
    out = spec.step(plan, m.layers, {0: spec.Worker(0, m, config)}, spec.Net())
    return np.stack([out[0, pos][0] for pos in range(len(prompt))])


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--reference", required=True)
    sys.path.insert(0, args.parse_args().reference)
    import spec

    trees(spec)
    os.makedirs(os.path.join(HERE, "toy"), exist_ok=True)
    m = spec.Model(7, layers=LAYERS, positions=POSITIONS)
    toy(spec, m)
    draw = random.Random(11)
    text = "".join(draw.choice("etaoin shrdlu,.") for _ in range(LENGTH))
    rows = list(range(0, LENGTH, STRIDE)) + [LENGTH - 1]
    for name in ("logits.bin", "logits_exact.bin"):
        if name == "logits_exact.bin":
            spec.bf16 = lambda x: x
        with open(os.path.join(HERE, name), "wb") as out:
            out.write(np.ascontiguousarray(logits(spec, m, list(text.encode()))[rows], np.float32).tobytes())
    with open(os.path.join(HERE, "spec.json"), "w", encoding="utf-8") as out:
        json.dump({"prompt": text, "rows": rows}, out)
        out.write("\n")


main()
