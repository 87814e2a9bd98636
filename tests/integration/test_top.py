"""`longspan top`: one screen as text, and the live one on a pseudo-terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import time
import unittest

import cluster
from cluster import Cluster, run, wait_for


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

    def test_status(self):
        """Every worker's place in the cluster, as JSON and as text; what top shows is the same."""
        self.cluster.complete("One two three", 4)
        pids = set(self.cluster.processes())
        out, _ = run("status", "--grpc", self.cluster.grpc)
        top, _ = run("top", "--once", "--interval-ms", 100, *self.flags())
        status = self.cluster.status()
        self.assertEqual((status["role"], status["ready"]), ("leader", True))
        self.assertIn("coordinator leader", out)
        self.assertIn("coordinator leader", top)
        scheduler = status["scheduler"]
        self.assertEqual((scheduler["running"], scheduler["waiting"], scheduler["waited_ms"], scheduler["stalled_ms"]), (0, 0, 0, 0))
        self.assertGreater(scheduler["kv_bytes_dense"], 0)
        stepped = 0
        for w in status["workers"]:
            self.assertIn(w["pid"], pids)
            self.assertEqual((w["device"], w["host"], w["leaves"], w["sequences"], w["dropped"]), ("cpu", socket.gethostname(), 0, 0, 0))
            stepped += w["step_age_ms"] >= 0
            step = r"[\d.]+s" if w["step_age_ms"] >= 0 else "-"
            self.assertRegex(out, rf"(?m)^{w['id']} +{w['pid']} +ready +{re.escape(w['address'])} +cpu +{w['group']} +{w['term']} +{w['epoch']} +"
                                  rf"\d+/{w['n_blocks']} +0 +{step} ")
            self.assertRegex(top, rf"(?m)^{w['id']} .*[.#+]{{20}} +0 +{w['term']} +{w['epoch']} +{step} ")
        self.assertGreater(stepped, 0)

    def test_logs(self):
        """Lines of all processes as objects, with what the text has."""
        with Cluster("--threads", 1, "--log-format", "json", "--log-level", "info", workers=1) as c:
            c.complete("One two three", 2)
        lines = [json.loads(line) for line in c.log_lines if line.startswith("{")]
        for line in lines:
            self.assertEqual(set(line) - {"request"}, {"time", "level", "process", "pid", "message"})
            self.assertRegex(line["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertGreaterEqual(len({line["pid"] for line in lines}), 2)
        self.assertIn("worker", {line["process"] for line in lines})
        self.assertTrue([line for line in lines if re.search(r"worker 0 ready: .* blocks of", line["message"])])

    def test_request_ids(self):
        """A request's id, its client's or its answer's, is in the lines of the coordinator and of every worker that had a part of it."""
        with Cluster("--threads", 1, "--log-format", "json", "--log-level", "debug", "--spread-min-tokens", 1, workers=2) as c:
            long = {"prompt": [5 + i % 900 for i in range(1200)], "max_tokens": 4, "ignore_eos": True}
            _, headers, data = c.http("POST", "/v1/completions", long, headers={"X-Request-Id": "trace-42/a"})
            self.assertEqual(headers["X-Request-Id"], "trace-42/a")
            made = c.post("/v1/completions", long)["id"]
            refused = c.http("POST", "/v1/completions", long, headers={"X-Request-Id": "no spaces: \"here\""})
            self.assertEqual((refused[0], refused[1]["X-Request-Id"]), (200, refused[2]["id"]))
            wait_for("they are forgotten", lambda: sum("is forgotten" in line for line in c.log_lines) >= 3 * 2, 60)
        lines = [json.loads(line) for line in c.log_lines if line.startswith("{")]
        for request in ("trace-42/a", made):
            mine = [line for line in lines if line.get("request") == request]
            self.assertEqual(len({line["pid"] for line in mine if line["process"] == "worker" and re.search(r"sequence \d+ begins: ", line["message"])}), 2)
            self.assertTrue([line for line in mine if line["process"] == "coordinator" and " ends: ok" in line["message"]])
            self.assertLess(len(mine), 20)
        self.assertTrue([line for line in lines if line["message"] == f"request trace-42/a: its answer is {data['id']}"])

    def test_leaves(self):
        """While a request runs, its leaves are at the workers that read them, and its home is one of them."""
        s = self.cluster.stream("/v1/completions", {"prompt": [5 + i % 900 for i in range(3000)], "max_tokens": 500, "ignore_eos": True})
        next(iter(s))
        workers = self.cluster.status()["workers"]
        s.abort()
        self.assertEqual(sum(w["leaves"] for w in workers), 12)  # 256 positions each
        self.assertEqual(sum(w["sequences"] for w in workers), 1)
        self.assertEqual(len({w["group"] for w in workers}), 1)  # spread: they step together
        self.cluster.check_quiet()
        self.assertEqual(sum(w["leaves"] for w in self.cluster.status()["workers"]), 0)

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

        def wait(pattern, also=lambda: True, timeout_s=60):
            nonlocal text
            since = time.monotonic()
            while not re.search(pattern, text) or not also():
                self.assertLess(cluster.elapsed(since), timeout_s, f"no {pattern!r} in {text!r}")
                if select.select([fd], [], [], 0.1)[0]:
                    text += os.read(fd, 65536).decode()

        wait(r"\x1b\[\?1049h[\s\S]*ready[\s\S]*q quits[\s\S]*\x1b\[H[\s\S]*q quits")
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 3, 40, 0, 0))
        os.kill(pid, signal.SIGWINCH)
        text = ""

        def screen():
            return re.findall(r"\x1b\[H([\s\S]*?)\x1b\[J", text)[-1].replace("\x1b[K", "").split("\r\n")

        wait(r"\x1b\[H([\s\S]*?)\x1b\[J", lambda: len(screen()) == 3)  # until then what it drew before
        screen = screen()
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
