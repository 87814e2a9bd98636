"""Against transformers: what tests/golden/model/make_golden.py wrote (float32, the default model's dequantised weights)."""

import array
import concurrent.futures
import json
import math
import os
import tempfile
import unittest

from cluster import MODEL, ROOT, Cluster, distance, generate, lacking, logit_rows, main, run

GOLDEN = os.path.join(ROOT, "tests/golden/model")
with open(os.path.join(GOLDEN, "golden.json"), encoding="utf-8") as f:
    WANT = json.load(f)


def text():
    """A text of Debian's base-files, on every installation."""
    if not os.path.exists(WANT["text"]):
        lacking(f"{WANT['text']} is not there")
    with open(WANT["text"], encoding="utf-8") as file:
        return file.read()


def reference_rows():
    with open(os.path.join(GOLDEN, "logits.bin"), "rb") as file:
        flat = array.array("f", file.read())
    n = len(flat) // len(WANT["rows"])
    return {row: flat[i * n : (i + 1) * n] for i, row in enumerate(WANT["rows"])}


def dumped_rows(path, wanted):
    n = json.loads(run("model", "--json")[0])["vocabulary"]
    rows = {}
    for position, row in logit_rows(path, n):
        if position in wanted:
            rows[position] = row[:: WANT["stride"]]
    return rows


class Golden(unittest.TestCase):
    def logits(self, precision):
        """Relative distance to the reference of each row, ascending."""
        want = reference_rows()
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "logits")
            prompt = os.path.join(directory, "prompt")
            with open(prompt, "w", encoding="utf-8") as file:
                file.write(text()[: WANT["head_chars"]])
            generate("--workers", 1, "--raw", "--prompt-file", prompt, "--max-tokens", 0, "--score", "--dump-logits", path,
                     "--precision", precision, timeout_s=500)
            got = dumped_rows(path, want)
        self.assertEqual(sorted(got), sorted(want))
        far = sorted(distance(got[row], want[row]) for row in want)
        print(f"{precision}: |logits - transformers| / |transformers| of {len(far)} rows: median {far[len(far) // 2]:.2e}, largest {far[-1]:.2e}")
        return far

    def test_logits_bf16(self):
        """Rounding nothing but q and k to bf16 moves single rows by up to 2.5e-2 in transformers too: the median is what can be asked for."""
        far = self.logits("bf16")
        self.assertLess(far[len(far) // 2], 1e-2)
        self.assertLess(far[-1], 5e-2)

    def test_logits_float32(self):
        self.assertLess(self.logits("float32")[-1], 1e-4)

    def test_greedy_tokens_float32(self):
        """Equal to the last token, or the first difference stands where the reference's two best are nearly equal."""
        with Cluster("--precision", "float32", "--sequences-max", 16, workers=1) as c:
            def ask(p):
                out, _ = run("generate", "--grpc", c.grpc, "--raw", "--json", "--prompt", p["prompt"], "--max-tokens",
                             len(p["greedy"]), "--ignore-eos", timeout_s=500)
                return json.loads(out)["tokens"]

            with concurrent.futures.ThreadPoolExecutor(len(WANT["prompts"])) as pool:
                answers = list(pool.map(ask, WANT["prompts"]))
        equal = 0
        for p, tokens in zip(WANT["prompts"], answers):
            self.assertEqual(len(tokens), len(p["greedy"]))
            first = next((i for i, (a, b) in enumerate(zip(tokens, p["greedy"])) if a != b), None)
            equal += first is None
            if first is not None:
                print(f"{p['prompt']!r}: token {first} differs, gap {p['gaps'][first]}")
                self.assertLess(p["gaps"][first], 1e-3)
        print(f"{equal} of {len(answers)} answers equal to the last of their tokens")

    def test_perplexity(self):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as prompt:
            prompt.write(text())
            prompt.flush()
            o = generate("--workers", 2, "--raw", "--prompt-file", prompt.name, "--max-tokens", 0, "--score", "--model", MODEL,
                         timeout_s=500)
        scored = o["prompt_logprobs"][: WANT["text_tokens"] - 1]
        perplexity = math.exp(-sum(scored) / len(scored))
        print(f"perplexity {perplexity:.4f}, transformers {WANT['perplexity']:.4f}")
        self.assertLess(abs(perplexity / WANT["perplexity"] - 1), 0.005)


main()
