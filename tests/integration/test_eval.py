"""`longspan eval`: the same perplexity as `generate --score` finds, no difference where there can be none, and what is refused."""

import json
import math
import os
import tempfile
import unittest

from cluster import ROOT, generate, main, run


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(prefix="longspan-eval-test-")
        cls.text = os.path.join(cls.directory.name, "text")
        with open(os.path.join(ROOT, "LICENSE")) as source, open(cls.text, "w") as f:
            f.write(source.read()[:1500])

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def test_rows(self):
        # the window is the whole text, so that generate can score the same
        scored = generate("--raw", "--prompt-file", self.text, "--score", "--max-tokens", "0")
        n = scored["usage"]["prompt_tokens"]
        self.assertGreater(n, 256)
        configs = ["bf16:dense", "bf16:dense:bf16"]
        before = set(os.listdir(tempfile.gettempdir()))
        out = json.loads(run("eval", "--text", self.text, "--length", n, "--quick", "--json", "--configs",
                             ",".join(configs))[0])
        self.assertEqual((out["length"], out["windows"], out["rows_scored"]), (n, 2, 128))
        self.assertEqual([row["config"] for row in out["rows"]], configs)
        plain, packed = out["rows"]
        self.assertEqual((plain["kl"], plain["top1"]), (0, 1))
        want = math.exp(-sum(scored["prompt_logprobs"][-64:]) / 64)
        self.assertAlmostEqual(plain["ppl"] / want, 1, places=4)
        # rounding the weights to bf16 moves the predictions, a little
        self.assertTrue(0 < packed["kl"] < 0.01, packed)
        self.assertGreater(packed["top1"], 0.9)
        self.assertNotEqual(packed["ppl"], plain["ppl"])
        for row in out["rows"]:
            self.assertEqual(sorted(row), ["config", "decode_tps", "kl", "kv_bytes_per_token", "peak_bytes", "ppl", "prefill_tps",
                                           "sketch_bytes_per_token", "top1"])
            self.assertEqual((row["kv_bytes_per_token"], row["sketch_bytes_per_token"]), (23040, 0))
            self.assertGreater(row["peak_bytes"], 100 << 20)
            self.assertTrue(row["prefill_tps"] > 0 and row["decode_tps"] > 0)
        left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("longspan-eval-")}
        self.assertFalse(left - {os.path.basename(self.directory.name)})

    def test_lossless_is_bf16(self):
        model = "random:layers=2,d=128,heads=4,kv=2,head_dim=32,ff=256,vocab=512,positions=1024,codec=bf16:2:5"
        args = ("eval", "--model", model, "--text", self.text, "--length", "300", "--quick", "--configs")
        table = run(*args, "bf16:dense,bf16:dense:lossless-fast")[0]
        rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in table.splitlines() if line.startswith("| bf16")]
        self.assertEqual([row[0] for row in rows], ["bf16:dense", "bf16:dense:lossless-fast"])
        self.assertEqual(rows[0][1:], rows[1][1:])
        self.assertEqual(rows[1][2:], ["0", "1.0000"])

    def test_refusals(self):
        for flags, named in ((["--configs", "bf16:dense"], "--text"), (["--text", self.text, "--configs", "bf15:dense"], "kv-codec"),
                             (["--text", self.text, "--configs", "bf16:thick"], "selector"),
                             (["--text", self.text, "--configs", "bf16:dense:q3"], "weights"),
                             (["--text", self.text, "--configs", "bf16"], "--configs"),
                             (["--text", self.text, "--seed", "x"], "--seed")):
            self.assertIn(named, run("eval", *flags, check=2)[1])
        for flags, named in ((["--text", self.text, "--length", "5000"], "fewer than the 5000"),
                             (["--text", self.text, "--length", "100"], "--length"),
                             (["--text", "/nowhere"], "/nowhere")):
            self.assertIn(named, run("eval", *flags, check=1)[1])


if __name__ == "__main__":
    main()
