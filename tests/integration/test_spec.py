"""Against the executable specification's toy model: what tests/golden/spec/make_spec.py wrote."""

import array
import json
import os
import tempfile
import unittest

from cluster import ROOT, distance, generate, logit_rows, main

GOLDEN = os.path.join(ROOT, "tests/golden/spec")
VOCABULARY = 256
with open(os.path.join(GOLDEN, "spec.json"), encoding="utf-8") as f:
    SPEC = json.load(f)


def floats(data):
    return array.array("f", data)


def reference(name):
    with open(os.path.join(GOLDEN, name), "rb") as file:
        return {row: floats(file.read(4 * VOCABULARY)) for row in SPEC["rows"]}


class Specification(unittest.TestCase):
    def distances(self, precision, workers, golden):
        """1100 positions are four leaves and a growing one; the workers share them."""
        want = reference(golden)
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "logits")
            answer = generate("--model", os.path.join(GOLDEN, "toy"), "--workers", workers, "--precision", precision, "--raw", "--prompt",
                              SPEC["prompt"], "--max-tokens", 0, "--score", "--dump-logits", path)
            got = {position: row for position, row in logit_rows(path, VOCABULARY) if position in want}
        self.assertEqual(answer["usage"]["prompt_tokens"], len(SPEC["prompt"]))
        self.assertEqual(sorted(got), SPEC["rows"])
        far = sorted(distance(got[row], want[row]) for row in SPEC["rows"])
        print(f"{precision}, {workers} workers: |logits - specification| / |specification|: median {far[len(far) // 2]:.2e}, largest {far[-1]:.2e}")
        return far, got

    def test_float32(self):
        """Nothing rounded on either side."""
        far, got = self.distances("float32", 1, "logits_exact.bin")
        self.assertLess(far[-1], 1e-5)
        self.assertEqual(self.distances("float32", 3, "logits_exact.bin")[1], got)

    def test_bf16(self):
        """The specification rounds queries, keys and values, as we do; we also round what enters a product."""
        far, _ = self.distances("bf16", 2, "logits.bin")
        self.assertLess(far[len(far) // 2], 2e-2)


main()
