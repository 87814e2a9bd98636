#!/usr/bin/env python3
"""Writes smollm2.digests: what the `tokenizers` package makes of the corpus and the hard cases, as digests of ids.

The package's Tokenizer is assembled from the vocabulary and merges of the model's GGUF file, with the pre-tokenizers of four rules:
smollm (the model's own), gpt-2, llama-bpe, and a pattern that only a regular expression engine can run ("regex", the one of o200k).

    python3 tests/golden/tokenizer/make_digests.py MODEL.gguf     (needs: tokenizers, a C compiler; made with tokenizers 0.23.3)

A digest is the first 8 bytes of the SHA-256 over, for each text of its group, the number of ids and the ids, as little-endian int32.
"-": not compared (the regex rule only: the text has characters younger than the Unicode version that PCRE2 may know).
"""
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import gguf_vocab

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CHUNK = 4096
SIDE_CHUNKS = 320
LICENSES = ["Apache-2.0", "Artistic", "GFDL-1.3", "GPL-2", "GPL-3", "LGPL-2.1", "LGPL-3", "MPL-2.0"]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=use_regex)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)])


RULES = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "gpt-2": byte_level(True),
    "llama-bpe": split(LLAMA3),
    "regex": split(O200K),
}


def assemble(path, rule, specials):
    vocab, merges, controls, _ = gguf_vocab.vocab_of(path)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=rule == "llama-bpe"))
    t.pre_tokenizer = RULES[rule]
    t.decoder = decoders.ByteLevel()
    if specials:
        t.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    return t


def corpus_chunks():
    with tempfile.TemporaryDirectory() as d:
        tool = pathlib.Path(d) / "corpus_tool"
        subprocess.run(["cc", "-O2", "-std=gnu17", f"-I{ROOT}", str(HERE / "corpus_tool.c"), "-o", str(tool)], check=True)
        data = subprocess.run([str(tool)], check=True, stdout=subprocess.PIPE).stdout
    at = 0
    while at < len(data):
        end = min(at + CHUNK, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end].decode("utf-8")
        at = end


def digest(tokenizer, texts):
    h = hashlib.sha256()
    for e in tokenizer.encode_batch(texts, add_special_tokens=False):
        h.update(struct.pack(f"<i{len(e.ids)}i", len(e.ids), *e.ids))
    return h.hexdigest()[:16]


CLASSED = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}\p{Z}]"), "removed")


def is_old(text):
    """No character that patterns tell apart only since a Unicode version later than Python's (14)."""
    return not any(unicodedata.category(c) == "Cn" and not CLASSED.pre_tokenize_str(c) for c in set(text))


def main():
    path = sys.argv[1]
    chunks = list(corpus_chunks())
    hard = [json.loads(line) for line in open(HERE / "hard_cases.jsonl", encoding="utf-8", newline="\n")]
    out = ["# made by make_digests.py; sections: section TEXTS RULE specials|plain GROUP COUNT"]
    made = {}

    def section(what, texts, rule, specials, group):
        t = made.setdefault((rule, specials), assemble(path, rule, specials))
        groups = [texts[i : i + group] for i in range(0, len(texts), group)]
        out.append(f"section {what} {rule} {'specials' if specials else 'plain'} {group} {len(groups)}")
        out.extend("-" if rule == "regex" and not all(map(is_old, g)) else digest(t, g) for g in groups)
        print(out[-len(groups) - 1], "skipped:", out[-len(groups) :].count("-"))

    section("corpus", chunks, "smollm", True, 1)
    section("corpus", chunks, "smollm", False, 16)
    section("hard", hard, "smollm", True, 4)
    section("hard", hard, "smollm", False, 16)
    for rule in ("gpt-2", "llama-bpe", "regex"):
        section("corpus", chunks[:SIDE_CHUNKS], rule, True, 2)
        section("hard", hard, rule, False, 8)
    for name in LICENSES:
        data = pathlib.Path("/usr/share/common-licenses", name).read_bytes()
        mine = digest(made["smollm", False], [data.decode("utf-8")])
        out.append(f"file /usr/share/common-licenses/{name} {hashlib.sha256(data).hexdigest()[:16]} {mine}")
    (HERE / "smollm2.digests").write_text("\n".join(out) + "\n")


main()
