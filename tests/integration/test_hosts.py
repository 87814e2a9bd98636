"""Several hosts: coordinator and three workers in network namespaces of their own, joined by a switch that can delay and drop every packet (relay.py)."""

import re
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose, wait_for
from hosts import Hosts, go_inside

WORKERS = ("w1", "w2", "w3")


class SeveralHosts(unittest.TestCase):
    prompt = prose(90, 31)  # four leaves and a bit: at all three workers

    @classmethod
    def setUpClass(cls):
        with Cluster(workers=1) as local:
            cls.reference = local.complete(cls.prompt, 40)[:2]
        cls.hosts = Hosts("--spread-min-tokens", "1", "--prefix-sharing=false")

    @classmethod
    def tearDownClass(cls):
        cls.hosts.check_quiet()
        cls.hosts.stop()

    def tearDown(self):
        """Whatever the network did: all three serve again, with the same tokens."""
        self.hosts.relay_do("reset")
        self.hosts.wait_workers(timeout_s=60)
        self.check_answer(12)

    def check_answer(self, n):
        tokens, logprobs, _ = self.hosts.complete(self.prompt, n)
        self.assertEqual((tokens, logprobs), (self.reference[0][:n], self.reference[1][:n]))

    def bytes_sent(self):
        """What each worker has sent to others, when heartbeats have brought all of it."""
        last = None
        while True:
            now = {next(h for h in WORKERS if w["address"].startswith(self.hosts.address[h] + ":")): w["bytes_sent"] for w in self.hosts.workers()}
            if now == last:
                return now
            last = now
            time.sleep(0.6)

    def test_serve(self):
        sent = self.bytes_sent()
        before = self.hosts.relay_do("stats")
        self.check_answer(40)
        after = self.hosts.relay_do("stats")
        for host, now in self.bytes_sent().items():
            moved = after[host]["bytes"] - before[host]["bytes"]
            exchanged = now - sent[host]
            self.assertGreater(exchanged, 100000, host)
            self.assertGreater(moved, exchanged, f"{host}: what was exchanged did not pass the network")
        self.assertEqual(self.hosts.status()["identity"], "exact")

    def test_delay(self):
        """2 ms on every packet's way."""
        self.hosts.relay_do("delay", 2)
        start = time.monotonic()
        self.check_answer(20)
        took = time.monotonic() - start
        print(f"20 tokens, with 2 ms each way: {took:.1f} s", flush=True)
        self.assertGreater(took, 20 * 30 * 2 * 0.002)  # two phases a layer, or the delay is not there
        streams = [threading.Thread(target=self.check_answer, args=(8,)) for _ in range(3)]
        for s in streams:
            s.start()
        for s in streams:
            s.join()

    def outage(self, host, seconds):
        """A link is down for a while in mid-decode. -> the error the client got, or None, and when after the cut it ended"""
        victim = self.hosts.worker_id(host)
        s = self.hosts.stream("/v1/completions", {"prompt": self.prompt, "max_tokens": 40, "temperature": 0, "logprobs": 0, "ignore_eos": True})
        events, tokens = iter(s), []
        for _ in range(3):
            tokens += next(events)["choices"][0]["logprobs"]["tokens"]
        self.hosts.relay_do("down", host)
        cut = time.monotonic()
        up = threading.Timer(seconds, self.hosts.relay_do, ("up", host))
        up.start()
        for event in events:
            tokens += (event["choices"][0]["logprobs"] or {"tokens": []})["tokens"]
        ended = time.monotonic() - cut
        up.join()
        if s.error:
            named = {int(n) for n in re.findall(r"\bworkers? (\d+)", s.error["message"])}
            self.assertIn(victim, named, s.error)
            self.assertEqual(s.error["type"], "server_error")
        else:
            self.assertTrue(s.done)
            self.assertEqual(tokens, self.reference[0])
        return s.error, ended

    def test_short_outage(self):
        error, ended = self.outage("w2", 1)
        print(f"a second's outage: {error or 'survived'} after {ended:.1f} s", flush=True)

    def test_long_outage(self):
        """Its request goes on without it; the other workers go on meanwhile; the cut-off one comes back by itself."""
        done = {}
        t = threading.Thread(target=lambda: done.update(zip(("error", "ended"), self.outage("w3", 8))))
        t.start()
        wait_for("the worker is given up", lambda: len(self.hosts.workers()) == 2, 20)
        self.check_answer(6)
        t.join(120)
        self.assertIsNone(done["error"])  # the others computed what it held

    def test_coordinator_cut_off(self):
        """Nobody hears the coordinator for a while: workers come back when they do."""
        self.hosts.relay_do("down", "c1")
        time.sleep(3)
        self.hosts.relay_do("up", "c1")
        self.hosts.wait_workers(timeout_s=60)

    def test_worker_started_again(self):
        old = self.hosts.worker_id("w1")
        self.hosts.running["w1"].kill()
        self.hosts.running["w1"].wait()
        wait_for("two workers", lambda: len(self.hosts.workers()) == 2, 40)
        self.hosts.start_again("w1")
        self.hosts.wait_workers()
        self.assertNotEqual(self.hosts.worker_id("w1"), old)


if __name__ == "__main__":
    go_inside()
    cluster.main()
