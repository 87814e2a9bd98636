"""
Prefix hits never cross configurations: one worker outlives coordinators of several codecs, selectors and densities, and is asked the same each time. The first
answer under a configuration finds nothing of those before it; the second finds its own, and says the same. And a configuration that comes back says
what it said. And workers that expect a configuration of their own.
"""

import os
import random
import subprocess
import tempfile
import unittest

import cluster
from cluster import LONGSPAN, Cluster, free_port, run, wait_for

COPY = "constructed:copy"
CONFIGURATIONS = (
    ("bf16", "dense"),
    ("int8", "dense"),
    ("int4-rot", "dense"),
    ("bf16", "quest@0.3"),
    ("bf16", "quest@0.4"),
    ("bf16", "sketch-walk@0.3"),
    ("int8", "sketch-walk@0.3"),
    ("bf16", "dense"),
)


class Apart(Cluster):
    """The same face as a cluster of `up`; the coordinator is started for each configuration, the worker once."""

    def __init__(self, directory):
        self.directory, self.log_lines, self.command = directory, [], ["longspan, coordinator and worker apart"]
        self.host, self.http_port, self.grpc_port, self.control_port = "127.0.0.1", *(free_port() for _ in range(3))
        self.port, self.grpc, self.running = self.http_port, f"127.0.0.1:{self.grpc_port}", None
        self.log = open(os.path.join(directory, "log"), "w+")
        self.worker = self.start("worker", "--control", f"127.0.0.1:{self.control_port}", "--threads", 1, "--kv-bytes", "64M")

    def start(self, *args):
        return subprocess.Popen([LONGSPAN, *map(str, args)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def serve(self, codec, selector):
        self.running = self.start("coordinator", "--http", f"127.0.0.1:{self.port}", "--grpc", self.grpc, "--control",
                                  f"127.0.0.1:{self.control_port}", "--workers", 1, "--model", COPY, "--state",
                                  os.path.join(self.directory, "state"), "--kv-codec", codec, "--selector", selector)
        wait_for("a worker", lambda: self.running.poll() is None and self.workers(), 60)

    def end(self):
        self.running.terminate()
        self.running.wait(60)

    def kill(self):
        for p in (self.running, self.worker):
            if p and p.poll() is None:
                p.kill()
                p.wait()
        self.log.close()


class Configurations(unittest.TestCase):
    def test_hits_do_not_cross(self):
        r = random.Random(4)
        text = "".join(r.choices("abcdefghij", k=1500))
        seen, pids = {}, set()
        with tempfile.TemporaryDirectory(prefix="longspan-test-") as directory:
            c = Apart(directory)
            self.addCleanup(c.kill)
            for configuration in CONFIGURATIONS:
                c.serve(*configuration)
                pids.add(c.workers()[0]["pid"])
                told = []
                for _ in range(2):
                    tokens, logprobs, answer = c.complete(text, 24)
                    told.append((tokens, logprobs))
                    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                    self.assertEqual(cached, 0 if len(told) == 1 else 1472, configuration)
                self.assertEqual(told[0], told[1], configuration)
                self.assertEqual(seen.setdefault(configuration, told[0]), told[0], configuration)
                c.end()
            self.assertEqual(pids, {c.worker.pid}, "the worker was to live on")
            # the log-probabilities tell configurations apart, or hits that crossed would not show
            self.assertGreater(len({str(told) for told in seen.values()}), 3)
            c.worker.terminate()
            self.assertEqual(c.worker.wait(60), 0)

    def test_worker_expects(self):
        """A worker that was started for a codec or a selector serves no coordinator of another, and says so."""
        with tempfile.TemporaryDirectory(prefix="longspan-test-") as directory:
            c = Apart(directory)
            self.addCleanup(c.kill)
            c.serve("int8", "quest@0.3")
            for flags, says in ((("--kv-codec", "bf16"), "kv-codec: bf16 is expected here, the coordinator serves int8"),
                                (("--selector=dense",), "selector: dense"),
                                (("--selector", "quest@0.4"), "selector: quest@0.4"),
                                (("--kv-codec", "int8", "--selector", "sketch-walk@0.3"), "selector: sketch-walk@0.3")):
                _, err = run("worker", "--control", f"127.0.0.1:{c.control_port}", "--kv-bytes", "64M", "--once", *flags, check=1, timeout_s=60)
                self.assertIn(says, err)
            self.assertEqual(len(c.workers()), 1)
            one = c.start("worker", "--control", f"127.0.0.1:{c.control_port}", "--kv-bytes", "64M", "--kv-codec", "int8",
                          "--selector", "quest@0.3")
            self.addCleanup(one.wait)
            self.addCleanup(one.kill)
            wait_for("two workers", lambda: len(c.workers()) == 2, 60)
            _, err = run("worker", "--selector", "sparse", check=2)
            self.assertIn("there are", err)
            c.end()



if __name__ == "__main__":
    cluster.main(needs_model=False)
