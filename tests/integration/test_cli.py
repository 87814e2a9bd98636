"""The program from a shell: every command, its answers and its errors."""

import array
import json
import math
import os
import re
import struct
import subprocess
import tempfile
import unittest

import cluster
from cluster import Cluster, generate, prose, run

GENERATE_FIELDS = {"text", "tokens", "logprobs", "finish_reason", "usage", "timings", "density", "kv_bytes_per_token", "workers"}
WORKER_FIELDS = {"blocks", "bytes_sent", "bytes_received", "fingerprint"}


def float32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def refused(*args, says):
    """Used wrongly: status 2, and a message that has all of `says`."""
    out, err = run(*args, check=2, timeout_s=20)
    for piece in says:
        assert piece in err, f"{args}: {err!r} does not say {piece!r}"
    assert not out, out


class Arguments(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="longspan-test-")
        self.addCleanup(self.directory.cleanup)

    def file(self, text, name="f.yaml"):
        path = os.path.join(self.directory.name, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        return path

    def test_help(self):
        out, _ = run("--help")
        commands = re.findall(r"^  (\w+) +\S", out, re.M)
        self.assertEqual(commands, ["up", "coordinator", "worker", "generate", "chat", "status", "drain", "rebalance", "top", "bench", "jobs", "batch", "model", "pack", "calibrate", "eval", "config"])
        for c in commands:
            out, _ = run(c, "--help")
            self.assertIn("usage: longspan " + c, out)
            self.assertIn("--config", out)
        self.assertIn("longspan", run("--version")[0])

    def test_used_wrongly(self):
        refused(says=["usage: longspan"])
        refused("frobnicate", says=["no command 'frobnicate'"])
        refused("up", "--frobnicate", "3", says=["--frobnicate"])
        refused("up", "--workers", "0", says=["--workers", "'0'", "from 1 to 64"])
        refused("up", "--workers", says=["--workers"])
        refused("up", "--workers=two", says=["--workers", "'two'"])
        refused("up", "--http", "localhost", says=["--http", "HOST:PORT"])
        refused("up", "extra", says=["'extra'"])
        refused("up", "--precision", "fp8", says=["--precision", "bf16|float32"])
        refused("worker", "--kv-bytes", "12Q", says=["--kv-bytes", "'12Q'"])
        refused("worker", "--bind", "127.0.0.1:9-3", says=["--bind", "127.0.0.1:9-3"])
        refused("generate", says=["--prompt"])
        refused("generate", "--prompt", "x", "--prompt-file", "y", says=["--prompt"])
        refused("generate", "--local", "--prompt", "x", "--temperature", "warm", says=["--temperature", "'warm'"])
        refused("generate", "--local", "--prompt", "x", "--seed", "-1", says=["--seed", "'-1'"])
        refused("generate", "--local", "--prompt", "x", "--top-p", "0", says=["--top-p", "'0'"])
        refused("status", "--once", says=["--once"])

    def test_configuration_file(self):
        for text, says in [("workers: 3\nfrobnicate: 1\n", [":2:", "frobnicate"]),
                           ("# first\n\nworkers: many\n", [":3:", "workers", "'many'"]),
                           ("http: here\n", [":1:", "http", "HOST:PORT"]),
                           ("workers: [1, 2]\n", [":1:", "workers"]),
                           ("workers: 1\nworkers: 2\n", [":2:", "workers"]),
                           ("workers: {a: 1\n", ["f.yaml"]),
                           ("- workers\n", ["f.yaml"]),
                           ("prefix-sharing: perhaps\n", [":1:", "prefix-sharing"])]:
            path = self.file(text)
            for command in ("config", "up"):
                refused(command, "--config", path, says=says)
        refused("config", "--config", "/nonexistent/f.yaml", says=["/nonexistent/f.yaml"])

    def test_configuration_round_trip(self):
        first, _ = run("config")
        again, _ = run("config", "--config", self.file(first))
        self.assertEqual(first, again)
        mine = self.file("workers: 5\nkv-bytes: 3G\nprefix-sharing: false\nhttp: 0.0.0.0:81\nmodel: \"a: b 'c' #d\"\n", "m.yaml")
        changed, _ = run("config", "--config", mine)
        self.assertNotEqual(first, changed)
        for line in ("workers: 5", "prefix-sharing: false"):
            self.assertIn(line, changed.splitlines())
        again, _ = run("config", "--config", self.file(changed))
        self.assertEqual(changed, again)

    def test_model(self):
        m = json.loads(run("model", "--json")[0])
        self.assertEqual((m["layers"], m["heads"], m["kv_heads"], m["head_dim"], m["positions_max"]), (30, 9, 3, 64, 8192))
        self.assertEqual(m["kv_bytes_per_token"], 23040)
        self.assertEqual(json.loads(run("model", cluster.MODEL, "--json")[0]), m)
        self.assertEqual(json.loads(run("model", "random:llama-3.1-8b:2", "--json")[0])["layers"], 2)
        self.assertEqual(json.loads(run("model", "constructed:copy", "--json")[0])["layers"], 4)
        self.assertIn("kv_bytes_per_token", run("model")[0])
        for bad in ("/nonexistent", "random:gpt-9", "constructed:nothing", "random:llama-3.1-8b:x", self.directory.name,
                    self.file("not a model", "m.gguf")):
            _, err = run("model", bad, check=1)
            self.assertIn(bad.split(":")[-1], err)

    def test_no_cluster(self):
        _, err = run("status", "--grpc", "127.0.0.1:9", check=1)
        self.assertIn("127.0.0.1:9", err)
        _, err = run("generate", "--grpc", "127.0.0.1:9", "--prompt", "x", check=1)
        self.assertIn("127.0.0.1:9", err)

    def test_no_model(self):
        for command in (["generate", "--local"], ["up", "--once", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]):
            _, err = run(*command, "--prompt", "x", "--model", "/nonexistent", check=1)
            self.assertIn("/nonexistent", err)


class Generate(unittest.TestCase):
    def test_fields(self):
        a = generate("--workers", 2, "--prompt", "Why is the sky blue?", "--max-tokens", 8)
        self.assertLessEqual(GENERATE_FIELDS, a.keys())
        self.assertNotIn("prompt_logprobs", a)
        self.assertEqual((len(a["tokens"]), len(a["logprobs"]), a["finish_reason"]), (8, 8, "length"))
        self.assertTrue(all(isinstance(t, int) for t in a["tokens"]))
        self.assertTrue(all(x <= 0 and float32(x) == float32(float(f"{x:.9g}")) for x in a["logprobs"]))
        self.assertEqual((a["density"], a["kv_bytes_per_token"], a["usage"]["completion_tokens"]), (1, 23040, 8))
        self.assertGreater(a["usage"]["prompt_tokens"], 20)  # the chat template's
        self.assertGreater(a["timings"]["total_ms"], 0)
        self.assertGreater(len(a["text"]), 8)
        for w in a["workers"]:
            self.assertLessEqual(WORKER_FIELDS, w.keys())

    def test_workers_agree(self):
        """The same bits for 1, 2, 3 workers, with a sequence of 6 leaves dealt to all of them."""
        text = prose(120, 1)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(text)
            f.flush()
            answers = [generate("--workers", n, "--raw", "--prompt-file", f.name, "--max-tokens", 16, "--ignore-eos",
                                "--spread-min-tokens", 1, "--score") for n in (1, 2, 3)]
        n_prompt = answers[0]["usage"]["prompt_tokens"]
        self.assertGreater(n_prompt, 1300)
        for n, a in zip((1, 2, 3), answers):
            for key in ("tokens", "logprobs", "prompt_logprobs", "text", "usage"):
                self.assertEqual(a[key], answers[0][key], f"{key}: {n} workers differ from one")
            self.assertEqual(len(a["prompt_logprobs"]), n_prompt - 1)
            self.assertEqual(len(a["workers"]), n)
            self.assertTrue(all(w["blocks"] > 0 for w in a["workers"]), a["workers"])
            self.assertEqual(sum(w["blocks"] for w in a["workers"]), (n_prompt + 16 - 1) // 64)
            self.assertEqual(len({w["fingerprint"] for w in a["workers"]}), 1)
            self.assertEqual(all(w["bytes_sent"] > 0 and w["bytes_received"] > 0 for w in a["workers"]), n > 1)

    def test_standard_input_and_text(self):
        a = generate("--prompt-file", "-", "--raw", "--max-tokens", 6, stdin=b"One, two, three,")
        out, _ = run("generate", "--local", "--raw", "--prompt", "One, two, three,", "--max-tokens", 6)
        self.assertEqual(out, a["text"] + "\n")

    def test_logits(self):
        """Log-softmax of what --dump-logits writes is what --score and logprobs say."""
        with tempfile.NamedTemporaryFile(suffix=".logits") as f:
            a = generate("--raw", "--prompt", "The capital of France is", "--max-tokens", 4, "--score", "--dump-logits", f.name)
            data = f.read()
        n_vocab = json.loads(run("model", "--json")[0])["vocabulary"]
        n_prompt = a["usage"]["prompt_tokens"]
        rows = {}
        for at in range(0, len(data), 4 + 4 * n_vocab):
            position, = struct.unpack_from("<I", data, at)
            self.assertNotIn(position, rows)
            rows[position] = array.array("f", data[at + 4 : at + 4 + 4 * n_vocab])
        self.assertEqual(sorted(rows), list(range(n_prompt + 4 - 1)))
        for i, (token, reported) in enumerate(zip(a["tokens"], a["logprobs"])):
            row = rows[n_prompt - 1 + i]
            top = max(row)
            self.assertEqual(row[token], top)  # greedy
            self.assertAlmostEqual(top - math.log(sum(math.exp(x - top) for x in row)) - top, reported - row[token] + row[token],
                                   delta=1e-4)
        prompt = self.prompt_ids("The capital of France is")
        self.assertEqual(len(prompt), n_prompt)
        self.assertEqual(len(a["prompt_logprobs"]), n_prompt - 1)
        for i, reported in enumerate(a["prompt_logprobs"]):
            row = rows[i]
            top = max(row)
            self.assertAlmostEqual(row[prompt[i + 1]] - top - math.log(sum(math.exp(x - top) for x in row)), reported, delta=1e-4)

    def prompt_ids(self, text):
        with Cluster(workers=1) as c:
            return c.post("/tokenize", {"prompt": text})["tokens"]

    def test_sampling(self):
        base = ["--prompt", "Tell me a story.", "--max-tokens", 20, "--temperature", 1]
        a, b = (generate(*base, "--seed", 7, "--workers", n) for n in (1, 2))
        self.assertEqual((a["tokens"], a["logprobs"]), (b["tokens"], b["logprobs"]))
        self.assertNotEqual(a["tokens"], generate(*base, "--seed", 8)["tokens"])

    def test_end_of_text(self):
        base = ["--prompt", "Answer with one word: what is the capital of France?", "--max-tokens", 60]
        a, b = generate(*base), generate(*base, "--ignore-eos")
        self.assertEqual((a["finish_reason"], b["finish_reason"]), ("stop", "length"))
        self.assertLess(len(a["tokens"]), 60)
        self.assertEqual(len(b["tokens"]), 60)
        self.assertEqual(a["tokens"], b["tokens"][: len(a["tokens"])])

    def test_score_only(self):
        a = generate("--raw", "--prompt", "The capital of France is", "--max-tokens", 0, "--score")
        self.assertEqual((a["tokens"], a["logprobs"], a["text"]), ([], [], ""))
        self.assertEqual(len(a["prompt_logprobs"]), a["usage"]["prompt_tokens"] - 1)


class Up(unittest.TestCase):
    def test_once(self):
        """What `make run ONCE=1` does."""
        out, err = run("up", "--workers", 2, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--once", "--prompt",
                       "Why is the sky blue?", "--max-tokens", 12, env=self.state())
        self.assertEqual(out, generate("--prompt", "Why is the sky blue?", "--max-tokens", 12)["text"] + "\n")
        self.assertIn("longest context", err)
        self.assertNotIn(" warn ", err)  # it stops without a murmur
        self.assertRegex(err, r"\d+ bytes a token")

    def state(self):
        directory = tempfile.TemporaryDirectory(prefix="longspan-test-")
        self.addCleanup(directory.cleanup)
        return {"XDG_STATE_HOME": directory.name}

    def test_two_clusters_and_stop(self):
        """Two clusters do not meet; status shows each its own; stopping one leaves no process and does not touch the other."""
        with Cluster(workers=2) as a:
            b = Cluster(workers=1)
            sa, sb = a.status(), b.status()
            for s, c in ((sa, a), (sb, b)):
                self.assertTrue(s["ready"])
                self.assertEqual(len(s["workers"]), c.n_workers)
                self.assertEqual({w["pid"] for w in s["workers"]}, set(cluster.children(c.up.pid)) - {c.coordinator()})
                for w in s["workers"]:
                    self.assertEqual((w["state"], w["blocks"]), ("ready", 0))
                    self.assertTrue(w["address"].startswith("127.0.0.1:"), w["address"])
                self.assertTrue(os.path.isdir(os.path.join(c.directory, "state")))
            self.assertIn("ready", run("status", "--grpc", a.grpc)[0])
            self.assertEqual(a.complete("One two three", 4)[0], b.complete("One two three", 4)[0])
            self.assertLess(b.stop(), 15)
            self.assertEqual(len(a.complete("One two three", 4)[0]), 4)
            self.assertEqual(len(a.workers()), 2)

    def test_stop_under_load(self):
        """SIGTERM while requests run and wait: they may end, but not beyond 15 s; and Ctrl-C is as good."""
        c = Cluster(workers=2)
        streams = [c.stream("/v1/completions", {"prompt": prose(4, i), "max_tokens": 4000, "ignore_eos": True}) for i in range(3)]
        for s in streams:
            next(iter(s))
        self.assertLess(c.stop(2), 15)

    def test_up_is_killed(self):
        """Nobody outlives `up`, not even when it cannot say so."""
        c = Cluster(workers=2)
        self.addCleanup(c.kill)
        pids = cluster.children(c.up.pid)
        self.assertEqual(len(pids), 3)
        c.up.kill()
        c.up.wait()
        cluster.wait_for("the end of all processes", lambda: not any(map(cluster.is_alive, pids)), 60)

    def test_state_is_locked(self):
        with Cluster(workers=1) as c:
            _, err = run("coordinator", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--control", "127.0.0.1:0", "--state",
                         os.path.join(c.directory, "state"), "--model", cluster.MODEL, check=1)
            self.assertIn("in use by another coordinator", err)

    def test_port_in_use(self):
        with Cluster(workers=1) as c:
            _, err = run("up", "--http", f"127.0.0.1:{c.port}", "--grpc", "127.0.0.1:0", "--state", os.path.join(c.directory, "s2"),
                         "--model", cluster.MODEL, check=1)
            self.assertIn(f"127.0.0.1:{c.port}", err)

    def test_make_run_defaults(self):
        """The Makefile's names reach the program, a prompt with quotes as it was written."""
        prompt = """it's "quoted", $HOME and `date`"""
        with tempfile.TemporaryDirectory() as directory:
            program = os.path.join(directory, "longspan")
            with open(program, "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
            os.chmod(program, 0o755)
            done = subprocess.run(["make", "-s", "-o", "build", "run", f"LONGSPAN={program}", "ONCE=1", "WORKERS=3", "HTTP=127.0.0.1:81", "GRPC=127.0.0.1:82"],
                                  cwd=cluster.ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PROMPT": prompt})
        arguments = done.stdout.splitlines()
        for pair in (["--workers", "3"], ["--http", "127.0.0.1:81"], ["--grpc", "127.0.0.1:82"], ["--prompt", prompt]):
            self.assertEqual(arguments[arguments.index(pair[0]) + 1], pair[1])
        self.assertIn("--once", arguments)


if __name__ == "__main__":
    cluster.main()
