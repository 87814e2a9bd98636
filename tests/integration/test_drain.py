"""SIGTERM drains: what runs goes on, nothing new comes, and a worker leaves when nothing needs it; so each process can be replaced under load."""

import concurrent.futures
import json
import os
import signal
import threading
import time
import unittest

import cluster
from cluster import Cluster, command_of, elapsed, is_alive, run, wait_for


def workers_of(c):
    return [p for p in c.processes() if command_of(p)[1:2] == ["worker"]]


class Drain(unittest.TestCase):
    def test_worker(self):
        """It finishes the sequence it has, shows that it drains, takes no other, and goes with status 0; no request is placed again."""
        with Cluster("--threads", 1, "--drain-ms", 60000, workers=2) as c:
            want = c.complete("Once upon a time", 500)[0]
            s = c.stream("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 500, "temperature": 0, "ignore_eos": True})
            events = iter(s)
            got = [next(events)["choices"][0]["text"]]
            home = next(w for w in c.workers() if w["sequences"])
            os.kill(home["pid"], signal.SIGTERM)
            wait_for("it drains", lambda: c.workers("draining"), 20)
            c.complete("Another one", 4)
            self.assertEqual([w["id"] for w in c.workers("draining") if w["sequences"]], [home["id"]])
            got += [e["choices"][0]["text"] for e in events]
            self.assertEqual("".join(got), "".join(want))
            wait_for("it left", lambda: not is_alive(home["pid"]), 20)
            c.wait_workers()  # up starts another
            self.assertEqual(c.status()["scheduler"]["requests_failed"], 0)
            self.assertEqual(c.metrics()["longspan_recoveries_total"], 0)

    def test_command(self):
        """`drain` moves what runs to the other worker, with the same tokens and but for open rows nothing computed again; `--undo` and `rebalance` bring some back."""
        with Cluster("--threads", 1, workers=2) as c:
            grpc = ("--grpc", c.grpc)
            want = c.complete("Once upon a time", 300)[0]
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                answers = [pool.submit(c.complete, "Once upon a time", 300) for _ in range(2)]
                home = wait_for("a home", lambda: next((w for w in c.workers() if w["leaves"]), None), 10)["id"]
                out = run("drain", home, "--wait", *grpc)[0]
                self.assertRegex(out, rf"worker {home} is drained: home of 0 sequences, 0 leaves\n$")
                self.assertEqual([w["id"] for w in c.workers("drained")], [home])
                self.assertIn("drained", run("status", *grpc)[0])
                self.assertIn("nothing would be served", run("drain", 1 - home, *grpc, check=1)[1])
                self.assertEqual([a.result()[0] for a in answers], [want, want])
                self.assertEqual(c.complete("Another one", 4)[2]["usage"]["completion_tokens"], 4)
                self.assertEqual([w["id"] for w in c.workers("drained")], [home])
                self.assertIn(f"worker {home} is ready", run("drain", home, "--undo", *grpc)[0])
                moved = c.status()["scheduler"]["sequences_moved"]
                self.assertGreaterEqual(moved, 1)
                self.assertEqual(c.metrics()["longspan_sequences_moved_total"], moved)
                self.assertEqual(set(json.loads(run("rebalance", "--json", *grpc)[0])), {"leaves_moved", "sequences_moved"})
            self.assertEqual(c.metrics()["longspan_recoveries_total"], 0)
            self.assertLess(c.metrics()["longspan_recovered_rows_total"], 2 * 2 * 64 + 1)
            self.assertIn("not ready, or there is none", run("drain", 77, *grpc, check=1)[1])
            run("drain", "two", *grpc, check=2)
            c.check_quiet()

    def test_deadline(self):
        """What does not end in time goes on elsewhere, with the same tokens."""
        with Cluster("--threads", 1, "--drain-ms", 50, workers=2) as c:
            want = c.complete("Once upon a time", 300)[0]
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(c.complete, "Once upon a time", 300)
                home = wait_for("its home", lambda: next((w for w in c.workers() if w["sequences"]), None), 10)
                start = time.monotonic()
                os.kill(home["pid"], signal.SIGTERM)
                wait_for("it left", lambda: not is_alive(home["pid"]), 20)
                self.assertTrue(not answer.done() or elapsed(start) < 3, "it left when there was nothing to do for it")
                self.assertEqual(answer.result()[0], want)
                self.assertEqual(c.metrics()["longspan_recoveries_total"], 1)

    def test_second_signal(self):
        with Cluster("--threads", 1, "--drain-ms", 60000, workers=1) as c:
            s = c.stream("/v1/completions", {"prompt": "Count", "max_tokens": 3000, "ignore_eos": True})
            next(iter(s))
            worker = workers_of(c)[0]
            os.kill(worker, signal.SIGTERM)
            wait_for("it drains", lambda: c.workers("draining"), 20)
            self.assertEqual(c.http("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0], 503)
            os.kill(worker, signal.SIGTERM)
            wait_for("it left", lambda: not is_alive(worker), 20)
            s.abort()

    def test_rolling_restart_of_workers(self):
        """One after another, under load: no request fails, no answer differs."""
        with Cluster("--threads", 1, "--drain-ms", 60000, workers=2) as c:
            want = {p: c.complete(p, 24)[:2] for p in ("One two three", "Once upon a time", "The river")}
            stop, done, wrong = threading.Event(), [], []

            def load(prompt):
                while not stop.is_set():
                    try:
                        got = c.complete(prompt, 24)[:2]
                        (done if got == want[prompt] else wrong).append((prompt, got))
                    except Exception as e:  # whatever it is, it is a request that failed
                        wrong.append((prompt, repr(e)))

            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                loads = [pool.submit(load, p) for p in want]
                try:
                    for worker in c.wait_workers():
                        os.kill(worker["pid"], signal.SIGTERM)
                        wait_for("it left", lambda: not is_alive(worker["pid"]), 60)
                        wait_for("another came", lambda: len(c.workers()) == 2, 60)
                finally:
                    stop.set()
                for f in loads:
                    f.result()
            self.assertEqual(wrong, [])
            self.assertGreater(len(done), 3)
            c.check_quiet()

    def test_coordinator_refuses(self):
        """After SIGTERM it refuses what is new with 503 and Retry-After, is not ready, and finishes what runs."""
        c = Cluster("--threads", 1, "--drain-ms", 60000, workers=1)
        s = c.stream("/v1/completions", {"prompt": "Count", "max_tokens": 600, "temperature": 0, "ignore_eos": True})
        events = iter(s)
        n = len([next(events)])
        c.up.send_signal(signal.SIGTERM)
        refusal = wait_for("a refusal", lambda: (r := c.http("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}))[0] == 503 and r, 20)
        self.assertTrue(int(refusal[1]["Retry-After"]) >= 1)
        self.assertEqual(c.http("GET", "/ready")[0], 503)
        self.assertEqual(c.http("GET", "/health")[0], 200)
        n += len(list(events))
        self.assertTrue(s.done)
        self.assertIsNone(s.error)
        self.assertGreaterEqual(n, 500)
        self.assertEqual(c.up.wait(60), 0)
        c._remove()


if __name__ == "__main__":
    cluster.main()
