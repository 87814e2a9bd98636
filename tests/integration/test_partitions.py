"""Links that carry one direction only, and an etcd of three members of which some die or are cut off: noticed in time, fenced, and answered with the same tokens."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
import unittest

import cluster
from cluster import elapsed, prose, wait_for
from hosts import ETCD, GRPC, Hosts, go_inside
from rpc import Rpc, grpc, pb

NOTICED_S = 3  # silence counts from 1.5 s on; a step's deadline alone would be 4 s


class Partitions(unittest.TestCase):
    prompt = prose(60, 31)

    @classmethod
    def setUpClass(cls):
        cls.hosts = Hosts("--spread-min-tokens", 1, "--prefix-sharing=false", "--log-level", "info", workers=3, coordinators=2, etcds=3, lease_ms=4000)
        cls.want = cls.hosts.complete(cls.prompt, 30)[:2]

    @classmethod
    def tearDownClass(cls):
        cls.hosts.check_quiet()
        cls.hosts.stop()
        odd = [line for line in cls.hosts.log_lines if "too_many_pings" in line]
        assert not odd, odd

    def setUp(self):
        self.lead = self.hosts.lead
        self.hosts.wait_workers()

    def tearDown(self):
        """Whatever the network did: all serve again, with the same tokens."""
        self.hosts.relay_do("reset")

        def both_are_there():
            for name in (*self.hosts.etcds, *self.hosts.coordinators):
                if self.hosts.running[name].poll() is not None:  # it may find out only now that it leads no more
                    self.hosts.start_again(name)
            return sorted(self.hosts.probe(c) or 0 for c in self.hosts.coordinators) == [200, 503] and self.hosts.follow()

        wait_for("a leader and a standby", both_are_there, 90)
        self.hosts.wait_workers(timeout_s=60)
        # an etcd that has just come back may yet change its mind on who leads: who led then ends, in the middle of an answer too
        self.assertEqual(wait_for("an answer", lambda: self.hosts.follow() and self.answer(), 60), self.want)

    def answer(self):
        """None: it was refused, or broken off."""
        try:
            code, _, a = self.hosts.http("POST", "/v1/completions", {"prompt": self.prompt, "max_tokens": 30, "temperature": 0, "logprobs": 0, "ignore_eos": True})
        except (OSError, http.client.HTTPException):
            return None
        if code == 503:
            return None
        self.assertEqual(code, 200, a)
        return a["choices"][0]["logprobs"]["tokens"], a["choices"][0]["logprobs"]["token_logprobs"]

    def check_answer(self):
        self.assertEqual(self.hosts.complete(self.prompt, 30)[:2], self.want)

    def during(self, fault):
        """An answer in whose midst that happens; the same tokens come. -> when it began, and the log's lines from then on"""
        got = {}
        s = self.hosts.stream("/v1/completions", {"prompt": self.prompt, "max_tokens": 30, "temperature": 0, "logprobs": 0, "ignore_eos": True})
        events = iter(s)
        tokens, logprobs = [], []

        def take(event):
            lp = event["choices"][0]["logprobs"] or {"tokens": [], "token_logprobs": []}
            tokens.extend(lp["tokens"])
            logprobs.extend(lp["token_logprobs"])

        for _ in range(3):
            take(next(events))
        line, since = len(self.hosts.log_lines), time.monotonic()
        fault()

        def rest():
            for event in events:
                take(event)
            got["error"] = s.error

        reader = threading.Thread(target=rest)
        reader.start()
        self.addCleanup(lambda: self.assertEqual((got.get("error", "it never ended"), tokens, logprobs), (None, *self.want)))
        self.addCleanup(reader.join, 60)
        return since, line

    def noticed(self, since, line, pattern, within_s=NOTICED_S):
        self.hosts.wait_log(pattern, 20, line)
        took = elapsed(since)
        print(f"{self._testMethodName}: noticed after {took:.2f} s", flush=True)
        self.assertLess(took, within_s)

    # ---- one direction ----

    def test_worker_not_heard(self):
        victim = self.hosts.worker_id("w2")
        self.noticed(*self.during(lambda: self.hosts.relay_do("cut", "w2", self.lead)), rf"worker {victim} .*is lost")

    def test_worker_does_not_hear(self):
        victim = self.hosts.worker_id("w3")
        self.noticed(*self.during(lambda: self.hosts.relay_do("cut", self.lead, "w3")), rf"worker {victim} .*is lost")

    def test_workers_not_heard_by_others(self):
        """The coordinator hears all, but each worker hears one of the two others only: all wait for messages of each other, and say so."""
        def cut():
            for a, b in (("w1", "w2"), ("w2", "w3"), ("w3", "w1")):
                self.hosts.relay_do("cut", a, b)

        since, line = self.during(cut)
        self.noticed(since, line, r"wait for messages of each other")
        time.sleep(1)

    # ---- etcd ----

    def test_leader_does_not_hear_etcd(self):
        """The leader alone: the other takes over, it ends, workers go over, and the answer is the same."""
        for e in self.hosts.etcds:
            self.hosts.relay_do("cut", e, self.lead)
        since = time.monotonic()
        other = next(c for c in self.hosts.coordinators if c != self.lead)
        served = 0
        while self.hosts.probe(other) != 200:  # meanwhile it serves
            if self.hosts.running[other].poll() is not None:  # it led before etcd was away, and found out only now that it does no more
                self.assertEqual(self.hosts.running[other].poll(), 1)
                self.hosts.start_again(other)
            self.assertLess(elapsed(since), 90)  # members of etcd that choose anew, as a halt makes them do, give each lease its time again
            try:
                if self.hosts.probe(self.lead) == 200:
                    self.check_answer()
                    served += 1
            except (OSError, AssertionError):
                self.assertNotEqual(self.hosts.probe(self.lead), 200)
        print(f"{self._testMethodName}: the other is ready after {time.monotonic() - since:.1f} s; {served} answers meanwhile", flush=True)
        self.assertEqual(self.hosts.running[self.lead].wait(60), 1)
        wait_for("the other leads", lambda: self.hosts.follow() == [other], 20)
        self.check_answer()

    def etcd_leader(self):
        """-> the name of the member that leads, and those that do not; waits until all know it"""
        return wait_for("three members, and one of them leads", self.find_etcd_leader, 60)

    def find_etcd_leader(self):
        endpoints = ",".join(f"{self.hosts.address[e]}:{ETCD}" for e in self.hosts.etcds)
        done = subprocess.run(["etcdctl", f"--endpoints={endpoints}", "endpoint", "status", "-w", "json"], capture_output=True, timeout=60, check=False,
                              env={**os.environ, "ETCDCTL_API": "3"})
        found = json.loads(done.stdout) if done.returncode == 0 else []
        if len(found) < len(self.hosts.etcds) or len({status["Status"]["leader"] for status in found}) != 1:
            return None
        for status in found:
            if status["Status"]["header"]["member_id"] == status["Status"]["leader"]:
                leader = next(e for e in self.hosts.etcds if status["Endpoint"].startswith(self.hosts.address[e] + ":"))
                return leader, [e for e in self.hosts.etcds if e != leader]
        return None

    def keeps_its_lead(self, rpc, seconds):
        """All that time requests are served and jobs acknowledged, by the same coordinator."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check_answer()
            self.submit(rpc)
            self.check_lead()

    def check_lead(self):
        """Nobody else leads, and it does; a look of a second may be too short for an answer."""
        leads = wait_for("an answer", self.hosts.follow, 20)
        self.assertEqual(leads, [self.lead])

    def submit(self, rpc=None):
        """As a client does that knows its key; without rpc to whoever leads."""
        self.n = getattr(self, "n", 0) + 1
        work = pb.SubmitJobRequest(generate=pb.GenerateRequest(text="One two", max_tokens=2, temperature=0), idempotency_key=f"{self.id()} {self.n}")

        def taken():
            self.hosts.follow()
            to = rpc or Rpc(f"{self.hosts.address[self.hosts.lead]}:{GRPC}")
            try:
                return to.inference.SubmitJob(work, timeout=10).id
            except grpc.RpcError as e:
                if e.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE, e.details())
                return None
            finally:
                if not rpc:
                    to.close()

        return wait_for("the job is taken", taken, 60)

    def test_etcd_members(self):
        """Of three members any one may die, hang or be cut off; of two nothing is left but what runs."""
        rpc = Rpc(f"{self.hosts.address[self.lead]}:{GRPC}")
        self.addCleanup(rpc.close)
        leader, others = self.etcd_leader()
        self.hosts.signal(others[0], signal.SIGKILL)
        self.hosts.running[others[0]].wait()
        self.keeps_its_lead(rpc, 2)
        self.hosts.start_again(others[0])
        leader, others = self.etcd_leader()
        self.hosts.signal(leader, signal.SIGKILL)  # the one that leads them
        self.hosts.running[leader].wait()
        self.keeps_its_lead(rpc, 2)
        self.hosts.start_again(leader)
        leader, others = self.etcd_leader()
        for e in others:  # it is heard by coordinators, but not by the other members
            self.hosts.relay_do("cut", leader, e)
            self.hosts.relay_do("cut", e, leader)
        self.keeps_its_lead(rpc, 3)
        self.hosts.relay_do("reset")
        for e in self.hosts.etcds[:2]:
            self.hosts.signal(e, signal.SIGKILL)
            self.hosts.running[e].wait()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            self.check_answer()
            self.check_lead()
        for e in self.hosts.etcds[:2]:
            self.hosts.start_again(e)
        self.submit()  # who finds back first leads: the one that did, as a rule
        wait_for("one leads", lambda: len(self.hosts.follow()) == 1, 60)


if __name__ == "__main__":
    go_inside()
    cluster.main()
