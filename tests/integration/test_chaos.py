"""Chaos on several hosts: two coordinators at an etcd, three workers, a network between them, and at random moments something dies, hangs, is cut off or gets bad.
Streams come back by Last-Event-ID, jobs by their keys, and everything that is told is what an undisturbed run told.

    CHAOS_SECONDS (50)   of faults; CI has no more time; 600 is a good look
    CHAOS_SEED           which faults, when, and what clients ask for (what processes make of it depends on time)
    CHAOS_JSON           a file for what it took to recover, by kind of fault
    CHAOS_LOG            a file for the logs of all processes
"""

import http.client
import json
import os
import random
import re
import signal
import threading
import time
import unittest

import cluster
from cluster import descriptors, elapsed, prose, resident_bytes, wait_for
from hosts import GRPC, Hosts, go_inside
from test_resume import Reader

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 50)
SEED = int(os.environ.get("CHAOS_SEED") or 20240918)
READERS, PLAIN = 3, 1
NOTICED_S = 2.5  # until then a fault may not have shown
RECOVERED_S = 60  # by then everybody must go on
MORE_DESCRIPTORS, MORE_BYTES = 24, 160 << 20  # of an idle process, than at the beginning: connections and a pool that is filled

PATHS = ("/v1/completions", "/v1/chat/completions")
PROMPTS = [prose(n, 50 + n) for n in (1, 4, 12, 30, 55)]


def body(path, prompt, n):
    what = {"prompt": prompt} if path == PATHS[0] else {"messages": [{"role": "user", "content": prompt}]}
    return {**what, "max_tokens": n, "temperature": 1, "seed": 5, "ignore_eos": True, "logprobs": 1 if path == PATHS[0] else True}


class Client(threading.Thread):
    """Asks for one thing after the other, until it is told to stop; marks: when it began, was told something, or had an answer."""

    def __init__(self, storm, number):
        super().__init__(daemon=True)
        self.storm, self.number, self.random = storm, number, random.Random(f"{SEED} {type(self).__name__} {number}")
        self.marks = [time.monotonic()]

    def mark(self):
        self.marks.append(time.monotonic())

    def run(self):
        n = 0
        while not self.storm.stop.is_set():
            try:
                self.ask(n)
            except Exception as e:  # an assertion's, or what nobody thought of
                self.storm.wrong(f"{type(self).__name__} {self.number}: {e!r}")
            n += 1
            self.mark()
        self.marks.append(float("inf"))


class Streams(Client, Reader):
    """Reads streams with a key; comes back to whoever leads."""

    def __init__(self, storm, number):
        Client.__init__(self, storm, number)

    def ask(self, n):
        path, prompt = self.random.choice(PATHS), self.random.choice(PROMPTS)
        Reader.__init__(self, self.storm.hosts, path, body(path, prompt, 60), f"{SEED} {self.number} {n}")
        self.events = Marked(self)
        self.finish(self.random.choice([20, 1 << 30]), timeout_s=RECOVERED_S + 60)
        if self.answer() != self.storm.want[path, prompt]:
            self.storm.wrong(f"a stream's tokens: {path} {prompt[:30]}: {self.answer()}, not {self.storm.want[path, prompt]}")
        self.storm.count("streams")


class Marked(list):
    def __init__(self, client):
        super().__init__()
        self.client = client

    def append(self, event):
        super().append(event)
        self.client.mark()


class Plain(Client):
    """Whole answers, without a key: a coordinator's end is theirs; workers' faults are not."""

    def ask(self, n):
        prompt, tokens = self.random.choice(PROMPTS), self.random.choice([1, 5, 30])
        since = time.monotonic()
        try:
            code, _, answer = self.storm.hosts.http("POST", PATHS[0], body(PATHS[0], prompt, tokens), timeout_s=RECOVERED_S)
        except (OSError, http.client.HTTPException) as e:
            code, answer = 0, repr(e)
        if code == 200:
            got, whole = answer["choices"][0]["logprobs"], self.storm.whole[prompt]
            if (got["tokens"], got["token_logprobs"]) != (whole["tokens"][:tokens], whole["token_logprobs"][:tokens]):
                self.storm.wrong(f"an answer's tokens: {tokens} of {prompt[:30]}")
            self.storm.count("answers")
            return
        self.storm.count(f"plain: {code or 'broken off'}")
        if code not in (0, 503):
            self.storm.wrong(f"{code}: {answer}")
        elif code == 0 and not self.storm.coordinators_met(since):
            self.storm.wrong(f"broken off, but no coordinator had a fault: {answer}")
        elif code == 503 and not self.storm.coordinators_met(since) and not re.search(
                r"\bworkers? \d+|no worker|workers that are left", answer["error"]["message"]):
            self.storm.wrong(f"names nobody: {answer}")
        time.sleep(0.2)


class Jobs(Client):
    """Submits a job and waits for its end: what was acknowledged ends, and ends well."""

    def __init__(self, storm, number):
        super().__init__(storm, number)
        from rpc import Rpc, grpc, pb
        self.grpc, self.pb = grpc, pb
        self.rpcs = {name: Rpc(f"{storm.hosts.address[name]}:{GRPC}") for name in storm.hosts.coordinators}

    def call(self, method, request):
        """Until it is answered, by whoever leads."""
        until = time.monotonic() + RECOVERED_S
        while True:
            try:
                return getattr(self.rpcs[self.storm.hosts.lead].inference, method)(request, timeout=3)
            except self.grpc.RpcError as e:
                if e.code() not in (self.grpc.StatusCode.UNAVAILABLE, self.grpc.StatusCode.DEADLINE_EXCEEDED, self.grpc.StatusCode.CANCELLED):
                    raise
                assert time.monotonic() < until, f"{method}: {e.details()}"
                time.sleep(0.2)

    def ask(self, n):
        pb, prompt = self.pb, self.random.choice(PROMPTS[:3])
        work = pb.GenerateRequest(text=prompt, max_tokens=80, temperature=1, seed=9, ignore_eos=True)
        job = self.call("SubmitJob", pb.SubmitJobRequest(generate=work, idempotency_key=f"{SEED} {self.number} {n}"))
        self.mark()
        until = time.monotonic() + RECOVERED_S + 60
        while True:
            got = self.call("GetJob", pb.GetJobRequest(id=job.id, output=True))
            self.mark()  # it waits for what other requests leave
            if got.state in (pb.JOB_STATE_DONE, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED):
                break
            assert time.monotonic() < until, f"job {job.id} does not end: {got}"
            time.sleep(0.2)
        said = (got.generate.text, list(got.generate.token_ids), list(got.generate.logprobs))
        if got.state != pb.JOB_STATE_DONE or said != self.storm.jobs.setdefault(prompt, said):
            self.storm.wrong(f"job {job.id}: state {got.state} {got.error}, {said}, not {self.storm.jobs[prompt]}")
        self.storm.count("jobs")


class Storm:
    """What happens: the faults, each with its undoing. The leader is whoever leads when it begins."""

    def __init__(self, hosts):
        self.hosts, self.random, self.lock, self.stop = hosts, random.Random(SEED), threading.Lock(), threading.Event()
        self.faults, self.counts, self.met, self.took, self.jobs = [], {}, [], {}, {}
        self.want = {(path, p): Reader(hosts, path, body(path, p, 60), "undisturbed").finish().answer() for path in PATHS for p in PROMPTS}
        self.whole = {p: hosts.post(PATHS[0], body(PATHS[0], p, 30))["choices"][0]["logprobs"] for p in PROMPTS}

    def wrong(self, what):
        with self.lock:
            self.faults.append(f"{time.monotonic() - self.since:.1f} s, {self.met[-1][2] if self.met else 'before any fault'}: {what}"[:2000])

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def coordinators_met(self, since):
        """
        Whether something was done to a coordinator (or to what it leads by) from 30 s before that time on: a lead is also lost some time after its cause. A machine
        that stands still does it too.
        """
        now = time.monotonic()
        return now - (since - 30) - elapsed(since - 30, now) > 1 or any(touches and end > since - 30 for end, touches, _ in list(self.met))

    # ---- faults ----

    def end(self, name, number):
        """Who is stopped gets its signals later: it goes on first."""
        self.hosts.signal(name, number)
        wait_for(f"the end of {name}", lambda p=self.hosts.running[name]: p.poll() is not None, 30)

    def kinds(self):
        """name -> (touches coordinators, what to do, for how long at least and at most, how it is undone)"""
        h, r = self.hosts, self.random
        w, v = r.sample(h.worker_hosts, 2)
        c = h.lead
        standby = next(x for x in h.coordinators if x != c)
        e = h.etcds[0]
        stop, go_on = (lambda x: lambda: h.signal(x, signal.SIGSTOP)), (lambda x: lambda: h.signal(x, signal.SIGCONT))
        down, up = (lambda x: lambda: h.relay_do("down", x)), (lambda x: lambda: h.relay_do("up", x))
        cut, mend = (lambda a, b: lambda: h.relay_do("cut", a, b)), (lambda a, b: lambda: h.relay_do("mend", a, b))
        kill = lambda x: lambda: self.end(x, signal.SIGKILL)
        drain = lambda x: lambda: self.end(x, signal.SIGTERM)

        def bad():
            h.relay_do("delay", 3)
            h.relay_do("jitter", 5)
            h.relay_do("loss", 0.01)

        def good():
            for what in ("delay", "jitter", "loss"):
                h.relay_do(what, 0)

        return {
            "nothing": (False, lambda: None, 1, 1, lambda: None),
            "worker killed": (False, kill(w), 0, 0, None),
            "worker hangs": (False, stop(w), 2, 4, go_on(w)),
            "worker pauses": (False, stop(w), 0.1, 0.8, go_on(w)),
            "worker drains": (False, drain(w), 0, 0, None),
            "worker cut off": (False, down(w), 0.3, 5, up(w)),
            "worker not heard by the coordinator": (True, cut(w, c), 3, 4, mend(w, c)),
            "coordinator not heard by a worker": (True, cut(c, w), 3, 4, mend(c, w)),
            "worker not heard by another": (False, cut(w, v), 3, 5, mend(w, v)),
            "leader killed": (True, kill(c), 0, 0, None),
            "leader hangs": (True, stop(c), 1, 6, go_on(c)),
            "leader ends": (True, drain(c), 0, 0, None),
            "leader cut off": (True, down(c), 1, 6, up(c)),
            "leader not heard by etcd": (True, cut(c, e), 4, 7, mend(c, e)),
            "etcd not heard by the leader": (True, cut(e, c), 4, 7, mend(e, c)),
            "standby killed": (False, kill(standby), 0, 0, None),
            "etcd killed": (True, kill(e), 0, 0, None),
            "etcd hangs": (True, stop(e), 2, 6, go_on(e)),
            "etcd cut off": (True, down(e), 2, 6, up(e)),
            "bad network": (False, bad, 2, 4, good),
        }

    def fault(self, name):
        touches, do, least, most, undo = self.kinds()[name]
        with self.lock:
            self.met.append([time.monotonic() + 1e9, touches, name])
        mine = self.met[-1]
        do()
        time.sleep(self.random.uniform(least, most))
        if undo:
            undo()
        mine[0] = time.monotonic()

    def recovered(self, name, since, clients):
        """Everybody has gone on, after the time in which it may not have shown yet. -> the longest that a stream stood still"""
        after = max(time.monotonic(), since + NOTICED_S)
        while left := [c for c in clients if c.marks[-1] <= after]:
            if elapsed(after) > RECOVERED_S:
                self.wrong(f"{[f'{type(c).__name__} {c.number}' for c in left]}: nothing for {RECOVERED_S} s after '{name}'")
                return None
            time.sleep(0.02)
        longest = 0
        for c in [c for c in clients if isinstance(c, Streams)]:
            marks = [m for m in list(c.marks) if m > since - RECOVERED_S]
            gaps = [b - max(a, since) for a, b in zip(marks, marks[1:]) if b > since and a < after and b != float("inf")]
            longest = max([longest, *gaps])
        return longest

    def clock(self):
        return f"{time.strftime('%H:%M:%S')}, {time.monotonic() - self.since:6.1f} s"

    def blow(self, clients):
        self.since = time.monotonic()
        turn = []
        while time.monotonic() < self.since + SECONDS:
            if not turn:  # each kind once, then again
                turn = list(self.kinds())
                self.random.shuffle(turn)
            name = turn.pop()
            since, name_of = time.monotonic(), name
            if turn and name != "nothing" and self.random.random() < 0.15:
                other = turn.pop()
                name_of = "two at once"
                both = threading.Thread(target=self.fault, args=(other,))
                print(f"{self.clock()}: {name} and {other}", end="", flush=True)
                both.start()
                time.sleep(self.random.uniform(0, 1))
                self.fault(name)
                both.join()
            else:
                print(f"{self.clock()}: {name}", end="", flush=True)
                self.fault(name)
            took = self.recovered(name_of, since, clients)
            print(f": {took and round(took, 2)} s; {self.hosts.lead} leads", flush=True)
            if took is not None:
                self.took.setdefault(name_of, []).append(took)
            time.sleep(self.random.uniform(0, 1))

    def report(self):
        def share(values, q):
            return round(sorted(values)[min(len(values) - 1, int(q * len(values)))], 3)

        out = {"seed": SEED, "seconds": SECONDS, "counts": self.counts,
               "recovery_s": {k: {"n": len(v), "p50": share(v, 0.5), "p99": share(v, 0.99)} for k, v in sorted(self.took.items())}}
        print(json.dumps(out, indent=1), flush=True)
        if os.environ.get("CHAOS_JSON"):
            with open(os.environ["CHAOS_JSON"], "w") as f:
                json.dump(out, f, indent=1)


class Chaos(unittest.TestCase):
    def test_chaos(self):
        flags = ("--spread-min-tokens", 300, "--log-level", "info")
        # one leads with second copies, the other without
        hosts = Hosts(*flags, coordinators=2, etcds=1, each=(("--replicas", 1), ("--replicas", 0)), kv_bytes="96M", supervised=True)
        try:
            self.storm(hosts)
        except BaseException:
            hosts.kill()
            raise
        finally:
            if os.environ.get("CHAOS_LOG"):
                with open(os.environ["CHAOS_LOG"], "w") as f:
                    f.writelines(hosts.log_lines)
        hosts.stop()

    def idle(self, hosts):
        """-> (descriptors, bytes) of each process"""
        hosts.check_quiet(60)
        time.sleep(1)
        return {name: (descriptors(hosts.pid(name)), resident_bytes(hosts.pid(name))) for name in hosts.coordinators + hosts.worker_hosts}

    def storm(self, hosts):
        storm = Storm(hosts)
        before = self.idle(hosts)
        stop_following = threading.Event()

        def follow():
            while not stop_following.is_set():
                hosts.follow()
                time.sleep(0.2)

        threading.Thread(target=follow, daemon=True).start()
        clients = [Streams(storm, i) for i in range(READERS)] + [Plain(storm, i) for i in range(PLAIN)] + [Jobs(storm, 0)]
        for c in clients:
            c.start()
        storm.blow(clients)
        storm.stop.set()
        for c in clients:
            c.join(RECOVERED_S + 70)
            self.assertFalse(c.is_alive(), f"{type(c).__name__} {c.number} never ends")
        storm.report()
        self.assertEqual(storm.faults, [])
        for what in ("streams", "answers", "jobs"):
            self.assertGreater(storm.counts.get(what, 0), 0)
        # all is well again, and nothing is left behind
        wait_for("a leader and a standby", lambda: sorted(hosts.probe(c) or 0 for c in hosts.coordinators) == [200, 503], 60)
        stop_following.set()
        hosts.follow()
        hosts.wait_workers(timeout_s=60)
        for (path, p), want in storm.want.items():
            self.assertEqual(Reader(hosts, path, body(path, p, 60), "afterwards").finish().answer(), want)
        after = self.idle(hosts)
        for name, (n, size) in after.items():
            self.assertLess(n, max(v for k, (v, _) in before.items() if k[0] == name[0]) + MORE_DESCRIPTORS, f"descriptors of {name}")
            self.assertLess(size, max(v for k, (_, v) in before.items() if k[0] == name[0]) + MORE_BYTES, f"memory of {name}")


if __name__ == "__main__":
    go_inside()
    cluster.main()
