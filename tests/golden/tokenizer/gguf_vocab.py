"""The vocabulary of a GGUF file, read without any package."""
import struct

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_metadata(path):
    with open(path, "rb") as f:
        data = f.read(64 << 20)
    at = 0

    def take(fmt):
        nonlocal at
        (value,) = struct.unpack_from("<" + fmt, data, at)
        at += struct.calcsize("<" + fmt)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at].decode("utf-8")

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            item = take("I")
            return [value(item) for _ in range(take("Q"))]
        return take(SCALARS[kind])

    assert data[:4] == b"GGUF"
    at = 4
    assert take("I") in (2, 3)
    take("Q")
    out = {}
    for _ in range(take("Q")):
        key = text()
        out[key] = value(take("I"))
    return out


def vocab_of(path):
    """({text: id}, [(left, right)], [control token texts], metadata)"""
    meta = read_metadata(path)
    tokens = meta["tokenizer.ggml.tokens"]
    types = meta["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]]
    return {t: i for i, t in enumerate(tokens)}, merges, [t for t, k in zip(tokens, types) if k == 3], meta
