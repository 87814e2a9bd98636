"""Health follows progress: /ready and gRPC's health say no when steps stop while there is work, and never because a step takes long."""

import concurrent.futures
import os
import signal
import time
import unittest

import cluster
from cluster import Cluster, command_of, elapsed, wait_for


class Health(unittest.TestCase):
    def ready(self, c):
        code, _, body = c.http("GET", "/ready", timeout_s=60)
        return code, body["status"]

    def test_steps_stop(self):
        """A worker that neither computes nor is given up: within 6 s the cluster is not ready, and it is again when steps go on."""
        with Cluster("--silence-ms", 60000, "--step-deadline-ms", 60000, "--threads", 1, workers=1) as c:
            self.assertEqual(self.ready(c), (200, "ready"))
            worker = next(p for p in c.processes() if command_of(p)[1:2] == ["worker"])
            s = c.stream("/v1/completions", {"prompt": "Count", "max_tokens": 3000, "ignore_eos": True})
            events = iter(s)
            next(events)
            os.kill(worker, signal.SIGSTOP)
            try:
                start = time.monotonic()
                wait_for("not ready", lambda: self.ready(c) == (503, "steps have stopped"), 30)
                self.assertLess(elapsed(start), 6)
                self.assertFalse(c.status()["ready"])
                self.assertGreater(c.status()["scheduler"]["stalled_ms"], 3000)
                self.assertGreater(c.metrics()["longspan_stalled_seconds"], 3)
                self.assertEqual(c.http("GET", "/health")[0], 200)
            finally:
                os.kill(worker, signal.SIGCONT)
            wait_for("ready again", lambda: self.ready(c) == (200, "ready"), 60)
            next(events)
            s.abort()
            c.check_quiet()
            self.assertEqual(c.status()["scheduler"]["stalled_ms"], 0)

    def test_idle_and_busy(self):
        """Nothing to do for longer than steps may stop, then steps of several seconds each: ready all along."""
        with Cluster("--precision", "float32", "--threads", 1, "--step-rows-max", 1024, "--step-target-ms", 0, "--step-deadline-ms", 60000,
                     workers=1) as c:
            c.complete("One two three", 2)
            time.sleep(5.5)
            self.assertEqual(self.ready(c), (200, "ready"))
            steps = c.status()["scheduler"]["steps"]
            start = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(c.complete, [5 + i % 900 for i in range(150)], 1)
                while not answer.done():
                    self.assertEqual(self.ready(c), (200, "ready"))
                    time.sleep(0.2)
                answer.result()
            took = time.monotonic() - start
            print(f"{c.status()['scheduler']['steps'] - steps} steps in {took:.1f} s")


if __name__ == "__main__":
    cluster.main()
