"""Several hosts: coordinator and three workers in network namespaces of their own, joined by a switch that can delay and drop every packet (relay.py)."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import cluster
from cluster import LONGSPAN, MODEL, ROOT, Cluster, prose, wait_for

HOSTS = {"client": "10.77.0.100", "c": "10.77.0.1", "w1": "10.77.0.11", "w2": "10.77.0.12", "w3": "10.77.0.13"}
WORKERS = ("w1", "w2", "w3")


def go_inside():
    """Starts this test again in a network namespace of its own: it is the clients' host."""
    for tool in ("unshare", "nsenter", "ip"):
        if not shutil.which(tool):
            cluster.lacking(f"the program {tool} is missing")
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if subprocess.run([*unshare, "sh", "-c", "exec 3<>/dev/net/tun && ip link set lo up"], capture_output=True).returncode:
        cluster.lacking("no right to make network namespaces with tap devices")
    os.environ["LONGSPAN_INSIDE"] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


class Hosts(Cluster):
    """The same face as a cluster of `up`, but started host by host."""

    def __init__(self, *flags):
        self.directory = tempfile.mkdtemp(prefix="longspan-test-")
        self.n_workers, self.log_lines, self.log_changed = len(WORKERS), [], threading.Condition()
        self.command = ["longspan on", *HOSTS]
        cluster._clusters.append(self)
        self.places, self.running = {"client": os.getpid()}, {}
        for name in HOSTS:
            if name != "client":  # who keeps the namespace
                # UCX looks for interfaces in /sys, which shows those of the namespace that it was mounted in
                p = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && exec sleep infinity"])
                self.running["host " + name] = p
                self.places[name] = p.pid
        for name, pid in self.places.items():
            if name != "client":
                wait_for("a namespace", lambda pid=pid: cluster.command_of(pid)[:1] == ["sleep"], 10)
        ports = [f"{name}={pid}={HOSTS[name]}/24" for name, pid in self.places.items()]
        self.relay = subprocess.Popen([sys.executable, os.path.join(cluster.HERE, "relay.py"), *ports], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        self.running["relay"] = self.relay
        assert self.relay.stdout.readline() == "ok\n"
        for name in WORKERS:  # before there is a coordinator: hosts start in any order
            self.start_worker(name)
        a = HOSTS["c"]
        self.start("c", "coordinator", "--http", f"{a}:0", "--grpc", f"{a}:0", "--control", f"{a}:7070", "--workers", "3", "--model", MODEL,
                   "--state", os.path.join(self.directory, "state"), *flags)
        found = self.wait_log(r"^c: http (\S+):(\d+)", 30)
        self.host, self.port = found.group(1), int(found.group(2))
        self.grpc = self.wait_log(r"^c: grpc (\S+)", 10).group(1)
        self.wait_workers()

    def start(self, host, *args):
        p = subprocess.Popen(["nsenter", "-t", str(self.places[host]), "-n", "-m", LONGSPAN, *args], stdin=subprocess.DEVNULL, cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.running[host] = p
        threading.Thread(target=self.read_log, args=(host, p), daemon=True).start()

    def start_worker(self, host):
        self.start(host, "worker", "--control", f"{HOSTS['c']}:7070", "--bind", HOSTS[host], "--threads", "1", "--kv-bytes", "256M")

    def read_log(self, host, p):
        for line in p.stdout:
            with self.log_changed:
                self.log_lines.append(f"{host}: {line.decode('utf-8', 'replace')}")
                self.log_changed.notify_all()

    def relay_do(self, *command):
        self.relay.stdin.write(" ".join(map(str, command)) + "\n")
        self.relay.stdin.flush()
        answer = self.relay.stdout.readline()
        return json.loads(answer) if command == ("stats",) else self_check(answer)

    def worker_id(self, host):
        return next(w["id"] for w in self.workers() if w["address"].startswith(HOSTS[host] + ":"))

    def stop(self):
        took = {}
        for host in (*WORKERS, "c"):
            start = time.monotonic()
            self.running[host].send_signal(signal.SIGTERM)
            assert self.running[host].wait(15) == 0, f"{host} ended with status {self.running[host].returncode}"
            took[host] = time.monotonic() - start
        self.kill()
        return took

    def kill(self):
        for p in self.running.values():
            if p.poll() is None:
                p.kill()
            p.wait()
        self._remove()


def self_check(answer):
    assert answer == "ok\n", answer
    return True


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
        self.hosts.relay_do("delay", 0)
        for w in WORKERS:
            self.hosts.relay_do("up", w)
        self.hosts.wait_workers(timeout_s=30)
        self.check_answer(12)

    def check_answer(self, n):
        tokens, logprobs, _ = self.hosts.complete(self.prompt, n)
        self.assertEqual((tokens, logprobs), (self.reference[0][:n], self.reference[1][:n]))

    def bytes_sent(self):
        """What each worker has sent to others, when heartbeats have brought all of it."""
        last = None
        while True:
            now = {next(h for h in WORKERS if w["address"].startswith(HOSTS[h] + ":")): w["bytes_sent"] for w in self.hosts.workers()}
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
        t.join(60)
        self.assertIsNone(done["error"])  # the others computed what it held

    def test_coordinator_cut_off(self):
        """Nobody hears the coordinator for a while: workers come back when they do."""
        self.hosts.relay_do("down", "c")
        time.sleep(3)
        self.hosts.relay_do("up", "c")
        self.hosts.wait_workers(timeout_s=30)

    def test_worker_started_again(self):
        old = self.hosts.worker_id("w1")
        self.hosts.running["w1"].kill()
        self.hosts.running["w1"].wait()
        wait_for("two workers", lambda: len(self.hosts.workers()) == 2, 10)
        self.hosts.start_worker("w1")
        self.hosts.wait_workers()
        self.assertNotEqual(self.hosts.worker_id("w1"), old)


if __name__ == "__main__":
    if not os.environ.get("LONGSPAN_INSIDE"):
        go_inside()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    cluster.main()
