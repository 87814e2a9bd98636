"""The coordinator killed and started again: workers keep their weights and sealed blocks, say what they hold, and nothing that exists is computed again."""

import os
import signal
import unittest

import cluster
from cluster import Cluster, is_alive, prose, wait_for


def kill_coordinator(c):
    """kill -9; returns when the one that `up` starts in its place is ready, with all workers."""
    old = c.coordinator()
    os.kill(old, signal.SIGKILL)
    wait_for("a new coordinator", lambda: c.coordinator() not in (None, old))

    def ready():
        try:
            return c.http("GET", "/ready")[0] == 200
        except OSError:
            return False

    wait_for("it is ready", ready)
    c.wait_workers()


class Restart(unittest.TestCase):
    def check(self, *flags):
        prompt = prose(70, 7)
        with Cluster("--spread-min-tokens", 300, "--log-level", "info", *flags, workers=2) as c:
            want = c.complete(prompt, 80)
            n_prompt = want[2]["usage"]["prompt_tokens"]
            pids = sorted(w["pid"] for w in c.wait_workers())
            blocks = sum(w["blocks"] for w in c.workers())
            for _ in range(2):
                kill_coordinator(c)
                self.assertEqual(sorted(w["pid"] for w in c.workers()), pids)
                self.assertTrue(all(is_alive(p) for p in pids))
                # all that was sealed is cache; what was open is dropped
                held = [(w["blocks"], w["blocks_cached"]) for w in c.workers()]
                self.assertEqual([b for b, _ in held], [b for _, b in held])
                self.assertGreaterEqual(sum(b for b, _ in held), n_prompt // 64)
                self.assertLessEqual(sum(b for b, _ in held), blocks)
                again = c.complete(prompt, 80)
                self.assertEqual(again[:2], want[:2])
                self.assertEqual(again[2]["usage"]["prompt_tokens_details"]["cached_tokens"], (n_prompt - 1) // 64 * 64)
            c.check_quiet()

    def test_bf16(self):
        self.check()

    def test_coded_and_sparse(self):
        self.check("--kv-codec", "int8", "--selector", "quest")


if __name__ == "__main__":
    cluster.main()
