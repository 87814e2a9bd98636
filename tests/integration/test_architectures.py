"""Each architecture and RoPE scaling against transformers: what tests/golden/architectures/make_architectures.py wrote; and the same weights as GGUF."""

import array
import json
import os
import shutil
import tempfile
import unittest

import gguf_file
from cluster import ROOT, distance, generate, logit_rows, main, run

GOLDEN = os.path.join(ROOT, "tests/golden/architectures")
TOKENIZER = os.path.join(ROOT, "tests/golden/spec/toy/tokenizer.json")
VOCABULARY = 256
with open(os.path.join(GOLDEN, "architectures.json"), encoding="utf-8") as f:
    WANT = json.load(f)


def floats(data):
    return array.array("f", data)


def references():
    with open(os.path.join(GOLDEN, "logits.bin"), "rb") as file:
        return {case["name"]: [floats(file.read(4 * VOCABULARY)) for _ in WANT["rows"]] for case in WANT["cases"]}


class Architectures(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="longspan-test-")
        self.addCleanup(shutil.rmtree, self.directory)

    def model(self, case):
        path = os.path.join(self.directory, case["name"])
        os.mkdir(path)
        shutil.copy(os.path.join(GOLDEN, case["weights"] + ".safetensors"), os.path.join(path, "model.safetensors"))
        shutil.copy(TOKENIZER, path)
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as out:
            json.dump(case["config"], out)
        return path

    def logits(self, model, precision, workers):
        """Of the golden rows. 600 positions are two leaves and a growing one, past the original context where one is named."""
        path = os.path.join(self.directory, "logits")
        answer = generate("--model", model, "--workers", workers, "--precision", precision, "--raw", "--prompt", WANT["prompt"],
                          "--max-tokens", 0, "--score", "--dump-logits", path)
        self.assertEqual(answer["usage"]["prompt_tokens"], len(WANT["prompt"]))
        found = dict(logit_rows(path, VOCABULARY))
        return [found[row] for row in WANT["rows"]]

    def check(self, case, reference):
        model, name = self.model(case), case["name"]
        exact = self.logits(model, "float32", 1)
        far = sorted(map(distance, exact, reference))
        rounded = self.logits(model, "bf16", 2)
        near = sorted(map(distance, rounded, reference))
        print(f"{name}: |logits - transformers| / |transformers|: float32 at most {far[-1]:.1e}, bf16 median {near[len(near) // 2]:.1e}")
        self.assertLess(far[-1], 1e-4, name)
        self.assertLess(near[len(near) // 2], 2e-2, name)
        self.assertEqual(self.logits(model, "float32", 2), exact, f"{name}: one and two workers")
        self.assertEqual(self.logits(model, "bf16", 1), rounded, f"{name}: one and two workers")
        return model, exact

    def check_gguf(self, case, model, exact):
        """Bit for bit where every number is the same there: another attention factor passes through float32. Some scalings GGUF cannot tell."""
        scaling = case["config"].get("rope_scaling") or case["config"].get("rope_parameters") or {}
        if scaling.get("rope_type") == "llama3" or "truncate" in scaling:
            return
        path = os.path.join(self.directory, case["name"] + ".gguf")
        gguf_file.convert(model, path)
        got = self.logits(path, "float32", 1)
        if "attention_factor" in scaling:
            self.assertLess(max(map(distance, got, exact)), 1e-5, case["name"])
        else:
            self.assertEqual(got, exact, f"{case['name']}: GGUF and Hugging Face")
        shapes = [json.loads(run("model", m, "--json")[0]) for m in (model, path)]
        for field in ("positions_max", "head_dim", "kv_heads", "tied_output"):
            self.assertEqual(shapes[0][field], shapes[1][field], f"{case['name']}: {field}")


def add_cases():
    want = references()
    for case in WANT["cases"]:
        def test(self, case=case):
            model, exact = self.check(case, want[case["name"]])
            self.check_gguf(case, model, exact)

        setattr(Architectures, "test_" + case["name"].replace("-", "_"), test)


add_cases()
main(needs_model=False)
