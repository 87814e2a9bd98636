"""`longspan pack`: sizes, the same answers from bf16, lossless-fast and df11, going on after SIGKILL, and what it does not overwrite."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import tempfile
import unittest

from cluster import LONGSPAN, MODEL, generate, main, run, wait_for


def pack(model, weights, out, **kw):
    return json.loads(run("pack", "--model", model, "--weights", weights, "--out", out, "--json", **kw)[0])


def said(model, *args):
    answer = generate("--model", model, "--workers", "2", "--score", *args)
    return {k: answer[k] for k in ("text", "tokens", "logprobs", "prompt_logprobs", "finish_reason")}


class Pack(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="longspan-pack-")
        cls.bf16, cls.fast, cls.df11 = (os.path.join(cls.directory, name) for name in ("bf16", "fast", "df11"))
        cls.sizes = {w: pack(MODEL, w, out) for w, out in (("bf16", cls.bf16), ("lossless-fast", cls.fast), ("df11", cls.df11))}

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.directory)

    def test_sizes(self):
        plain, fast = self.sizes["bf16"], self.sizes["lossless-fast"]
        self.assertLessEqual(fast["directory_bytes"], 0.72 * plain["directory_bytes"])
        self.assertEqual(fast["parameters"], plain["parameters"])
        self.assertLessEqual(self.sizes["df11"]["directory_bytes"], 0.70 * plain["directory_bytes"])
        for size, out in ((plain, self.bf16), (fast, self.fast), (self.sizes["df11"], self.df11)):
            self.assertEqual(size["directory_bytes"], sum(e.stat().st_size for e in os.scandir(out)))
            self.assertEqual(size["tensors_resumed"], 0)
        kinds = {t["kind"]: t for t in fast["tensors"]}
        self.assertEqual(kinds["ffn_up"]["codec"], "lossless-fast")
        self.assertEqual(kinds["ffn_norm"]["codec"], "F32")
        self.assertLess(kinds["embedding"]["bits_per_weight"], 11.6)

    def test_same_answers(self):
        prompts = (("--prompt", "Tell me about bread.", "--max-tokens", "24"),
                   ("--raw", "--prompt", "One two three four five six seven. " * 60, "--max-tokens", "6"),
                   ("--prompt", "Name a colour.", "--max-tokens", "12", "--temperature", "1", "--seed", "7"))
        for args in prompts:
            plain = said(self.bf16, *args)
            self.assertEqual(plain, said(self.fast, *args), args)
            self.assertEqual(plain, said(self.df11, *args), args)

    def test_goes_on_after_a_kill(self):
        out = os.path.join(self.directory, "killed")
        journal = os.path.join(out + ".partial", "journal")
        writer = subprocess.Popen([LONGSPAN, "pack", "--model", MODEL, "--out", out, "--json"], stdout=subprocess.DEVNULL)
        try:
            wait_for("tensors in the journal", lambda: os.path.exists(journal) and os.path.getsize(journal) > 1000)
            busy = run("pack", "--model", MODEL, "--out", out, check=1)[1]
            self.assertIn("another process", busy)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        self.assertFalse(os.path.exists(out))
        self.assertGreater(pack(MODEL, "lossless-fast", out)["tensors_resumed"], 0)
        self.assertFalse(os.path.exists(out + ".partial"))
        names = sorted(os.listdir(self.fast))
        self.assertEqual(sorted(os.listdir(out)), names)
        self.assertEqual(filecmp.cmpfiles(self.fast, out, names, shallow=False)[0], names)

    def test_overwrites_nothing_else(self):
        self.assertIn("as bf16", run("pack", "--model", MODEL, "--out", self.bf16, check=1)[1])
        mine = os.path.join(self.directory, "mine")
        os.mkdir(mine)
        self.assertIn("no finished pack", run("pack", "--model", MODEL, "--out", mine, check=1)[1])
        os.rmdir(mine)
        run("pack", "--model", MODEL, check=2)
        run("pack", "--model", MODEL, "--weights", "q3", "--out", mine, check=2)
        self.assertFalse(os.path.exists(mine))

    def test_flipped_bit_is_found(self):
        bad = os.path.join(self.directory, "bad")
        shutil.copytree(self.fast, bad)
        with open(os.path.join(bad, "weights.bin"), "r+b") as f:
            f.seek(90_000_000)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1]))
        up = subprocess.Popen([LONGSPAN, "up", "--model", bad, "--workers", "1", "--http", "127.0.0.1:0", "--grpc",
                               "127.0.0.1:0", "--restarts-max", "0", "--state", os.path.join(self.directory, "state")],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            log = up.communicate(timeout=60)[0].decode()
        finally:
            up.kill()
        self.assertIn("checksum", log)
        self.assertNotEqual(up.returncode, 0)


if __name__ == "__main__":
    main()
