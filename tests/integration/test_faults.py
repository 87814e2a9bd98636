"""Workers and coordinators that die or hang: who is told, how soon, who goes on undisturbed, and that everything comes back."""

import os
import re
import signal
import subprocess
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose, wait_for

WITHIN_S = 5  # from the fault to the client's knowing


class Request(threading.Thread):
    """A greedy completion that is streamed; what came of it."""

    def __init__(self, c, prompt, max_tokens):
        super().__init__(daemon=True)
        self.cluster, self.prompt, self.max_tokens = c, prompt, max_tokens
        self.tokens, self.logprobs = [], []
        self.error = self.ended_s = self.finish = self.response = None
        self.start()

    def run(self):
        try:
            s = self.cluster.stream("/v1/completions", {"prompt": self.prompt, "max_tokens": self.max_tokens, "temperature": 0,
                                                        "logprobs": 0, "ignore_eos": True})
            self.response = s
            for event in s:
                choice = event["choices"][0]
                if choice["logprobs"]:
                    self.tokens += choice["logprobs"]["tokens"]
                    self.logprobs += choice["logprobs"]["token_logprobs"]
                self.finish = choice["finish_reason"] or self.finish
            self.error = s.error or (None if s.done else {"message": "the stream broke off", "type": "connection"})
        except Exception as e:  # socket's and http.client's
            self.error = {"message": f"connection: {e!r}", "type": "connection"}
        self.ended_s = time.monotonic()

    def await_tokens(self, n):
        wait_for(f"{n} tokens", lambda: len(self.tokens) >= n or self.error, 60)
        assert not self.error, self.error
        return self

    def await_end(self, timeout_s=60):
        self.join(timeout_s)
        assert not self.is_alive(), f"the request did not end within {timeout_s} s"
        return self

    def check_lost(self, since_s, workers):
        """It ended in time, with an error that names one of these workers."""
        self.await_end(20)
        assert self.error, f"it ended well: {self.finish} after {len(self.tokens)} tokens"
        assert self.ended_s - since_s < WITHIN_S, f"told after {self.ended_s - since_s:.1f} s: {self.error}"
        assert self.error["type"] == "server_error", self.error
        named = {int(n) for n in re.findall(r"\bworker (\d+)", self.error["message"])}
        assert named & set(workers), f"{self.error} does not name worker {workers}"


class Faults(unittest.TestCase):
    """
    Four workers; sequences spread from the first token on. Without prefix sharing the blocks in status are those of running requests.
    The leaves of the prompt, two and a half, are at two or three workers.
    """

    spread_prompt = prose(50, 21)
    short_prompt = "Once upon a time there was a"

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--spread-min-tokens", 1, "--prefix-sharing=false", "--threads", 1, workers=4)
        cls.short_alone = Request(cls.cluster, cls.short_prompt, 200).await_end()
        cls.spread_alone = Request(cls.cluster, cls.spread_prompt, 150).await_end()
        assert not cls.short_alone.error and not cls.spread_alone.error

    @classmethod
    def tearDownClass(cls):
        cls.cluster.check_quiet()
        cls.cluster.stop()
        # a survivor goes by what the coordinator said: it does not begin what the abandoned epoch still had for it
        odd = [line for line in cls.cluster.log_lines if "token -1" in line or " error " in line]
        assert not odd, odd

    def setUp(self):
        self.requests = []
        self.cluster.wait_workers()

    def request(self, prompt, max_tokens):
        self.requests.append(Request(self.cluster, prompt, max_tokens))
        return self.requests[-1]

    def tearDown(self):
        """Whatever happened: all workers are ready again, and answer as before."""
        for r in self.requests:
            if r.is_alive() and r.response:
                r.response.abort()
        self.cluster.wait_workers(timeout_s=40)
        self.cluster.check_quiet()
        for alone in (self.short_alone, self.spread_alone):
            again = self.request(alone.prompt, 20).await_end()
            self.assertIsNone(again.error)
            self.assertEqual((again.tokens, again.logprobs), (alone.tokens[:20], alone.logprobs[:20]))

    def blocks(self):
        return {w["id"]: w["blocks"] for w in self.cluster.workers()}

    def pid(self, worker):
        return next(w["pid"] for w in self.cluster.workers() if w["id"] == worker)

    def start_spread(self):
        """A request in mid-decode -> (it, the workers that have blocks of it, most first)"""
        spread = self.request(self.spread_prompt, 150).await_tokens(3)
        at = sorted(((n, w) for w, n in self.blocks().items() if n), reverse=True)
        self.assertIn(len(at), (2, 3), f"blocks: {at}")
        return spread, [w for _, w in at]

    def start_outside(self, group):
        """Short requests, until one is at a worker that is not of the group -> (it, its worker, the others)"""
        others = []
        for _ in range(4):
            before = self.blocks()
            r = self.request(self.short_prompt, 200).await_tokens(2)
            grown = [w for w, n in self.blocks().items() if w not in group and n > before[w]]
            if grown:
                return r, grown[0], others
            others.append(r)
        raise AssertionError("every short request is at the workers of the spread one")

    def check_undisturbed(self, r):
        r.await_end()
        self.assertIsNone(r.error)
        self.assertEqual((r.tokens, r.logprobs), (self.short_alone.tokens, self.short_alone.logprobs))

    def fault(self, number, which):
        spread, group = self.start_spread()
        outside, _, others = self.start_outside(group)
        victim = group[which]
        pid = self.pid(victim)
        self.assertIsNone(spread.error)
        since = time.monotonic()
        os.kill(pid, number)
        spread.check_lost(since, [victim])
        self.check_undisturbed(outside)
        for r in others:  # at the victim, or at the other member, which goes on
            r.await_end()
            if r.error:
                r.check_lost(since, [victim])
            else:
                self.check_undisturbed(r)
        return pid

    def test_killed_owner(self):
        self.fault(signal.SIGKILL, 0)

    def test_killed_home(self):
        self.fault(signal.SIGKILL, 1)

    def test_stopped_for_good(self):
        """A worker that hangs is given up in time; `up` kills it and starts another."""
        pid = self.fault(signal.SIGSTOP, 0)
        wait_for("the hung worker's end", lambda: not cluster.is_alive(pid), 15)

    def test_stopped_and_continued(self):
        spread, group = self.start_spread()
        pid = self.pid(group[1])
        since = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        spread.check_lost(since, group[1:])
        os.kill(pid, signal.SIGCONT)
        wait_for("the worker that was given up ends", lambda: not cluster.is_alive(pid), 10)

    def test_short_pause(self):
        """A pause shorter than what counts as silence does no harm."""
        spread, group = self.start_spread()
        pid = self.pid(group[0])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        spread.await_end()
        self.assertIsNone(spread.error)
        self.assertEqual(spread.tokens, self.spread_alone.tokens)

    def test_killed_in_prefill(self):
        """Nothing was sent yet, so the client gets a plain 503; gRPC's gets UNAVAILABLE."""
        answer = {}

        def post():
            answer["http"] = self.cluster.http("POST", "/v1/completions", {"prompt": prose(500, 22), "max_tokens": 4})
            answer["s"] = time.monotonic()

        t = threading.Thread(target=post)
        t.start()
        held = wait_for("blocks of the long prompt", lambda: {w: n for w, n in self.blocks().items() if n >= 8}, 30)
        victim = max(held, key=held.get)
        since = time.monotonic()
        os.kill(self.pid(victim), signal.SIGKILL)
        t.join(20)
        code, headers, body = answer["http"]
        self.assertEqual(code, 503, body)
        self.assertIn(f"worker {victim}", body["error"]["message"])
        self.assertEqual(headers["Retry-After"], "1")
        self.assertLess(answer["s"] - since, WITHIN_S)

    def test_killed_grpc(self):
        p = subprocess.Popen([cluster.LONGSPAN, "generate", "--grpc", self.cluster.grpc, "--raw", "--prompt", self.short_prompt,
                              "--max-tokens", "2000", "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(p.kill)
        self.assertTrue(p.stdout.read(4))
        victim = next(w for w, n in self.blocks().items() if n)
        os.kill(self.pid(victim), signal.SIGKILL)
        _, err = p.communicate(timeout=WITHIN_S)
        self.assertEqual(p.returncode, 1)
        self.assertIn(f"worker {victim}", err.decode())
        self.assertIn("gRPC status 14", err.decode())

    def test_killed_idle(self):
        """Nobody was served there: nobody notices."""
        victim = self.cluster.workers()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_for("its end", lambda: len(self.cluster.workers()) == 3, 10)
        r = self.request(self.spread_prompt, 10).await_end()
        self.assertIsNone(r.error)
        self.assertEqual(r.tokens, self.spread_alone.tokens[:10])

    def test_all_killed(self):
        spread, group = self.start_spread()
        since = time.monotonic()
        for w in self.cluster.workers():
            os.kill(w["pid"], signal.SIGKILL)
        spread.check_lost(since, group)

    def test_coordinator_killed(self):
        """Streams break off at once; at the same addresses everything works again."""
        spread, _ = self.start_spread()
        old = self.cluster.coordinator()
        since = time.monotonic()
        os.kill(old, signal.SIGKILL)
        spread.await_end(10)
        self.assertEqual(spread.error["type"], "connection")
        self.assertLess(spread.ended_s - since, WITHIN_S)
        wait_for("another coordinator", lambda: self.cluster.coordinator() not in (old, None), 20)
        self.cluster.wait_workers(timeout_s=40)
        self.assertEqual(self.cluster.http("GET", "/ready")[0], 200)

    def test_coordinator_paused(self):
        """It hangs longer than workers wait for it: they attach again when it goes on."""
        pid = self.cluster.coordinator()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)
        self.cluster.wait_workers(timeout_s=40)
        self.assertEqual(self.cluster.coordinator(), pid)


if __name__ == "__main__":
    cluster.main()
