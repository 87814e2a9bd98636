"""GPTQ and AWQ checkpoints against transformers with dequantized weights: what tests/golden/quantized/make_quantized.py wrote. Packs quantized by LeanQuant."""

import array
import json
import os
import shutil
import struct
import tempfile
import unittest

from cluster import ROOT, distance, generate, logit_rows, main, run

GOLDEN = os.path.join(ROOT, "tests/golden/quantized")
TOKENIZER = os.path.join(ROOT, "tests/golden/spec/toy/tokenizer.json")
VOCABULARY = 256
with open(os.path.join(GOLDEN, "quantized.json"), encoding="utf-8") as f:
    WANT = json.load(f)


def header(path):
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


class Quantized(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="longspan-test-")
        self.addCleanup(shutil.rmtree, self.directory)

    def model(self, case):
        """As two shards: what all cases share, and the case's matrices."""
        path = os.path.join(self.directory, case["name"])
        os.mkdir(path)
        shutil.copy(TOKENIZER, path)
        where = {}
        for name in ("shared", case["name"]):
            shutil.copy(os.path.join(GOLDEN, name + ".safetensors"), path)
            where.update({tensor: name + ".safetensors" for tensor in header(os.path.join(path, name + ".safetensors")) if tensor != "__metadata__"})
        for name, data in (("config.json", case["config"]), ("model.safetensors.index.json", {"weight_map": where})):
            with open(os.path.join(path, name), "w", encoding="utf-8") as out:
                json.dump(data, out)
        return path

    def logits(self, model, precision, workers):
        path = os.path.join(self.directory, "logits")
        generate("--model", model, "--workers", workers, "--precision", precision, "--raw", "--prompt", WANT["prompt"], "--max-tokens", 0, "--score",
                 "--dump-logits", path)
        found = dict(logit_rows(path, VOCABULARY))
        return [found[row] for row in WANT["rows"]]

    def test_logits(self):
        codecs = {"gptq-8-sym": "Q8_0", "gptq-8": "F16", "gptq-4-desc-act": "F16"}
        with open(os.path.join(GOLDEN, "logits.bin"), "rb") as file:
            for case in WANT["cases"]:
                want = [array.array("f", file.read(4 * VOCABULARY)) for _ in WANT["rows"]]
                model, name = self.model(case), case["name"]
                exact = self.logits(model, "float32", 1)
                rounded = self.logits(model, "bf16", 2)
                far, near = max(map(distance, exact, want)), max(map(distance, rounded, want))
                print(f"{name}: |logits - transformers| / |transformers|: float32 {far:.1e}, bf16 {near:.1e}")
                self.assertLess(far, 1e-4, name)
                self.assertLess(near, 3e-2, name)
                self.assertEqual(self.logits(model, "bf16", 1), rounded, f"{name}: one and two workers")
                kinds = {t["kind"]: t for t in json.loads(run("model", model, "--json")[0])["tensors"]}
                self.assertEqual(kinds["ffn_down"]["codec"], codecs.get(name, "Q4_Z"), name)

    def test_packs_as_it_is(self):
        model, out = self.model(WANT["cases"][0]), os.path.join(self.directory, "packed")
        run("pack", "--model", model, "--weights", "as-is", "--out", out, "--json")
        self.assertEqual(self.logits(out, "bf16", 1), self.logits(model, "bf16", 1))


    def test_leanquant(self):
        """More bits are nearer to the model; the same text makes the same pack; the header says how it was made."""
        model = "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=512,qkv_bias=1,qk_norm=1"
        text = os.path.join(ROOT, "docs/design.md")
        want = self.logits(model, "bf16", 1)
        self.assertIn("--text", run("pack", "--model", model, "--weights", "leanquant-4", "--out", os.path.join(self.directory, "none"), check=1)[1])
        far = {}
        for bits in (4, 3, 2):
            out = [os.path.join(self.directory, f"lean-{bits}-{again}") for again in (0, 1)]
            for path in out:
                size = json.loads(run("pack", "--model", model, "--weights", f"leanquant-{bits}", "--text", text, "--out", path, "--json")[0])
            self.assertEqual({t["kind"]: t["codec"] for t in size["tensors"]}["ffn_down"], f"leanquant-{bits}")
            with open(os.path.join(out[0], "weights.bin"), "rb") as a, open(os.path.join(out[1], "weights.bin"), "rb") as b:
                self.assertEqual(a.read(), b.read())
            with open(os.path.join(out[0], "pack.json"), encoding="utf-8") as file:
                made = json.load(file)["quantized"]
            self.assertEqual((made["method"], made["weighting"], made["power"], made["damping"]), ("leanquant", "U_ii^-p", 4, 0.1))
            got = self.logits(out[0], "bf16", 2)
            self.assertEqual(self.logits(out[1], "bf16", 1), got)
            far[bits] = sum(map(distance, got, want)) / len(want)
        print("leanquant, |logits - model's| / |model's|:", {bits: round(d, 3) for bits, d in far.items()})
        self.assertTrue(far[4] < far[3] < far[2] and far[4] < 0.3, far)


main(needs_model=False)
