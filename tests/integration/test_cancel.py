"""Clients that leave: sixteen at once, at random moments, over HTTP and gRPC; nothing of theirs may stay. LONGSPAN_TEST_CANCELS=10000: until so many have left."""

import gc
import json
import os
import random
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose
from rpc import Rpc, grpc

CLIENTS, SECONDS, SEED = 16, 30, 20240917
CANCELS = int(os.environ.get("LONGSPAN_TEST_CANCELS") or 0)
POOL = 128 << 20


class Cancel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # pools so small that requests wait for room and cached blocks are evicted
        cls.cluster = Cluster("--spread-min-tokens", 512, "--kv-bytes", POOL, workers=2)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def one(self, r, rpc):
        """A request that lives for a random while, or to its end."""
        prompt = prose(r.choice([1, 3, 10, 40, 90]), r.randrange(12))
        max_tokens = r.choice([1, 5, 30, 300])
        patience = r.choice([0, 0.02, 0.1, 0.3, 1, 2]) * r.random()
        kind = r.randrange(5)
        if kind == 0:  # gRPC, cancelled or past its deadline
            call = rpc.generate(text=prompt, max_tokens=max_tokens, temperature=1.0, ignore_eos=True,
                                timeout=patience + 0.001 if r.random() < 0.5 else 120)
            until = time.monotonic() + patience
            try:
                for _ in call:
                    if time.monotonic() > until:
                        break
            except grpc.RpcError as e:
                return e.code().name
            call.cancel()
            return "grpc cancelled"
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 1, "ignore_eos": True}
        if kind == 1:  # before the first byte of the answer
            connection = self.cluster.connect()
            connection.connect()
            connection.sock.settimeout(patience + 0.001)
            try:
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                connection.getresponse().read()
                return "answered"
            except TimeoutError:
                return "left early"
            finally:
                connection.close()
        s = self.cluster.stream("/v1/completions", body)
        if s.code != 200:
            return f"{s.code}"
        until = time.monotonic() + patience
        for _ in s:
            if time.monotonic() > until:
                break
        if s.done:
            return "streamed"
        s.abort() if kind == 2 else s.close()
        return "left the stream"

    def test_random_cancels(self):
        outcomes, failures, lock = {}, [], threading.Lock()
        rpcs = [Rpc(self.cluster.grpc) for _ in range(4)]

        def left():
            with lock:
                return sum(n for what, n in outcomes.items() if what not in ("answered", "streamed") and not what.isdigit())

        def client(i, until, cancels):
            r = random.Random(f"{SEED} {i}")
            while time.monotonic() < until or left() < cancels:
                try:
                    outcome = self.one(r, rpcs[i % len(rpcs)])
                except Exception as e:
                    with lock:
                        failures.append(repr(e))
                    continue
                with lock:
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1

        def storm(seconds, cancels=0):
            until = time.monotonic() + seconds
            threads = [threading.Thread(target=client, args=(i, until, cancels)) for i in range(CLIENTS)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(180 + cancels)
                self.assertFalse(t.is_alive(), "a client hangs")
            gc.collect()

        def numbers():
            self.cluster.check_quiet()
            return {p: (cluster.descriptors(p), cluster.resident_bytes(p)) for p in self.cluster.processes()}

        reference = self.cluster.complete(prose(10, 3), 12)[:2]
        storm(4)  # pools, arenas and connections reach their size
        before = numbers()
        storm(SECONDS, CANCELS)
        print(f"seed {SEED}: {sorted(outcomes.items())}", flush=True)
        self.assertEqual(failures, [])
        after = numbers()
        self.assertEqual(before.keys(), after.keys(), "a process was started again")
        for p, (fds, resident) in after.items():
            name = cluster.command_of(p)[1]
            self.assertLessEqual(fds, before[p][0] + 2, f"{name}: descriptors {before[p][0]} -> {fds}")
            self.assertLessEqual(resident, before[p][1] + POOL + (48 << 20), f"{name}: resident {before[p][1]} -> {resident}")
        s = self.cluster.status()
        self.assertEqual(s["scheduler"]["requests_failed"], 0)
        self.assertGreater(s["scheduler"]["requests_cancelled"], 20)
        self.assertGreater(s["scheduler"]["requests_done"], 20)
        for rpc in rpcs:
            rpc.close()
        self.assertEqual(self.cluster.complete(prose(10, 3), 12)[:2], reference)

    def test_everything_is_freed(self):
        """With no prefix cache to keep them, not one block is left."""
        with Cluster("--prefix-sharing=false", "--spread-min-tokens", 1, workers=2) as c:
            streams = [c.stream("/v1/completions", {"prompt": prose(30, i), "max_tokens": 500, "ignore_eos": True}) for i in range(6)]
            for s in streams:
                next(iter(s))
            self.assertGreater(sum(w["blocks"] for w in c.workers()), 6 * 5)
            for s in streams:
                s.abort()
            cluster.wait_for("no block in use", lambda: all(w["blocks"] == 0 for w in c.workers()), 60)
            c.check_quiet()


if __name__ == "__main__":
    cluster.main()
