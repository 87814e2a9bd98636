"""`generate` and `chat` go on by themselves where the coordinator is killed in the middle of an answer: nothing is lost or repeated on the terminal."""

import json
import os
import signal
import subprocess
import unittest

import cluster
from cluster import LONGSPAN, Cluster, run, wait_for

ASK = ("--max-tokens", 220, "--temperature", 1, "--seed", 11)


class Command:
    """A command whose output is read while it runs."""

    def __init__(self, *args, stdin=b""):
        self.process = subprocess.Popen([LONGSPAN, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self.out = b""

    def read(self, n):
        while len(self.out) < n:
            more = os.read(self.process.stdout.fileno(), 4096)
            assert more, self.process.stderr.read().decode()
            self.out += more

    def end(self):
        """-> status, all of its output, errors"""
        self.out += self.process.stdout.read()
        err = self.process.stderr.read().decode()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.wait(90), self.out.decode(), err


class Reconnect(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--resume-ms", 20000, workers=1)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def disturbed(self, kills, *args, stdin=b""):
        """The coordinator is killed when so many bytes have come."""
        c = self.cluster
        command = Command(*args, stdin=stdin)
        for least in kills:
            command.read(least)
            old = c.coordinator()
            os.kill(old, signal.SIGKILL)
            wait_for("a new coordinator", lambda: c.coordinator() not in (None, old))
        status, out, err = command.end()
        self.assertEqual(status, 0, err)
        self.assertGreaterEqual(err.count("trying again"), len(kills))
        c.wait_workers()
        return out

    def test_generate(self):
        ask = ("generate", "--grpc", self.cluster.grpc, "--prompt", "Tell me of the sea.", "--ignore-eos", *ASK)
        want = run(*ask)[0]
        self.assertGreater(len(want), 300)
        self.assertEqual(self.disturbed((40, 200), *ask), want)
        # all that is told at the end, too
        whole = json.loads(run(*ask, "--json")[0])
        self.assertEqual(whole["text"] + "\n", want)
        self.assertEqual(len(whole["tokens"]), 220)

    def test_chat(self):
        ask = ("chat", "--grpc", f"127.0.0.1:1,{self.cluster.grpc}", *ASK)
        said = b"Write a long story about a river and a town.\nGo on with the story, at length.\n"
        want = run(*ask, stdin=said)[0]
        self.assertGreater(len(want), 300)
        self.assertEqual(self.disturbed((len(want) * 2 // 3,), *ask, stdin=said), want)

    def test_interrupt(self):
        """Who leaves by Ctrl-C leaves nothing that goes on without them."""
        command = Command("generate", "--grpc", self.cluster.grpc, "--prompt", "Count.", "--ignore-eos", "--max-tokens", 4000)
        command.read(20)
        command.process.send_signal(signal.SIGINT)
        self.assertEqual(command.end()[0], 1)
        self.cluster.check_quiet(30)

    def test_no_retries(self):
        """Without --retry-ms an answer ends with its connection; where nobody is, a command says so at once."""
        command = Command("generate", "--grpc", self.cluster.grpc, "--retry-ms", 0, "--prompt", "Count.", "--ignore-eos", "--max-tokens", 4000)
        command.read(20)
        old = self.cluster.coordinator()
        os.kill(old, signal.SIGKILL)
        status, _, err = command.end()
        self.assertEqual(status, 1)
        self.assertNotIn("again", err)
        wait_for("a new coordinator", lambda: self.cluster.coordinator() not in (None, old))
        self.cluster.wait_workers()
        self.assertNotIn("again", run("generate", "--grpc", "127.0.0.1:1", "--prompt", "x", check=1, timeout_s=30)[1])
        self.assertIn("HOST:PORT,HOST:PORT", run("generate", "--grpc", "127.0.0.1:1,", "--prompt", "x", check=2)[1].replace("[", "").replace("...]", ""))


if __name__ == "__main__":
    cluster.main()
