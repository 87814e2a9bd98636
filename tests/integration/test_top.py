"""`longspan top`: one screen as text, and the live one on a pseudo-terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
import unittest

import cluster
from cluster import Cluster, run


class Top(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--threads", 1, workers=2)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def flags(self):
        return ["--grpc", self.cluster.grpc, "--http", f"127.0.0.1:{self.cluster.port}"]

    def test_once(self):
        self.cluster.complete("One two three", 8)
        out, _ = run("top", "--once", "--interval-ms", 200, *self.flags())
        status = self.cluster.status()
        self.assertNotIn("\033", out)
        self.assertIn(status["model"], out)
        self.assertRegex(out, r"requests +0 running, 0 waiting")
        self.assertIn(f"{status['scheduler']['completion_tokens']} generated,", out)
        self.assertRegex(out, r"TTFT +p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms")
        for w in status["workers"]:
            self.assertRegex(out, rf"(?m)^{w['id']} +{w['pid']} +ready +{re.escape(w['address'])} +\d+/\d+/{w['n_blocks']} ")

    def test_rates(self):
        """While a request runs, tokens per second are about what it gets."""
        s = self.cluster.stream("/v1/completions", {"prompt": "Count", "max_tokens": 2000, "ignore_eos": True})
        next(iter(s))
        out, _ = run("top", "--once", "--interval-ms", 500, *self.flags())
        s.abort()
        self.assertRegex(out, r"requests +1 running")
        self.assertGreater(float(re.search(r"tokens +([\d.]+) generated/s", out)[1]), 0)
        self.cluster.check_quiet()

    def test_live(self):
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(cluster.LONGSPAN, [cluster.LONGSPAN, "top", "--interval-ms", "200", *self.flags()])
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 160, 0, 0))
        text = ""

        def wait(pattern, timeout_s=15):
            nonlocal text
            until = time.monotonic() + timeout_s
            while not re.search(pattern, text):
                self.assertLess(time.monotonic(), until, f"no {pattern!r} in {text!r}")
                if select.select([fd], [], [], 0.1)[0]:
                    text += os.read(fd, 65536).decode()

        wait(r"\x1b\[\?1049h[\s\S]*ready[\s\S]*q quits[\s\S]*\x1b\[H[\s\S]*q quits")
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 3, 40, 0, 0))
        os.kill(pid, signal.SIGWINCH)
        time.sleep(0.5)
        text = ""
        wait(r"\x1b\[H([\s\S]*?)\x1b\[J[\s\S]*\x1b\[H([\s\S]*?)\x1b\[J")
        screen = re.findall(r"\x1b\[H([\s\S]*?)\x1b\[J", text)[-1].replace("\x1b[K", "").split("\r\n")
        self.assertEqual(len(screen), 3)
        self.assertTrue(all(len(line) <= 40 for line in screen), screen)
        os.write(fd, b"q")
        wait(r"\x1b\[\?1049l")  # the screen is given back
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        os.close(fd)

    def test_used_wrongly(self):
        self.assertIn("--once", run("top", *self.flags(), check=2, stdin=b"")[1])
        self.assertIn("127.0.0.1:1", run("top", "--once", "--grpc", "127.0.0.1:1", check=1)[1])
        self.assertIn("no argument", run("top", "x", check=2)[1])


if __name__ == "__main__":
    cluster.main()
