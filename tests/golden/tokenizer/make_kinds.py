#!/usr/bin/env python3
"""Writes kinds/: small tokenizers of every kind that model families use, trained here on hard_cases.jsonl, and kinds.json: digests of what
the `tokenizers` and `sentencepiece` packages make of those cases and of some more with them.

A digest is FNV-1a (64 bits) over a group's ids (32 bits each, little endian, -1 after each case) and over the UTF-8 of the decoded texts.

    python3 tests/golden/tokenizer/make_kinds.py     (needs: tokenizers, sentencepiece; made with tokenizers 0.23.3, sentencepiece 0.2.x)
"""
import io
import json
import pathlib
import struct

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
GROUP = 8
SIGN = "\u2581"
EXTRA = [" ", "  ", " a", "  a", "a ", "a  b", "\u2581", "\u2581a", " \u2581", "a\u2581b", "<s>", "<s> a", "<s>a", "a</s>b", "a </s> b", " <s>", "<s> ", "<s><s>", "</s></s> x",
         "<s>  a", "\u2581<s>\u2581a", "<0x0A>", "<0x", "\n", "\n\na", "\t", "\u00e9", "\u65e5\u672c", "\U0001f600", "\U0001f600 \U0001f600", "[INST] hi [/INST]", "<s>[INST] hi [/INST] yes </s><s>[INST] more [/INST]",
         "e\u0301", "E\u0301\u0323", "\u0041\u030a", "\u212b", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0344", "\u0958", "\u2126", "a\u0323\u0307", "a\u0307\u0323", "\ufb01", "\u1e9b\u0323", "q\u0307\u0323x",
         "\u0387", "\u1fef", "\uf900", "\U0002f800", "\u0340\u0341", "\u0f73", "\u0308\u0301", "x\u0308\u0301y", "1\u0301", " \u0301", "\u0301\u0301", "'\u0301s", "n\u0303o 12345 \u00f1o"]


def cases():
    lines = (HERE / "hard_cases.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return EXTRA + [json.loads(line) for line in lines]


def digests(texts, encode, decode):
    out = []
    for at in range(0, len(texts), GROUP):
        h = 0xCBF29CE484222325
        for text in texts[at : at + GROUP]:
            ids = encode(text)
            for byte in b"".join(struct.pack("<i", i) for i in ids + [-1]) + decode(ids).encode():
                h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        out.append(f"{h:016x}")
    return out


SPECIALS = ["<unk>", "<s>", "</s>"]
SPACES = {"llama2": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SIGN},
                                                                       {"type": "Replace", "pattern": {"String": " "}, "content": SIGN}]}},
          "mistral-v0.3": {"pre_tokenizer": {"type": "Metaspace", "replacement": SIGN, "prepend_scheme": "first", "split": False}},
          "metaspace-always": {"pre_tokenizer": {"type": "Metaspace", "replacement": SIGN, "prepend_scheme": "always", "split": True}},
          "metaspace-never": {"pre_tokenizer": {"type": "Metaspace", "replacement": SIGN, "prepend_scheme": "never", "split": False}}}


def train_characters(texts):
    """Merges of characters, spaces as signs, and byte tokens between the special tokens and the rest."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", SIGN)
    t.train_from_iterator([x for x in texts if len(x) < 200 and "\0" not in x and not any(w in x for w in SPECIALS)], trainers.BpeTrainer(vocab_size=700, limit_alphabet=260, max_token_length=8, show_progress=False))
    model = json.loads(t.to_str())["model"]
    names = SPECIALS + [f"<0x{b:02X}>" for b in range(256)]
    learned = [w for w, _ in sorted(model["vocab"].items(), key=lambda x: x[1])]
    return {w: i for i, w in enumerate(names + learned)}, model["merges"]


def of_spaces(name, vocab, merges):
    added = [{"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, w in enumerate(SPECIALS)]
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SIGN}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    if name != "metaspace-never":
        decoder["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": decoder,
             "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                       "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges}}
    parts.update(SPACES[name])
    return parts


def qwen2(texts):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    t.add_tokens([AddedToken(x, special=False, normalized=False) for x in ("<think>", "</think>")])
    return json.loads(t.to_str())


def sentencepieces(texts):
    """(pieces of GGUF: text, score, type; encode; decode)"""
    model = io.BytesIO()
    lines = [line for x in texts for line in x.split("\n") if line.strip() and len(line) < 150 and "\0" not in line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=900, byte_fallback=True,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, character_coverage=0.99,
                                             split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [[p.piece, p.score, p.type] for p in proto.pieces], lambda s: processor.encode(s), lambda ids: processor.decode(ids)


def main():
    texts = cases()
    (HERE / "kinds").mkdir(exist_ok=True)
    kinds = []
    vocab, merges = train_characters(texts)
    files = {name: of_spaces(name, vocab, merges) for name in SPACES}
    files["qwen2"] = qwen2(texts)
    shared = {"vocab": vocab, "merges": merges}
    (HERE / "kinds" / "characters.json").write_text(json.dumps(shared, ensure_ascii=False, separators=(",", ":")) + "\n")
    for name, parts in files.items():
        t = Tokenizer.from_str(json.dumps(parts))
        d = digests(texts, lambda s: t.encode(s, add_special_tokens=False).ids, lambda ids: t.decode(ids, skip_special_tokens=True))
        if name in SPACES: # its vocabulary and merges are characters.json
            del parts["model"]["vocab"], parts["model"]["merges"]
        (HERE / "kinds" / f"{name}.json").write_text(json.dumps(parts, ensure_ascii=False, separators=(",", ":")) + "\n")
        kinds.append({"name": name, "digests": d})
    pieces, encode, decode = sentencepieces(texts)
    (HERE / "kinds" / "scores.json").write_text(json.dumps(pieces, ensure_ascii=False, separators=(",", ":")) + "\n")
    plain = ["" if any(s in x for s in SPECIALS) or "\0" in x else x for x in texts]
    kinds.append({"name": "scores", "digests": digests(plain, encode, decode)})
    lines = ",\n".join(json.dumps(k) for k in kinds)
    (HERE / "kinds" / "kinds.json").write_text(f'{{"group": {GROUP},\n"extra": {json.dumps(EXTRA)},\n"kinds": [\n{lines}\n]}}\n')
    print(len(texts), "cases;", sum(p.stat().st_size for p in (HERE / "kinds").iterdir()), "bytes")


main()
