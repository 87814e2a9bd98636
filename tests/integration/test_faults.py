"""Workers and coordinators that die or hang: requests go on with the tokens and log-probabilities of a run without faults, who has nothing to do with it does
not notice, and everything comes back."""

import os
import re
import signal
import subprocess
import threading
import time
import unittest

import cluster
from cluster import Cluster, elapsed, prose, wait_for

WITHIN_S = 5  # from the fault to the client's knowing
SILENCE_MS = 1500  # the default
NOTICED_S = 3  # from the fault to the coordinator's log: a step's deadline alone would be 4 s


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
        took = elapsed(since_s, self.ended_s)
        assert took < WITHIN_S, f"told after {took:.1f} s: {self.error}"
        assert self.error["type"] == "server_error", self.error
        named = {int(n) for n in re.findall(r"\bworker (\d+)", self.error["message"])}
        assert named & set(workers), f"{self.error} does not name worker {workers}"


class Faults(unittest.TestCase):
    """
    Four workers; sequences spread from the first token on. The leaves of a prompt, two and a half, are at two or three workers. Prompts begin
    differently, so that none finds blocks of another; what they should give is asked of a cluster of one worker, which shares nothing.
    """

    prompts = [f"Part {i}. {prose(50, 21)}" for i in range(8)]
    short_prompt = "Once upon a time there was a"

    @classmethod
    def setUpClass(cls):
        with Cluster("--prefix-sharing=false", workers=1) as c:
            cls.alone = {p: Request(c, p, n) for p, n in [(cls.short_prompt, 200), *((p, 150) for p in cls.prompts)]}
            for r in cls.alone.values():
                assert not r.await_end(120).error
        cls.short_alone, cls.spread_alone = cls.alone[cls.short_prompt], cls.alone[cls.prompts[0]]
        cls.unused = list(cls.prompts[1:])
        cls.cluster = Cluster("--spread-min-tokens", 1, "--threads", 1, "--silence-ms", SILENCE_MS, workers=4)

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
        """Of running requests."""
        return {w["id"]: w["blocks"] - w["blocks_cached"] for w in self.cluster.workers()}

    def pid(self, worker):
        return next(w["pid"] for w in self.cluster.workers() if w["id"] == worker)

    def start_spread(self, prompt=None):
        """A request in mid-decode -> (it, the workers that have blocks of it, most first)"""
        spread = self.request(prompt or self.unused.pop(), 150).await_tokens(3)
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

    def check_same(self, r):
        alone = self.alone[r.prompt]
        r.await_end(120)
        self.assertIsNone(r.error)
        self.assertEqual((r.tokens, r.logprobs), (alone.tokens, alone.logprobs))

    def check_noticed(self, since, victim, log_line):
        self.cluster.wait_log(rf"worker {victim} .* is lost", 10, log_line)
        took = elapsed(since)
        print(f"noticed after {took:.2f} s", flush=True)
        self.assertLess(took, NOTICED_S)

    def both(self):
        """A spread request and one outside its workers, in mid-decode -> (the first, its workers, all others); again where the first was too quick."""
        prompt = None
        for _ in range(4):
            spread, group = self.start_spread(prompt)
            outside, _, others = self.start_outside(group)
            if not spread.finish and len(spread.tokens) < 120:
                return spread, group, [outside, *others]
            for r in (spread, outside, *others):
                self.check_same(r)
            prompt = spread.prompt
        raise AssertionError("a request of 150 tokens always ends before another has begun")

    def fault(self, number, which):
        spread, group, others = self.both()
        victim = group[which]
        pid = self.pid(victim)
        self.assertIsNone(spread.error)
        before = self.cluster.metrics()
        log_line = len(self.cluster.log_lines)
        since = time.monotonic()
        os.kill(pid, number)
        self.check_noticed(since, victim, log_line)
        for r in (spread, *others):
            self.check_same(r)
        after = self.cluster.metrics()
        lost = {m[1] for line in self.cluster.log_lines[log_line:] if (m := re.search(r"worker (\d+) .* is lost", line))}
        grown = {n: after[f"longspan_{n}"] - before[f"longspan_{n}"]
                 for n in ("recoveries_total", "recovered_rows_total", "recovery_seconds_count", "recovery_seconds_sum")}
        self.assertGreaterEqual(grown["recoveries_total"], 1)
        # who loses a second worker before it is where it had been is placed again twice, and recovers once
        least = grown["recoveries_total"] if len(lost) == 1 else 1
        self.assertGreaterEqual(grown["recovery_seconds_count"], least)
        self.assertLessEqual(grown["recovery_seconds_count"], grown["recoveries_total"])
        self.assertGreater(grown["recovered_rows_total"], 0)
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
        log_line = len(self.cluster.log_lines)
        since = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        self.check_noticed(since, group[1], log_line)
        os.kill(pid, signal.SIGCONT)
        self.check_same(spread)
        self.cluster.wait_workers(timeout_s=40)  # it attaches anew, or another takes its place

    def test_short_pause(self):
        """A pause shorter than what counts as silence does no harm."""
        spread, group = self.start_spread()
        pid = self.pid(group[0])
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        self.check_same(spread)

    def test_killed_in_prefill(self):
        """A prompt that is being computed: the leaves that are lost are computed again."""
        ask = {"prompt": prose(220, 22), "max_tokens": 4, "temperature": 0, "logprobs": 0}
        answer = {}

        def post():
            answer["http"] = self.cluster.http("POST", "/v1/completions", ask)

        t = threading.Thread(target=post)
        t.start()
        held = wait_for("blocks of the long prompt", lambda: {w: n for w, n in self.blocks().items() if n >= 4}, 30)
        victim = max(held, key=held.get)
        os.kill(self.pid(victim), signal.SIGKILL)
        t.join(120)
        code, _, body = answer["http"]
        self.assertEqual(code, 200, body)
        self.cluster.wait_workers(timeout_s=40)
        self.assertEqual(self.cluster.post("/v1/completions", ask)["choices"], body["choices"])

    def test_killed_sampled(self):
        """gRPC, one worker's sequence with a seed: what was sampled before is forced, what comes after is drawn by position."""
        command = [cluster.LONGSPAN, "generate", "--grpc", self.cluster.grpc, "--raw", "--prompt", self.short_prompt, "--max-tokens", "150",
                   "--temperature", "1", "--seed", "7", "--ignore-eos"]
        alone = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
        for _ in range(4):
            p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
            self.addCleanup(p.kill)
            first = p.stdout.read(4)
            self.assertTrue(first)
            victim = next((w for w in self.cluster.workers() if w["blocks"] > w["blocks_cached"]), None)
            if victim:
                os.kill(victim["pid"], signal.SIGKILL)
            rest, err = p.communicate(timeout=60)
            self.assertEqual(p.returncode, 0, err.decode())
            self.assertEqual(first + rest, alone)
            if victim:
                return
        self.fail("150 tokens always end before anybody can look")

    def test_killed_idle(self):
        """Nobody was served there: nobody notices."""
        victim = self.cluster.workers()[0]
        log_line = len(self.cluster.log_lines)
        os.kill(victim["pid"], signal.SIGKILL)
        self.cluster.wait_log(rf"worker {victim['id']} .* is lost", 20, log_line)
        r = self.request(self.spread_alone.prompt, 10).await_end()
        self.assertIsNone(r.error)
        self.assertEqual(r.tokens, self.spread_alone.tokens[:10])

    def test_all_killed(self):
        """It waits until `up` has started others, and begins again where it was."""
        spread, _ = self.start_spread()
        for w in self.cluster.workers():
            os.kill(w["pid"], signal.SIGKILL)
        self.check_same(spread)

    def test_coordinator_killed(self):
        """Streams break off at once; at the same addresses everything works again."""
        spread, _ = self.start_spread()
        old = self.cluster.coordinator()
        since = time.monotonic()
        os.kill(old, signal.SIGKILL)
        spread.await_end(10)
        self.assertEqual(spread.error["type"], "connection")
        self.assertLess(elapsed(since, spread.ended_s), WITHIN_S)
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


class Alone(unittest.TestCase):
    """Nobody is left, and requests are not to wait for others to come."""

    def test_no_room_left(self):
        with Cluster("--worker-wait-ms", 0, "--threads", 1, workers=1) as c:
            r = Request(c, "Once upon a time", 1000).await_tokens(2)
            w = c.wait_workers()[0]
            since = time.monotonic()
            os.kill(w["pid"], signal.SIGKILL)
            r.check_lost(since, [w["id"]])
            c.wait_workers(timeout_s=40)
            c.complete("Once upon a time", 5)


class Replicas(unittest.TestCase):
    """With second copies only open blocks, and those sealed last, are computed again; a worker that joins takes leaves over."""

    def test_copies_are_found(self):
        prompt = prose(60, 31)
        with Cluster("--replicas", 1, "--spread-min-tokens", 1, "--threads", 1, workers=3) as c:
            r = Request(c, prompt, 300).await_tokens(5)
            victim = max(c.workers(), key=lambda w: w["blocks"] - w["blocks_cached"])
            copied = wait_for("second copies", lambda: (m := c.metrics())["longspan_replicas_due"] == 0 and m["longspan_replicas_total"], 30)
            os.kill(victim["pid"], signal.SIGKILL)
            self.assertFalse(r.finish, "it had ended before")
            r.await_end(120)
            self.assertIsNone(r.error)
            m = c.metrics()
            self.assertGreater(m["longspan_recovered_copies_total"], 0)
            self.assertEqual(m["longspan_recoveries_total"], 1)
            self.assertLess(m["longspan_recovered_rows_total"], 64 * 4, f"{copied} copies were there")
            c.wait_workers(timeout_s=40)
            again = Request(c, prompt, 300).await_end(120)
            self.assertEqual((r.tokens, r.logprobs), (again.tokens, again.logprobs))
            c.check_quiet()


if __name__ == "__main__":
    cluster.main()
