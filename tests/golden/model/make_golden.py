#!/usr/bin/env python3
"""
Writes what transformers computes (float32, the default model's dequantised weights) into this folder:

    golden.json   ten prompts: their ids, 256 greedy tokens each, and the gap between the two largest logits at each; perplexity of a long text
    logits.bin    logits (float32) of the text's rows that golden.json names, every 48th column: [rows][columns]

    make_golden.py MODEL.gguf     (torch, transformers, gguf, tokenizers; any recent version)
"""
import json
import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tokenizer"))
import gguf_vocab  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village at the foot of a mountain,",
    "def fibonacci(n):\n    ",
    "The three laws of motion state that",
    "Q: What is 17 times 23?\nA:",
    "In 1969, the first humans",
    "Dear Sir or Madam,\n\nI am writing to",
    "Ingredients: flour, sugar, eggs, butter.\nMethod:",
    "Die Hauptstadt von Deutschland ist",
    "SELECT name, age FROM users WHERE",
]
TEXT = pathlib.Path("/usr/share/common-licenses/GPL-3")     # of Debian's base-files, on every installation
NEW, TEXT_TOKENS, ROWS, STRIDE = 256, 3000, [0, 63, 64, *range(75, 701, 25)], 48


def tokenizer_of(path):
    vocab, merges, _, _ = gguf_vocab.vocab_of(path)
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    return t


def main(path):
    path = pathlib.Path(path)
    tokenizer = tokenizer_of(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    out = {"prompts": [], "text": str(TEXT), "text_tokens": TEXT_TOKENS, "rows": ROWS, "stride": STRIDE}
    with torch.no_grad():
        # one batch, padded on the left: a row of float32 arithmetic on the same weights, ten at a time
        prompts = [tokenizer.encode(p, add_special_tokens=False).ids for p in PROMPTS]
        width = max(map(len, prompts))
        feed = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        greedy, gaps, past = [[] for _ in prompts], [[] for _ in prompts], None
        for _ in range(NEW):
            position = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1]:]
            r = model(feed, attention_mask=mask, position_ids=position, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, top = r.past_key_values, torch.topk(r.logits[:, -1], 2)
            for i in range(len(prompts)):
                greedy[i].append(int(top.indices[i, 0]))
                gaps[i].append(round(float(top.values[i, 0] - top.values[i, 1]), 6))
            feed = top.indices[:, :1]
            mask = torch.cat([mask, torch.ones_like(feed)], 1)
        for i, p in enumerate(PROMPTS):
            out["prompts"].append({"prompt": p, "ids": prompts[i], "greedy": greedy[i], "gaps": gaps[i]})
            print(repr(tokenizer.decode(greedy[i][:20])))
        ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[:TEXT_TOKENS]
        logits = model(torch.tensor([ids])).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
        out["perplexity"] = math.exp(float(nll))
        out["head_chars"] = len(tokenizer.decode(ids[:720]))   # a text that begins with the tokens of all rows below
        (HERE / "logits.bin").write_bytes(b"".join(logits[r, ::STRIDE].contiguous().numpy().astype("<f4").tobytes() for r in ROWS))
    (HERE / "golden.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print("perplexity", out["perplexity"])


main(sys.argv[1])
