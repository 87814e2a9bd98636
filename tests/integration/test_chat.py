"""`longspan chat`: at a terminal of its own (a pty) and from a pipe."""

import json
import os
import pty
import re
import select
import signal
import tempfile
import time
import unittest

import cluster
from cluster import Cluster, run


class Terminal:
    """longspan chat on a pseudo-terminal."""

    def __init__(self, *flags):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(cluster.LONGSPAN, [cluster.LONGSPAN, "chat", *map(str, flags)])
        self.text = ""

    def read(self, seconds=0.1):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                self.text += os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:  # the other side is gone
                time.sleep(0.02)

    def wait(self, pattern, timeout_s=60):
        until = time.monotonic() + timeout_s
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, f"no {pattern!r} in {self.text!r}"
            self.read()
        self.text = self.text[re.search(pattern, self.text).end() :]

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self, timeout_s=60):
        """-> its exit status"""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"chat did not end: {self.text!r}")


class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--threads", 1, workers=1)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def piped(self, text, *flags):
        return run("chat", "--grpc", self.cluster.grpc, "--max-tokens", 12, *flags, stdin=text.encode())

    def test_pipe(self):
        """The answers are those of the API for the same messages, history and all; /save keeps them; // escapes a slash."""
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "c.json")
            out, err = self.piped(f"Name a colour.\nAnother one.\n/save {path}\n/reset\n//etc is a directory.\n/save {path}2\n/quit\nnever read\n",
                                  "--system", "You are brief.")
            with open(path, encoding="utf-8") as f:
                first = json.load(f)
            with open(path + "2", encoding="utf-8") as f:
                second = json.load(f)
        self.assertEqual([m["role"] for m in first], ["system", "user", "assistant", "user", "assistant"])
        self.assertEqual([m["content"] for m in first if m["role"] == "user"], ["Name a colour.", "Another one."])
        self.assertEqual([m["content"] for m in second][:2], ["You are brief.", "/etc is a directory."])
        self.assertEqual(out, "".join(m["content"] + "\n" for m in (*first, *second) if m["role"] == "assistant"))
        for n in (2, 4):
            answer = self.cluster.post("/v1/chat/completions", {"messages": first[:n], "max_tokens": 12, "temperature": 0})
            self.assertEqual(answer["choices"][0]["message"]["content"], first[n]["content"])

    def test_commands(self):
        out, err = self.piped("/nonsense\n/save\n/save /nowhere/x\n/system Speak French.\n\n   \n/help\n")
        self.assertEqual(out, "")
        for says in ("no command '/nonsense'", "/save: a file is missing", "/nowhere/x", "(set;", "/quit"):
            self.assertIn(says, err)

    def test_nobody_there(self):
        out, err = run("chat", "--grpc", "127.0.0.1:1", stdin=b"hello\n")
        self.assertEqual(out, "")
        self.assertIn("127.0.0.1:1", err)

    def test_used_wrongly(self):
        self.assertIn("--temperature", run("chat", "--temperature", "x", check=2)[1])
        self.assertIn("no argument", run("chat", "hello", check=2)[1])

    def test_terminal(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "c.json")
            t = Terminal("--grpc", self.cluster.grpc, "--max-tokens", 8)
            t.wait(r"> ")
            t.type("Name a colouur\b\br.\r")  # edited
            t.wait(r"\r\n\w[^\r]*\r\n> ")
            t.type(f"/save {path}\r")
            t.wait(r"\(saved\)[\s\S]*> ")
            t.type("/quit\r")
            self.assertEqual(t.end(), 0)
            with open(path, encoding="utf-8") as f:
                self.assertEqual(json.load(f)[0], {"role": "user", "content": "Name a colour."})

    def test_cancel(self):
        """Ctrl-C ends the answer and the request, and the conversation goes on; Ctrl-D leaves."""
        t = Terminal("--grpc", self.cluster.grpc, "--max-tokens", 4000)
        t.wait(r"> ")
        t.type("Count from one to a thousand in words.\r")
        cluster.wait_for("the request", lambda: self.cluster.status()["scheduler"]["running"] == 1)
        t.wait(r"words\.\S*\r\n[\s\S]*\w")
        os.kill(t.pid, signal.SIGINT)
        t.wait(r"\(cancelled\)[\s\S]*> ", 60)
        cluster.wait_for("the end of the request", lambda: self.cluster.status()["scheduler"]["running"] == 0)
        t.type("\x04")
        self.assertEqual(t.end(), 0)

    def test_interrupt_twice(self):
        t = Terminal("--grpc", self.cluster.grpc)
        t.wait(r"> ")
        for _ in range(2):
            time.sleep(0.3)
            try:
                os.kill(t.pid, signal.SIGINT)
            except ProcessLookupError:
                pass
        self.assertEqual(t.end(), 0)


class Local(unittest.TestCase):
    def test_local(self):
        out, _ = run("chat", "--local", "--workers", 1, "--max-tokens", 4, stdin=b"Hello\n")
        self.assertTrue(out.strip())


if __name__ == "__main__":
    cluster.main()
