"""GGUF files of mixed weight types, as llama.cpp's Q4_K_M and Q5_K_M are, against the same weights expanded here to float32."""

import array
import os
import random
import struct
import tempfile
import unittest

from cluster import distance, generate, logit_rows, main

LAYERS, D, HEADS, KV_HEADS, FF = 2, 256, 4, 2, 512
HEAD = D // HEADS
VOCABULARY = 258  # 256 bytes, one merge, one control token
TYPES = {"F32": (0, 1, 4), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210)}
# elements of random codes under random scales, divided by d
SPREAD = {"Q5_0": 9.2, "Q5_1": 9.2, "Q4_K": 258, "Q5_K": 527, "Q6_K": 1366}


# ---- what ggml's types mean, written from their description ----


def half(data, at):
    return struct.unpack_from("<e", data, at)[0]


def six_bits(scales, i):
    """Scale and minimum i of the 12 bytes of Q4_K and Q5_K."""
    if i < 4:
        return scales[i] & 63, scales[i + 4] & 63
    return scales[i + 4] & 15 | scales[i - 4] >> 6 << 4, scales[i + 4] >> 4 | scales[i] >> 6 << 4


def expand_q5_0(b):
    d, high = half(b, 0), int.from_bytes(b[2:6], "little")
    codes = [q & 15 for q in b[6:]] + [q >> 4 for q in b[6:]]
    return [((q | (high >> i & 1) << 4) - 16) * d for i, q in enumerate(codes)]


def expand_q5_1(b):
    d, m, high = half(b, 0), half(b, 2), int.from_bytes(b[4:8], "little")
    codes = [q & 15 for q in b[8:]] + [q >> 4 for q in b[8:]]
    return [(q | (high >> i & 1) << 4) * d + m for i, q in enumerate(codes)]


def expand_k(b, five):
    d, m, out = half(b, 0), half(b, 2), []
    high, codes = (b[16:48], b[48:]) if five else (bytes(32), b[16:])
    for i in range(8):
        scale, least = six_bits(b[4:16], i)
        for j in range(32):
            q = codes[i // 2 * 32 + j] >> 4 * (i % 2) & 15 | (high[j] >> i & 1) << 4
            out.append(d * scale * q - m * least)
    return out


def expand_q6_k(b):
    d, scales, out = half(b, 208), struct.unpack_from("<16b", b, 192), []
    for e in range(256):
        part, quarter, j = e // 128, e % 128 // 32, e % 32
        low = b[part * 64 + quarter % 2 * 32 + j] >> quarter // 2 * 4 & 15
        high = b[128 + part * 32 + j] >> quarter * 2 & 3
        out.append(d * scales[e // 16] * ((low | high << 4) - 32))
    return out


EXPAND = {
    "Q5_0": expand_q5_0,
    "Q5_1": expand_q5_1,
    "Q4_K": lambda b: expand_k(b, False),
    "Q5_K": lambda b: expand_k(b, True),
    "Q6_K": expand_q6_k,
}


# ---- models ----


def random_blocks(rng, kind, elements, spread):
    _, block, size = TYPES[kind]
    d = spread / SPREAD[kind]
    # what centres the codes
    m = {"Q5_1": -15.5, "Q4_K": 7.5, "Q5_K": 15.5}.get(kind, 0) * d
    out = bytearray()
    for _ in range(elements // block):
        b = bytearray(rng.randbytes(size))
        struct.pack_into("<e", b, 208 if kind == "Q6_K" else 0, d)
        if m:
            struct.pack_into("<e", b, 2, m)
        out += b
    return bytes(out)


def expanded(kind, data):
    size = TYPES[kind][2]
    flat = array.array("f")
    for at in range(0, len(data), size):
        flat.extend(EXPAND[kind](data[at : at + size]))
    return flat.tobytes()


def tensors(seed, kinds):
    """(name, dims, type, bytes) of every tensor. kinds(name): the type of a matrix."""
    rng = random.Random(seed)
    shapes = [("token_embd", VOCABULARY, D), ("output_norm", 0, D), ("output", VOCABULARY, D)]
    for layer in range(LAYERS):
        shapes += [
            (f"blk.{layer}.{name}", rows, columns)
            for name, rows, columns in [
                ("attn_norm", 0, D),
                ("attn_q", D, D),
                ("attn_k", KV_HEADS * HEAD, D),
                ("attn_v", KV_HEADS * HEAD, D),
                ("attn_output", D, D),
                ("ffn_norm", 0, D),
                ("ffn_gate", FF, D),
                ("ffn_up", FF, D),
                ("ffn_down", D, FF),
            ]
        ]
    for name, rows, columns in shapes:
        if rows:
            kind = kinds(name)
            yield name + ".weight", (columns, rows), kind, random_blocks(rng, kind, rows * columns, columns**-0.5)
        else:
            norm = array.array("f", [rng.uniform(0.8, 1.2) for _ in range(columns)])
            yield name + ".weight", (columns,), "F32", norm.tobytes()


def text(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def byte_letters():
    """GPT-2's letters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def key(name, kind, data):
    return text(name) + struct.pack("<I", kind) + data


def keys():
    letters = byte_letters() + ["th", "<|endoftext|>"]
    number = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": D,
        "feed_forward_length": FF,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }
    yield key("general.architecture", 8, text("llama"))
    for name, value in number.items():
        yield key("llama." + name, 4, struct.pack("<I", value))
    yield key("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))
    yield key("tokenizer.ggml.model", 8, text("gpt2"))
    yield key("tokenizer.ggml.pre", 8, text("smollm"))
    yield key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, VOCABULARY) + b"".join(map(text, letters)))
    yield key("tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{VOCABULARY}i", 5, VOCABULARY, *[1] * 257, 3))
    yield key("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 1) + text("t h"))
    yield key("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", VOCABULARY - 1))


def write_gguf(path, all_tensors):
    pairs, infos, data = list(keys()), b"", bytearray()
    for name, dims, kind, content in all_tensors:
        data += bytes(-len(data) % 32)
        infos += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, TYPES[kind][0], len(data))
        data += content
    head = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(pairs)) + b"".join(pairs) + infos
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32) + data + bytes(-len(data) % 32))


# ---- logits ----


PROMPT = "the weights of the matrix are coded in blocks; " * 2


def logits(model, directory, precision, workers, text=PROMPT, vocabulary=VOCABULARY):
    path = os.path.join(directory, "logits")
    prompt = os.path.join(directory, "prompt")
    with open(prompt, "w", encoding="utf-8") as file:
        file.write(text)
    generate("--workers", workers, "--model", model, "--raw", "--prompt-file", prompt, "--max-tokens", 0, "--score", "--dump-logits", path,
             "--precision", precision)
    return dict(logit_rows(path, vocabulary))


def like_q4_k_m(name):
    if name == "output" or name in ("blk.0.attn_v", "blk.0.ffn_down"):
        return "Q6_K"
    return "Q4_K"


def all_fives(name):
    """Q5_K_M, and what llama.cpp takes where rows are not whole blocks of 256."""
    return {"attn_k": "Q5_1", "attn_v": "Q5_0", "ffn_down": "Q6_K", "ffn_up": "Q5_0", "ffn_gate": "Q5_1"}.get(name.split(".")[-1], "Q5_K")


class Weights(unittest.TestCase):
    def distances(self, kinds, precision, workers=1):
        with tempfile.TemporaryDirectory() as directory:
            mixed, plain = os.path.join(directory, "mixed.gguf"), os.path.join(directory, "plain.gguf")
            coded = list(tensors(3, kinds))
            write_gguf(mixed, coded)
            write_gguf(plain, [(n, dims, "F32", c if kind == "F32" else expanded(kind, c)) for n, dims, kind, c in coded])
            got = logits(mixed, directory, precision, workers)
            want = logits(plain, directory, precision, 1)
        self.assertEqual(sorted(got), sorted(want))
        self.assertGreater(len(got), 60)
        far = sorted(distance(got[row], want[row]) for row in want)
        print(f"{kinds.__name__}, {precision}: |logits - expanded weights'| of {len(far)} rows: median {far[len(far) // 2]:.1e}, largest {far[-1]:.1e}")
        return far

    def test_q4_k_m_float32(self):
        """The reference multiplies the very weights, in the same order: not a bit may differ."""
        self.assertEqual(self.distances(like_q4_k_m, "float32", workers=2)[-1], 0)

    def test_fives_float32(self):
        self.assertEqual(self.distances(all_fives, "float32")[-1], 0)

    def test_bf16(self):
        """Activations are rounded to bf16 in both, but sums are not the same to the last bit before that."""
        for kinds in like_q4_k_m, all_fives:
            far = self.distances(kinds, "bf16")
            self.assertLess(far[len(far) // 2], 1e-2)
            self.assertLess(far[-1], 3e-2)

    def test_rows_in_company(self):
        """A position's bits do not depend on how many rows are computed with it: one, a few, a tile, many."""
        for codec in "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k":
            model = f"random:tiny,d=256,heads=8,head_dim=32,ff=512,codec={codec}"
            with tempfile.TemporaryDirectory() as directory:
                many = logits(model, directory, "bf16", 2, PROMPT, 256)
                for n in 1, 6, 19:
                    few = logits(model, directory, "bf16", 1, PROMPT[:n], 256)
                    self.assertEqual(sorted(few), list(range(n)))
                    for row, values in few.items():
                        self.assertEqual(values.tobytes(), many[row].tobytes(), f"{codec}: position {row} of {n}")


main(needs_model=False)
