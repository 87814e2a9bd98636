"""
`longspan eval`: the same perplexity as `generate --score` finds, no difference where there can be none, tasks that the constructed model solves, what an
interruption leaves, and what is refused.
"""

import json
import math
import os
import random
import signal
import subprocess
import tempfile
import unittest
import xml.dom.minidom

from cluster import LONGSPAN, ROOT, generate, main, run


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
            self.assertEqual(sorted(row), ["config", "decode_tps", "intervals", "kl", "kv_bytes_per_token", "offered", "peak_bytes",
                                           "ppl", "ppl_ratio", "prefill_tps", "sketch_bytes_per_token", "tasks", "top1"])
            self.assertTrue(row["offered"])
            self.assertEqual(row["tasks"], {})
            for name in ("ppl", "kl", "top1", "ppl_ratio"):
                low, high = row["intervals"][name]
                self.assertTrue(low <= row[name] <= high, (name, row))
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
        self.assertEqual(rows[0][1], rows[1][1])
        self.assertEqual(rows[0][2:], ["0", "1.0000"])
        self.assertEqual((rows[1][2], rows[1][3].split()[0]), ("0", "1.0000"))

    VARIANTS = "random:layers=2,d=128,heads=4,kv=2,head_dim=64,ff=256,vocab=512,positions=1024,codec=bf16:2:5"

    def variants(self, *configs, **flags):
        named = [x for name, value in flags.items() for x in ("--" + name, value)]
        return run("eval", "--model", self.VARIANTS, "--text", self.text, "--length", "601", "--quick", "--configs", ",".join(configs),
                   *named)

    def test_not_offered(self):
        """By itself as it is served, bit for bit; a window loses less; such rows say what they are, everywhere."""
        svg = os.path.join(self.directory.name, "variants.svg")
        configs = ["bf16:dense", "kivi2:dense", "kivi2+w0:dense", "kivi2+w512:dense", "kivi2+w576+late:dense", "kivi2-64:dense"]
        out = json.loads(run("eval", "--model", self.VARIANTS, "--text", self.text, "--length", "601", "--quick", "--json", "--svg", svg,
                             "--tasks", "passkey@512", "--samples", "1", "--configs", ",".join(configs))[0])
        plain, served, same, window, whole, form = out["rows"]
        self.assertEqual([row["offered"] for row in out["rows"]], [True, True, False, False, False, False])
        self.assertEqual([same[name] for name in ("ppl", "kl", "top1", "kv_bytes_per_token")],
                         [served[name] for name in ("ppl", "kl", "top1", "kv_bytes_per_token")])
        self.assertTrue(0 < window["kl"] < served["kl"], (window, served))
        self.assertEqual((whole["kl"], whole["ppl"]), (0, plain["ppl"]))  # the window is all there is
        # 9 blocks before the row's own, 8 of them in the window; 8 groups of 4 bytes, or 4, a head where KIVI's groups are of 64
        self.assertEqual((plain["kv_bytes_per_token"], served["kv_bytes_per_token"]), (1024, 192))
        self.assertEqual(window["kv_bytes_per_token"], -(-(8 * 1024 + 192) // 9))
        self.assertEqual(form["kv_bytes_per_token"], 176)
        for name in ("peak_bytes", "prefill_tps", "decode_tps"):
            self.assertIsNone(same[name])
        self.assertEqual((same["tasks"], served["tasks"]["passkey@512"] is None), ({"passkey@512": None}, False))
        texts = [node.firstChild.data for node in xml.dom.minidom.parse(svg).getElementsByTagName("text")]
        for config in configs:
            name = config + ("" if config in configs[:2] else " (not offered)")
            self.assertTrue(any(name in text for text in texts), (name, texts))
        table = self.variants("kivi4:dense", "kivi4+w64:dense")[0]
        self.assertIn("| kivi4+w64:dense (not offered) |", table)
        self.assertIn("| kivi4:dense |", table)

    COPY = ("eval", "--model", "constructed:copy", "--corpus", "CORPUS", "--quick", "--length", "1024")

    def corpus(self):
        """Two files and a part that is held out, where no window may come from."""
        path = os.path.join(self.directory.name, "corpus")
        os.makedirs(os.path.join(path, "held-out"), exist_ok=True)
        r = random.Random(3)
        for name in ("one.txt", "two.txt", "held-out/three.txt", "four.dat"):
            with open(os.path.join(path, name), "w") as f:
                for _ in range(3000):
                    f.write(" ".join("".join(r.choices("abcdefgh", k=5)) for _ in range(8)) + "\n")
        return [*self.COPY[:4], path, *self.COPY[5:]]

    def test_tasks_sketches_and_plot(self):
        svg = os.path.join(self.directory.name, "plot.svg")
        configs = ["bf16:dense", "bf16:quest@0.5", "int4-rot:sketch-walk@0.5"]
        out, err = run(*self.corpus(), "--seed", 7, "--configs", ",".join(configs), "--tasks", "copy@4096,passkey", "--samples", 3,
                       "--json", "--svg", svg)
        out = json.loads(out)
        self.assertEqual((out["complete"], out["samples"], out["seed"], len(out["rows"])), (True, 3, 7, 3))
        dense, quest, walk = out["rows"]
        self.assertEqual(dense["tasks"], {"copy@4096": 1, "passkey": 1})
        self.assertEqual(walk["tasks"]["copy@4096"], 1)  # its needles are made for it
        self.assertEqual(dense["intervals"]["tasks"]["passkey"][1], 1)
        # a block and sparse layer: quest's bounds are 256 bytes for this one KV head of 64; sketch-walk's 512 and what it walked over
        self.assertEqual(dense["sketch_bytes_per_token"], 0)
        self.assertTrue(2 * 256 / 64 <= quest["sketch_bytes_per_token"] <= 2.5 * 2 * 256 / 64, quest)
        self.assertTrue(2 * 512 / 64 <= walk["sketch_bytes_per_token"] <= 3 * 2 * 512 / 64, walk)
        self.assertLess(walk["kv_bytes_per_token"], quest["kv_bytes_per_token"])
        self.assertIn("1 of 3 configurations", err)
        self.assertIn("s more", err)
        plot = xml.dom.minidom.parse(svg)
        self.assertEqual(len(plot.getElementsByTagName("circle")), 6)
        again = json.loads(run(*self.corpus(), "--seed", 7, "--json")[0])["rows"][0]
        other = json.loads(run(*self.corpus(), "--seed", 8, "--json")[0])["rows"][0]
        self.assertEqual(again["ppl"], dense["ppl"])
        self.assertNotEqual(other["ppl"], dense["ppl"])

    def test_interrupted(self):
        """What was reached is told: the rows that ended, and that this is not all."""
        configs = ",".join(["bf16:dense", "int8:dense", "bf16:quest"] * 12)
        p = subprocess.Popen([LONGSPAN, *self.corpus(), "--json", "--configs", configs], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
        for line in p.stderr:
            if "2 of 36" in line:
                p.send_signal(signal.SIGTERM)
                break
        out, _ = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 1)
        out = json.loads(out)
        self.assertFalse(out["complete"])
        self.assertIn(len(out["rows"]), (2, 3))
        self.assertEqual([row["config"] for row in out["rows"]][:2], ["bf16:dense", "int8:dense"])

    def test_refusals(self):
        for flags, named in ((["--text", self.text, "--configs", "bf15:dense"], "kv-codec"),
                             (["--text", self.text, "--configs", "bf16:thick"], "selector"),
                             (["--text", self.text, "--configs", "bf16:dense:q3"], "weights"),
                             (["--text", self.text, "--configs", "bf16"], "--configs"),
                             (["--text", self.text, "--configs", "kivi2+w100:dense"], "multiple of 64"),
                             (["--text", self.text, "--configs", "kivi2+w64:quest@0.5"], "selector dense"),
                             (["--text", self.text, "--configs", "bf16+w64:dense"], "bf16 has nothing"),
                             (["--text", self.text, "--configs", "nomad+w64:dense"], "generated rows of nomad"),
                             (["--text", self.text, "--precision", "float32", "--configs", "int4:dense"], "precision bf16"),
                             (["--text", self.text, "--tasks", "niah"], "--tasks"),
                             (["--text", self.text, "--tasks", "vt@9"], "--tasks"),
                             (["--text", self.text, "--seed", "x"], "--seed")):
            self.assertIn(named, run("eval", *flags, check=2)[1])
        for flags, named in ((["--text", self.text, "--length", "5000"], "fewer than the 5000"),
                             (["--text", self.text, "--length", "100"], "--length"),
                             (["--text", self.text, "--length", "200", "--tasks", "vt@100000"], "context is 8192"),
                             (["--text", self.text, "--length", "200", "--tasks", "cwe@256"], "does not fit"),
                             (["--text", "/nowhere"], "/nowhere"),
                             (["--corpus", "/nowhere"], "scripts/corpus.sh")):
            self.assertIn(named, run("eval", *flags, check=1)[1])


if __name__ == "__main__":
    main()
