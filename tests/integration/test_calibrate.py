"""`longspan calibrate` and the KV codecs that need it: the same file for the same seed, served by several workers as by one, and what is refused."""

import array
import json
import os
import random
import shutil
import subprocess
import tempfile
import unittest

from cluster import LONGSPAN, ROOT, generate, main, run

SHAPE = "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=1024:2:5"


def calibrate(model, *args, **kw):
    return json.loads(run("calibrate", "--model", model, "--json", "--threads", "2", *args, **kw)[0])


class Calibrate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="longspan-calibrate-")
        cls.model = os.path.join(cls.directory, "model")
        cls.text = os.path.join(cls.directory, "text")
        run("pack", "--model", SHAPE, "--weights", "as-is", "--out", cls.model)
        with open(os.path.join(ROOT, "LICENSE")) as source, open(cls.text, "w") as f:
            f.write(source.read()[:4000])

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.directory)

    def made(self):
        there = os.path.join(self.model, "calibration")
        return sorted(os.listdir(there)) if os.path.isdir(there) else []

    def forget(self):
        shutil.rmtree(os.path.join(self.model, "calibration"), ignore_errors=True)

    def refused(self, *args, status=1):
        return subprocess.run([LONGSPAN, *args], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    def test_made_and_served(self):
        self.forget()
        missing = self.refused("generate", "--local", "--model", self.model, "--kv-codec", "cq-2b", "--prompt", "a", "--raw")
        self.assertNotEqual(missing.returncode, 0)
        self.assertIn(f"longspan calibrate --model {self.model} --kv-codec cq-2b --text FILE", missing.stderr)
        args = ("--text", self.text, "--tokens", "512", "--sequence", "256")
        first = calibrate(self.model, *args)
        self.assertEqual((first["codec"], first["method"], first["tokens"], first["sequence"]), ("cq-2b", "attention", 512, 256))
        self.assertEqual(self.made(), ["cq-2b-" + first["digest"][:16]])
        self.assertTrue(0 < first["keys_lost"] < 1 and 0 < first["values_lost"] < 1, first)
        again = calibrate(self.model, *args)
        self.assertEqual(again, first)
        plain = calibrate(self.model, "--kv-codec", "cq-1b", "--method", "kmeans", *args)
        self.assertEqual((plain["method"], len(self.made())), ("kmeans", 2))
        with open(self.text) as f:
            prompt = f.read()[:500]
        said = ("--model", self.model, "--raw", "--prompt", prompt, "--max-tokens", "40", "--ignore-eos", "--kv-bytes", "8M")
        for codec, each in (("cq-2b", 2 * 2 * 2 * 32 * 2 // 8), ("cq-1b", 2 * 2 * 2 * 32 // 8)):
            one, two = (generate(*said, "--kv-codec", codec, "--workers", n) for n in ("1", "2"))
            self.assertEqual((one["tokens"], one["logprobs"]), (two["tokens"], two["logprobs"]))
            self.assertEqual(one["kv_bytes_per_token"], each)
        keys = calibrate(self.model, "--kv-codec", "nomad", *args)  # of values it learns nothing
        self.assertTrue(0 < keys["keys_lost"] < 0.1 and keys["values_lost"] is None, keys)
        one, two = (generate(*said, "--kv-codec", "nomad", "--workers", n) for n in ("1", "2"))
        self.assertEqual((one["tokens"], one["logprobs"]), (two["tokens"], two["logprobs"]))
        self.assertEqual(one["kv_bytes_per_token"], 2 * 2 * (96 * 32 + 128) // 64)
        coded, open_ = (generate(*said, "--kv-codec", c, "--workers", "1", "--score") for c in ("cq-1b", "bf16"))
        self.assertNotEqual(coded["prompt_logprobs"], open_["prompt_logprobs"])  # it does lose something

    def test_channels(self):
        """double-sparsity's: learned, found, told by digest; a choice of their own, the same for any number of workers."""
        self.forget()
        said = ("--model", self.model, "--selector", "double-sparsity@0.4", "--selector-dense-layers", 1, "--selector-prompt", "sparse",
                "--raw", "--max-tokens", "40", "--ignore-eos", "--kv-bytes", "8M")
        with open(self.text) as f:
            prompt = ("--prompt", f.read()[:900])
        blocks = generate(*said, *prompt, "--workers", "1")
        missing = self.refused("generate", "--local", *map(str, said), "--prompt", "a", "--selector-channels", "calibrated")
        self.assertIn(f"longspan calibrate --model {self.model} --selector double-sparsity --text FILE", missing.stderr)
        args = ("--selector", "double-sparsity", "--text", self.text, "--tokens", "512", "--sequence", "256")
        first = calibrate(self.model, *args)
        self.assertEqual((first["codec"], first["method"], first["tokens"]), ("double-sparsity", "qk", 512))
        self.assertTrue(4 / 32 <= first["held"] < 1, first)  # no less than any four channels
        self.assertEqual(self.made(), ["double-sparsity-" + first["digest"][:16]])
        self.assertEqual(calibrate(self.model, *args), first)
        one, two = (generate(*said, *prompt, "--workers", n) for n in ("1", "2"))
        self.assertEqual((one["tokens"], one["logprobs"]), (two["tokens"], two["logprobs"]))
        self.assertNotEqual(one["logprobs"], blocks["logprobs"])
        again = generate(*said, *prompt, "--workers", "1", "--selector-channels", "block")
        self.assertEqual((again["tokens"], again["logprobs"]), (blocks["tokens"], blocks["logprobs"]))
        codec = calibrate(self.model, "--kv-codec", "cq-2b", "--method", "kmeans", *args[2:])
        wrong = self.refused("generate", "--local", *map(str, said), "--prompt", "a", "--selector-channels", codec["out"])
        self.assertIn("a calibration of cq-2b, not of double-sparsity", wrong.stderr)
        both = generate(*said, *prompt, "--workers", "1", "--kv-codec", "cq-2b", "--selector-channels", first["out"])
        self.assertEqual(len(both["tokens"]), 40)
        self.assertIn("--weights", self.refused("calibrate", "--model", self.model, "--selector", "double-sparsity", "--weights", "x").stderr)

    def test_evaluated(self):
        """Codes that are tried in one process are those that workers make: the same logits."""
        self.forget()
        calibrate(self.model, "--text", self.text, "--tokens", "3840", "--sequence", "256")
        other = os.path.join(self.directory, "other")
        with open(os.path.join(ROOT, "LICENSE")) as source, open(other, "w") as f:
            f.write(source.read()[4000:6000])
        evaluating = ("eval", "--model", self.model, "--quick", "--json", "--configs", "cq-2b:dense,cq-2b+w0:dense,cq-2b+w128+late:dense")
        out = json.loads(run(*evaluating, "--text", other, "--length", "500")[0])
        served, same, window = out["rows"]
        self.assertEqual((same["kl"], same["top1"], same["ppl"]), (0, 1, served["ppl"]))
        self.assertGreater(window["kl"], 0)
        # what it was learned from is not scored, though the file has forgotten where its text lay
        self.assertIn("was learned from", run(*evaluating, "--text", self.text, "--length", "1000", check=1)[1])

    def test_held_out(self):
        """What eval lacks it learns from CORPUS/held-out, which no window is cut from."""
        self.forget()
        corpus = os.path.join(self.directory, "corpus")
        os.makedirs(os.path.join(corpus, "held-out"))
        r = random.Random(5)
        for name, n in (("one.txt", 40000), ("held-out/two.txt", 3000)):
            with open(os.path.join(corpus, name), "w") as f:
                f.write("".join(r.choices("abcdefgh \n", k=n)))
        out, err = run("eval", "--model", self.model, "--corpus", corpus, "--length", "300", "--quick", "--json", "--configs",
                       "bf16:dense,cq-2b:dense")
        out = json.loads(out)
        self.assertIn(f"1024 tokens of {corpus}/held-out that are not scored", err)
        self.assertEqual((out["held_out"], out["complete"]), (f"{corpus}/held-out", True))
        with open(os.path.join(self.model, "calibration", self.made()[0]), "rb") as f, open(f"{corpus}/held-out/two.txt") as text:
            self.assertTrue(array.array("i", list(text.read(1000).encode())).tobytes() in f.read())

    def test_refused(self):
        self.forget()
        args = ("--text", self.text, "--tokens", "512", "--sequence", "256", "--method", "kmeans")
        first = calibrate(self.model, *args)
        calibrate(self.model, "--seed", "2", *args)
        generating = ("generate", "--local", "--model", self.model, "--kv-codec", "cq-2b", "--prompt", "a", "--raw")
        several = self.refused(*generating)
        self.assertIn("several calibrations", several.stderr)
        named = generate("--model", self.model, "--kv-codec", "cq-2b", "--calibration", first["out"], "--prompt", "a", "--raw",
                         "--max-tokens", "2", "--ignore-eos")
        self.assertEqual(len(named["tokens"]), 2)
        broken = os.path.join(self.directory, "broken")
        with open(first["out"], "rb") as f, open(broken, "wb") as out:
            data = bytearray(f.read())
            data[len(data) // 2] ^= 1
            out.write(data)
        self.assertIn("checksum", self.refused(*generating, "--calibration", broken).stderr)
        other = self.refused("generate", "--local", "--model", SHAPE + "1", "--kv-codec", "cq-2b", "--prompt", "a", "--raw",
                             "--calibration", first["out"])
        self.assertIn("a calibration of model", other.stderr)
        neither = self.refused("calibrate", "--model", self.model)
        self.assertEqual((neither.returncode, "--text or --weights" in neither.stderr), (2, True))
        short = os.path.join(self.directory, "short")
        with open(short, "w") as f:
            f.write("too short")
        self.assertIn("fewer than a sequence", self.refused("calibrate", "--model", self.model, "--text", short).stderr)


if __name__ == "__main__":
    main(needs_model=False)
