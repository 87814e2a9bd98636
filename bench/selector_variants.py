#!/usr/bin/env python3
"""
What the project's variant of Sketch&Walk costs against the published ones: perplexity, KL and top-1 agreement over the last block of long texts, in PyTorch,
with the same model, text and density.

    dense     everything is read
    project   all rows of block c share a list made from the complete query mean of block c - 1; causal softmax^8, walk through the layers
    P         arXiv:2602.07397v1: a prompt's block is chosen with its own query mean; a generated row with the running mean of its block
    O         the authors' repository: a matrix a layer, damped walk of three steps, sinks and a window; generated rows by their last 32 queries
    recent    control: the first block and the last ones, as many as the others read

Layers 0 and 1 are dense. Heads of 64 or fewer channels only: there the sketches of P and O are rotations, which change no inner product, and are left out. The
rows of the last block are computed by each variant's rule for generated rows, the rest by that for prompts.

    pip install torch transformers gguf numpy; scripts/corpus.sh
    bench/selector_variants.py [--length 4096] [--windows 2] [--density 0.2] [--json FILE]
"""
import argparse
import json
import math
import os
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
B, SHARP, DENSE_LAYERS = 64, 8, 2
BETA, DEGREE, QUERIES, SINKS, WINDOW, BEST = 0.25, 3, 32, 0.025, 0.05, 0.125  # of O


def forced_and_best(scores, own, forced, budget):
    """scores [own + 1]: the forced blocks, and the best of the rest up to the budget, ties to the lower block -> bool [own + 1]"""
    chosen = torch.zeros(own + 1, dtype=torch.bool)
    chosen[[b for b in forced if 0 <= b <= own]] = True
    more = min(budget, own + 1) - int(chosen.sum())
    if more > 0:
        rest = scores.clone().double()
        rest[chosen] = -math.inf
        chosen[torch.sort(rest, descending=True, stable=True).indices[:more]] = True
    return chosen


def budget(own, density):
    return max(4, math.ceil(density * (own + 1) - 1e-9))


def block_means(x):
    """[heads, T, D], T whole blocks -> [heads, T / B, D]"""
    h, t, d = x.shape
    return x.reshape(h, t // B, B, d).mean(2)


def running_means(x):
    """[heads, B, D] -> the mean up to each position"""
    return x.cumsum(1) / torch.arange(1, B + 1).reshape(1, B, 1)


class Project:
    """-> (blocks [c + 1, c + 1] of prompts' rows, blocks [B, c + 1] of the last block's)"""

    def begin(self):
        self.walk = None

    def choose(self, q, k, density):
        c = q.shape[1] // B - 1  # the last block
        qm, km = block_means(q).mean(0), block_means(k).mean(0)
        a = (qm @ km.T / math.sqrt(q.shape[2])).double()
        w = torch.where(torch.ones(c + 1, c + 1).tril().bool(), a, -math.inf).softmax(1) ** SHARP
        w = w.bfloat16().double()
        self.walk = w.clone() if self.walk is None else (self.walk / self.walk.max(1, keepdim=True).values) @ w
        prompt = torch.zeros(c + 1, c + 1, dtype=torch.bool)
        for i in range(c + 1):
            if i == 0:
                prompt[0, 0] = True
                continue
            row, logits = self.walk[i - 1, :i], a[i - 1, :i]
            scores = torch.where(row > 0, row, logits - logits.max() - 1)
            scores = torch.cat([scores, torch.zeros(1).double()])
            prompt[i, : i + 1] = forced_and_best(scores, i, (0, i - 2, i - 1, i), budget(i, density))
        return prompt, prompt[c].expand(B, c + 1)


class Published:
    def begin(self):
        self.walk = self.rows = None

    def choose(self, q, k, density):
        c = q.shape[1] // B - 1
        qm, km = block_means(q).mean(0), block_means(k).mean(0)
        d = math.sqrt(q.shape[2])
        causal = torch.ones(c, c).tril().bool()
        w = torch.where(causal, (qm[:c] @ km[:c].T / d).double(), -math.inf).softmax(1) ** SHARP
        # the last block, position by position: running means of its queries and keys
        rq, rk = running_means(q[:, c * B :].mean(0)[None])[0], running_means(k[:, c * B :].mean(0)[None])[0]
        a = torch.cat([rq @ km[:c].T, (rq * rk).sum(1, keepdim=True)], 1).double() / d
        own = a.softmax(1) ** SHARP  # [B, c + 1]
        if self.walk is None:
            self.walk, self.rows = w.clone(), own.clone()
        else:
            self.walk = (self.walk / self.walk.max(1, keepdim=True).values) @ w
            rows = self.rows / self.rows.max(1, keepdim=True).values
            self.rows = rows[:, c:] * own
            self.rows[:, :c] += rows[:, :c] @ w
        prompt = torch.zeros(c + 1, c + 1, dtype=torch.bool)
        for i in range(c):
            prompt[i, : i + 1] = forced_and_best(self.walk[i, : i + 1], i, (0, i), budget(i, density))
        last = torch.stack([forced_and_best(self.rows[s], c, (0, c), budget(c, density)) for s in range(B)])
        return prompt, last


class Official:
    def begin(self):
        self.walk = None

    def select(self, scores, own, n_blocks):
        sinks, window = max(1, math.ceil(SINKS * n_blocks)), max(1, math.ceil(WINDOW * n_blocks))
        forced = {*range(min(sinks, own + 1)), *range(max(0, own - window + 1), own + 1)}
        candidates = own + 1 - len(forced)
        return forced_and_best(scores, own, forced, len(forced) + math.ceil(BEST * candidates))

    def choose(self, q, k, density):
        c, d, group = q.shape[1] // B - 1, q.shape[2], q.shape[0] // k.shape[0]
        # an unnormalised transform, and the division by 100 that takes it back
        scale = d ** 1.5 / d / 100
        qm, km = block_means(q[:, : c * B]), block_means(k).repeat_interleave(group, 0)
        a = (qm @ km[:, :c].transpose(1, 2) * scale).double().softmax(2).sum(0)
        a /= a.sum(1, keepdim=True)
        self.walk = a.clone() if self.walk is None else self.walk
        for _ in range(DEGREE):
            self.walk = (1 - BETA) * a + BETA * self.walk @ a
        prompt = torch.zeros(c + 1, c + 1, dtype=torch.bool)
        for i in range(c):
            prompt[i, : i + 1] = True if i >= c - 4 else self.select(self.walk[i, : i + 1], i, c)
        keys = running_means(k[:, c * B :]).repeat_interleave(group, 0)
        last, mean = torch.zeros(B, c + 1, dtype=torch.bool), torch.zeros(c + 1).double()
        for s in range(B):
            t = c * B + s
            means = torch.cat([km[:, :c], keys[:, s : s + 1]], 1)
            row = (q[:, t - QUERIES + 1 : t + 1] @ means.transpose(1, 2) * scale).double().softmax(2).sum((0, 1))
            row /= row.sum()
            mean += (row - mean) / (s + 1)
            whole = torch.zeros(c + 1, c + 1).double()
            whole[:c, :c], whole[c], whole[:c, c] = a, mean, mean[:c]
            whole /= whole.sum(1, keepdim=True)
            walk = row.clone()
            for _ in range(DEGREE):
                walk = (1 - BETA) * row + BETA * walk @ whole
            last[s] = self.select(walk, c, c + 1)
        return prompt, last


class Recent:
    def begin(self):
        pass

    def choose(self, q, k, density):
        c = q.shape[1] // B - 1
        prompt = torch.zeros(c + 1, c + 1, dtype=torch.bool)
        for i in range(c + 1):
            prompt[i, : i + 1] = forced_and_best(torch.arange(i + 1).double(), i, (0, i), budget(i, density))
        return prompt, prompt[c].expand(B, c + 1)


VARIANTS = {"dense": None, "project": Project, "P": Published, "O": Official, "recent": Recent}
state = {"variant": None, "density": 0.2, "read": 0, "visible": 0}


def attention(module, query, key, value, attention_mask, scaling=None, **_):
    """q [1, H, T, D] and k, v [1, KV, T, D], rotated -> ([1, T, H, D], None)"""
    q, k, v = query[0], key[0], value[0]
    h, t, d = q.shape
    chosen = None
    if state["variant"] and module.layer_idx >= DENSE_LAYERS:
        prompt, last = state["variant"].choose(q.float(), k.float(), state["density"])
        chosen = torch.cat([prompt[:-1].repeat_interleave(B, 0), last])  # [T, blocks]
        state["read"] += int(last.sum())
        state["visible"] += last.numel()
    k, v = (x.repeat_interleave(h // x.shape[0], 0) for x in (k, v))
    out = torch.empty(h, t, d)
    for begin in range(0, t, 512):
        end = min(begin + 512, t)
        scores = q[:, begin:end] @ k[:, :end].transpose(1, 2) * scaling
        mask = torch.arange(end)[None, :] <= torch.arange(begin, end)[:, None]
        if chosen is not None:
            mask &= chosen[begin:end].repeat_interleave(B, 1)[:, :end]
        out[:, begin:end] = scores.masked_fill_(~mask, -math.inf).softmax(2) @ v[:, :end]
    return out.transpose(0, 1)[None], None


def load(directory):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("variants", attention)
    more = {}
    files = [f for f in os.listdir(directory) if f.endswith(".gguf")]
    if files:
        more["gguf_file"] = files[0]
    tokenizer = AutoTokenizer.from_pretrained(directory, **more)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="variants", **more).eval()
    return tokenizer, model


def windows(tokenizer, texts, length, n):
    """Texts in turn, at even distances."""
    for i in range(n):
        with open(texts[i % len(texts)], encoding="utf-8") as f:
            text = f.read()
        at = len(text) * (2 * (i // len(texts)) + 1) // (2 * math.ceil(n / len(texts)))
        at = text.rfind("\n", 0, at) + 1
        ids = tokenizer(text[at : at + 16 * length], add_special_tokens=False)["input_ids"][:length]
        if len(ids) < length:
            sys.exit(f"{texts[i % len(texts)]}: {len(ids)} tokens from byte {at} on, fewer than {length}")
        yield torch.tensor([ids])


def report(args, names, sums, rows):
    """Of the windows so far."""
    out = []
    print(f"\n{args.length} positions, {rows // B} windows, density {args.density}, rows of the last block\n")
    print("| variant | blocks read | ppl | against dense | kl | top1 |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        s = sums[name]
        ppl = math.exp(s["nll"] / rows)
        ratio = math.exp((s["nll"] - sums["dense"]["nll"]) / rows)
        read = s["read"] / s["visible"] if s["visible"] else 1.0
        out.append({"variant": name, "blocks_read": read, "ppl": ppl, "ppl_ratio": ratio, "kl": s["kl"] / rows, "top1": s["same"] / rows})
        print(f"| {name} | {100 * read:.1f} % | {ppl:.3f} | {100 * (ratio - 1):+.2f} % | {s['kl'] / rows:.4f} | {s['same'] / rows:.4f} |")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": os.path.basename(args.model.rstrip("/")), "length": args.length, "windows": rows // B,
                       "density": args.density, "rows": out}, f, indent=1)
            f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--model", default=os.path.join(ROOT, "models/smollm2-135m-instruct"))
    p.add_argument("--text", action="append", help="default: the corpus")
    p.add_argument("--length", type=int, default=4096)
    p.add_argument("--windows", type=int, default=2)
    p.add_argument("--density", type=float, default=0.2)
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--json")
    args = p.parse_args()
    if args.length % B or args.length < 16 * B:
        p.error(f"--length: a multiple of {B}, at least {16 * B}")
    names = ["dense", *(v for v in args.variants.split(",") if v != "dense")]
    texts = args.text or [os.path.join(ROOT, "corpus", n) for n in ("kjv.txt", "python.txt")]
    tokenizer, model = load(args.model)
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    if head_dim > 64 or head_dim & (head_dim - 1):
        sys.exit(f"heads of {head_dim} channels: only powers of two up to 64")
    state["density"] = args.density
    sums = {n: {"nll": 0.0, "kl": 0.0, "same": 0, "read": 0, "visible": 0} for n in names}
    rows = 0
    with torch.no_grad():
        for ids in windows(tokenizer, texts, args.length + 1, args.windows):
            target, base = ids[0, -B:], None
            for name in names:
                begun = time.monotonic()
                state.update(variant=VARIANTS[name]() if VARIANTS[name] else None, read=0, visible=0)
                if state["variant"]:
                    state["variant"].begin()
                logits = model(ids[:, :-1], logits_to_keep=B, use_cache=False).logits[0].double().log_softmax(1)
                base = logits if base is None else base
                s = sums[name]
                s["nll"] -= float(logits.gather(1, target[:, None]).sum())
                s["kl"] += float((base.exp() * (base - logits)).sum())
                s["same"] += int((logits.argmax(1) == base.argmax(1)).sum())
                s["read"] += state["read"]
                s["visible"] += state["visible"]
                print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            rows += B
            report(args, names, sums, rows)


if __name__ == "__main__":
    main()
