"""Two coordinators at one etcd: the standby refuses with a reason, and takes over workers, blocks and jobs when the leader is killed, hangs or is cut off."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import cluster
from cluster import LONGSPAN, MODEL, PATIENT_MS, ROOT, elapsed, free_port, is_alive, prose, wait_for
from etcd import Etcd, Link
from rpc import Rpc, grpc, pb

PLAIN = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
FIELDS = dict(temperature=1, seed=7, ignore_eos=True)


class Process:
    def __init__(self, log, *args):
        self.command = [LONGSPAN, *map(str, args)]
        self.log = open(log, "ab")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, cwd=ROOT)
        self.pid = self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


class Coordinator(Process):
    def __init__(self, site, name, registry, at=None):
        """Its control port is bound to all addresses; others find it at the one that it advertises."""
        at = at or {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "control": f"127.0.0.1:{free_port()}"}
        super().__init__(os.path.join(site.directory, "log"), "coordinator", f"--http={at['http']}", f"--grpc={at['grpc']}",
                         f"--control=0.0.0.0:{at['control'].split(':')[1]}", f"--control-advertise={at['control']}",
                         f"--registry=etcd:{registry}", f"--state={site.directory}/{name}", f"--jobs-dir={site.directory}/jobs",
                         "--lease-ms=2000", "--workers=2", f"--model={MODEL}", "--log-level=info", "--spread-min-tokens=300",
                         f"--silence-ms={site.silence_ms}")
        self.at = dict(self.process.stdout.readline().decode().split() for _ in range(3)) | {"control": at["control"]}

    def http(self, method, path, body=None, timeout=60):
        host, port = self.at["http"].split(":")
        c = http.client.HTTPConnection(host, int(port), timeout=timeout)
        try:
            c.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            r = c.getresponse()
            return r.status, dict(r.headers), json.loads(r.read())
        finally:
            c.close()

    def ready(self):
        try:
            return self.http("GET", "/ready", timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False


class Site:
    """What a client knows: two addresses."""

    def __init__(self, test):
        self.http = [test.first.at["http"], test.second.at["http"]]
        self.grpc = [test.first.at["grpc"], test.second.at["grpc"]]


def turns(addresses, since, limit_s=60):
    """The addresses in turn, for so long."""
    while time.monotonic() - since < limit_s:
        yield from addresses
    raise AssertionError("nobody has served it for a minute")


def post(address, body, headers=None):
    host, port = address.split(":")
    c = http.client.HTTPConnection(host, int(port), timeout=60)
    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
    return c, c.getresponse()


def whole(site, prompt):
    """Again only where nothing was begun: refused with Retry-After, or no server took the connection."""
    for address in turns(site.http, time.monotonic()):
        try:
            c, r = post(address, {**PLAIN, "prompt": prompt})
        except (ConnectionError, http.client.RemoteDisconnected):
            time.sleep(0.1)
            continue
        data = json.loads(r.read())
        c.close()
        if r.status == 200:
            return data["choices"][0]["text"]
        assert r.status == 503 and r.headers["Retry-After"], (r.status, data)
        time.sleep(0.2)


def resumed(site, prompt):
    """A stream that goes on behind the last event that came."""
    key, last, text = os.urandom(8).hex(), None, ""
    for address in turns(site.http, time.monotonic()):
        try:
            c, r = post(address, {**PLAIN, "prompt": prompt, "stream": True}, {"Idempotency-Key": key, **({"Last-Event-ID": last} if last else {})})
            if r.status != 200:
                assert r.status == 503 and r.headers["Retry-After"], (r.status, r.read())
                time.sleep(0.2)
                continue
            event_id = None
            for line in r:
                line = line.decode().rstrip("\n")
                if line.startswith("id: "):
                    event_id = line[4:]
                elif line == "data: [DONE]":
                    c.close()
                    return text
                elif line.startswith("data: ") and "error" not in (event := json.loads(line[6:])):
                    text += event["choices"][0]["text"]
                    last = event_id
        except (ConnectionError, http.client.HTTPException):
            pass
        time.sleep(0.1)


def by_grpc(site, prompt):
    """Goes on behind the last place that came."""
    key, place, text = os.urandom(8).hex(), "", ""
    for address in turns(site.grpc, time.monotonic()):
        rpc = Rpc(address)
        try:
            for m in rpc.inference.Generate(pb.GenerateRequest(text=prompt, max_tokens=PLAIN["max_tokens"], temperature=0, ignore_eos=True, idempotency_key=key,
                                                               resume_from=place), timeout=60):
                text += m.text
                place = m.place or place
            return text
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.UNAVAILABLE, (e.code(), e.details())
        finally:
            rpc.close()
        time.sleep(0.2)


class Takeover(unittest.TestCase):
    silence_ms = PATIENT_MS

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="longspan-takeover-")
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.addCleanup(self.show_log)
        self.etcd = Etcd()
        self.addCleanup(self.etcd.remove)

    def show_log(self):
        outcome = self._outcome
        if outcome and any(test is self for test, _ in outcome.result.errors + outcome.result.failures):
            with open(os.path.join(self.directory, "log"), errors="replace") as f:
                print("".join(f.readlines()[-80:]))

    def worker(self):
        w = Process(os.path.join(self.directory, "log"), "worker", f"--control={self.addresses}", "--bind=127.0.0.1", "--threads=1",
                    "--kv-bytes=256M", "--log-level=info")
        self.addCleanup(w.end)
        return w

    def coordinator(self, name, registry=None, at=None):
        c = Coordinator(self, name, registry or self.etcd.client, at)
        self.addCleanup(c.end)
        return c

    def begin(self, registry_of_first=None):
        self.first = self.coordinator("a", registry_of_first)
        wait_for("the first leads", lambda: f'"control":"{self.first.at["control"]}"' in self.etcd.ctl("get", "longspan/election/coordinator"))
        self.second = self.coordinator("b")
        addresses = f"{self.first.at['control']},{self.second.at['control']}"
        self.addresses = addresses
        self.workers = [self.worker() for _ in range(2)]
        wait_for("the first is ready", self.first.ready, 60)

    def takes_over(self, since, limit_s):
        wait_for("the standby is ready", self.second.ready, 60)
        took = elapsed(since)
        print(f"took over after {took:.1f} s", flush=True)
        self.assertLess(took, limit_s)
        self.assertTrue(all(is_alive(w.pid) for w in self.workers))

    def test_killed(self):
        self.begin()
        code, headers, body = self.second.http("GET", "/ready")
        self.assertEqual((code, body), (503, {"status": "standby"}))
        code, headers, body = self.second.http("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2})
        self.assertEqual((code, body["error"]["code"], headers["Retry-After"]), (503, "standby", "1"))
        self.assertIn(self.first.at["http"], body["error"]["message"])
        standby = Rpc(self.second.at["grpc"])
        with self.assertRaises(grpc.RpcError) as caught:
            standby.whole(text="x", max_tokens=2)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("another leads", caught.exception.details())

        leader = Rpc(self.first.at["grpc"])
        prompt = prose(70, 3)
        want = leader.whole(text=prompt, max_tokens=40, **FIELDS)
        undisturbed = leader.whole(text="Count:", max_tokens=300, **FIELDS)[:3]
        job = leader.inference.SubmitJob(pb.SubmitJobRequest(generate=pb.GenerateRequest(text="Count:", max_tokens=300, **FIELDS)), timeout=20)
        wait_for("it has generated some", lambda: leader.inference.GetJob(pb.GetJobRequest(id=job.id)).completion_tokens > 100, 60)
        leader.close()
        self.first.signal(signal.SIGKILL)
        self.takes_over(time.monotonic(), 15)

        # its blocks are prefix hits, its job goes on to the same end
        got = standby.whole(text=prompt, max_tokens=40, **FIELDS)
        self.assertEqual(got[:3], want[:3])
        self.assertEqual(got[3].usage.cached_tokens, (want[3].usage.prompt_tokens - 1) // 64 * 64)

        def ended():
            j = standby.inference.GetJob(pb.GetJobRequest(id=job.id, output=True), timeout=10)
            return j if j.state == pb.JOB_STATE_DONE else None

        done = wait_for("the job is done", ended, 60)
        self.assertEqual((done.generate.text, list(done.generate.token_ids), list(done.generate.logprobs)), undisturbed)
        standby.close()
        # the one that was killed comes back as the standby, and takes over in its turn
        self.first.end()
        third = self.coordinator("a")
        wait_for("it stands by", lambda: third.http("GET", "/ready")[2] == {"status": "standby"})

    def test_rolling_restart(self):
        """Every process is replaced in turn by SIGTERM, under load of clients that do as they are told (Retry-After, Last-Event-ID, UNAVAILABLE): no request fails, every answer is right."""
        self.begin()
        site = Site(self)
        want = {p: self.first.http("POST", "/v1/completions", {**PLAIN, "prompt": p})[2]["choices"][0]["text"] for p in ("One two", "The river", "Count:")}
        stop, done, wrong = threading.Event(), {}, []

        def load(ask, prompt):
            while not stop.is_set():
                try:
                    got = ask(site, prompt)
                    done[ask.__name__] = done.get(ask.__name__, 0) + 1
                    if got != want[prompt]:
                        wrong.append((ask.__name__, prompt, got))
                except Exception as e:  # whatever it is, it is a request that failed
                    wrong.append((ask.__name__, prompt, repr(e)))

        loads = [threading.Thread(target=load, args=a) for a in ((whole, "One two"), (resumed, "The river"), (by_grpc, "Count:"))]
        for t in loads:
            t.start()

        def more():
            before = dict(done)
            wait_for("each is served", lambda: all(done.get(f.__name__, 0) > before.get(f.__name__, 0) for f in (whole, resumed, by_grpc)) or wrong, 90)

        try:
            more()
            self.second.signal(signal.SIGTERM)
            self.assertEqual(self.second.process.wait(60), 0)
            self.second = self.coordinator("c", at=self.second.at)
            more()
            leader = self.first
            leader.signal(signal.SIGTERM)
            began = time.monotonic()
            self.assertEqual(leader.process.wait(60), 0)
            ended = time.monotonic()
            self.takes_over(ended, 10)
            print(f"the leader drained for {ended - began:.1f} s", flush=True)
            self.first = self.coordinator("a", at=leader.at)
            more()
            for i, w in enumerate(self.workers):
                w.signal(signal.SIGTERM)
                self.assertEqual(w.process.wait(60), 0)
                self.workers[i] = self.worker()
                wait_for("two workers", lambda: len(self.second.http("GET", "/status")[2]["workers"]) >= 2 and
                         sum(x["state"] == "ready" for x in self.second.http("GET", "/status")[2]["workers"]) == 2, 40)
            more()
        finally:
            stop.set()
            for t in loads:
                t.join()
        self.assertEqual(wrong, [])
        print(f"answers: {done}", flush=True)

    def test_command_fails_over(self):
        """`generate` knows both addresses: its answer goes on at the standby when the leader is killed."""
        self.begin()
        grpc_addresses = f"{self.first.at['grpc']},{self.second.at['grpc']}"
        ask = ("generate", "--grpc", grpc_addresses, "--prompt", "Tell me of the sea.", "--max-tokens", 200, "--temperature", 1, "--seed", 5, "--ignore-eos")
        want = cluster.run(*ask)[0]
        process = subprocess.Popen([LONGSPAN, *map(str, ask)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        got = os.read(process.stdout.fileno(), 4096)
        self.first.signal(signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual((got + out).decode(), want)
        self.assertIn(b"trying again", err)
        wait_for("the standby is ready", self.second.ready, 60)

    def test_hangs(self):
        """SIGSTOP: workers leave it, the standby leads; woken up it finds that out, and ends."""
        self.silence_ms = 1500
        self.begin()
        want = self.first.http("POST", "/v1/completions", {"prompt": "One two", "max_tokens": 20, "temperature": 0})[2]["choices"]
        self.first.signal(signal.SIGSTOP)
        self.takes_over(time.monotonic(), 20)
        self.assertEqual(self.second.http("POST", "/v1/completions", {"prompt": "One two", "max_tokens": 20, "temperature": 0})[2]["choices"], want)
        self.first.signal(signal.SIGCONT)
        self.assertEqual(self.first.process.wait(60), 1)
        self.assertEqual(self.second.http("POST", "/v1/completions", {"prompt": "One two", "max_tokens": 20, "temperature": 0})[2]["choices"], want)

    def test_cut_off(self):
        """etcd hangs: what runs goes on, and nobody takes over. The leader alone is cut off from it: it ends when the next one tells it, and has its workers."""
        link = Link(self.etcd.client)
        self.addCleanup(link.close)
        self.begin(link.address)
        body = {"prompt": "One two", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        want = self.first.http("POST", "/v1/completions", body)[2]["choices"]

        def goes_on(seconds):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                code, _, answer = self.first.http("POST", "/v1/completions", body)
                self.assertEqual((code, answer["choices"]), (200, want))

        self.etcd.stop()
        goes_on(5)
        self.assertFalse(self.second.ready())
        self.etcd.go_on()
        goes_on(2)
        self.assertIsNone(self.first.process.poll())
        link.cut()
        wait_for("the standby leads", lambda: self.second.at["http"] in self.etcd.ctl("get", "longspan/election/coordinator", "--print-value-only"), 60)
        # the link is not mended: it learns from who leads now, at its control address, that its time is over
        self.assertEqual(self.first.process.wait(60), 1)
        self.takes_over(time.monotonic(), 15)
        self.assertEqual(self.second.http("POST", "/v1/completions", body)[2]["choices"], want)

    def test_registry_begins_anew(self):
        """All that etcd knew is lost: its revisions are low again. A leader goes on; new coordinators find workers that have obeyed a higher term, and raise theirs."""
        for i in range(30):  # revisions that a new etcd will not have
            self.etcd.ctl("put", f"elsewhere/{i}", "x")
        self.begin()
        body = {"prompt": prose(30, 5), "max_tokens": 30, "temperature": 0, "ignore_eos": True}
        want = self.first.http("POST", "/v1/completions", body)[2]

        def begin_anew():
            self.etcd.remove()
            self.etcd.start()
            wait_for("etcd", lambda: self.etcd.ctl("endpoint", "health") or self.etcd.ctl("put", "elsewhere/0", "x"))

        begin_anew()
        wait_for("it leads by the new one", lambda: "election/coordinator" in self.etcd.ctl("get", "--prefix", "longspan/", "--keys-only"))

        def answered():
            """By either: who leads no more may not know it yet, and end in the middle."""
            for c in (self.first, self.second):
                try:
                    code, _, answer = c.http("POST", "/v1/completions", body)
                    if code == 200:
                        return answer["choices"]
                    self.assertEqual(code, 503, answer)
                except (OSError, http.client.HTTPException):
                    pass
            return None

        self.assertEqual(wait_for("one of the two answers", answered, 60), want["choices"])
        for c in (self.first, self.second):
            c.end()
        begin_anew()
        self.first = self.coordinator("a2", at={"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "control": self.first.at["control"]})
        wait_for("it is ready", self.first.ready, 40)
        self.assertTrue(all(is_alive(w.pid) for w in self.workers))
        again = self.first.http("POST", "/v1/completions", body)[2]
        self.assertEqual(again["choices"], want["choices"])
        n = again["usage"]["prompt_tokens"]
        self.assertEqual(again["usage"]["prompt_tokens_details"]["cached_tokens"], (n - 1) // 64 * 64)  # what workers held is still theirs
        with open(os.path.join(self.directory, "log"), errors="replace") as f:
            self.assertRegex(f.read(), r"a worker has obeyed a coordinator of term \d+, of which the registry knows nothing")


if __name__ == "__main__":
    cluster.main()
