"""Several hosts on one machine: coordinators, workers and etcd in network namespaces of their own, joined by a switch that delays, drops and cuts (relay.py).

A test calls go_inside() first: its own process is the clients' host.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import cluster
from cluster import LONGSPAN, MODEL, ROOT, Cluster, wait_for

CLIENT = "10.77.0.100"
HTTP, GRPC, CONTROL, ETCD, ETCD_PEER = 8080, 9090, 7070, 2379, 2380
FIRST = {"c": 1, "w": 11, "e": 21}  # last number of the first coordinator's, worker's and etcd's address


def go_inside():
    """Starts this test again in a network namespace of its own."""
    if os.environ.get("LONGSPAN_INSIDE"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    for tool in ("unshare", "nsenter", "ip"):
        if not shutil.which(tool):
            cluster.lacking(f"the program {tool} is missing")
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if subprocess.run([*unshare, "sh", "-c", "exec 3<>/dev/net/tun && ip link set lo up"], capture_output=True).returncode:
        cluster.lacking("no right to make network namespaces with tap devices")
    os.environ["LONGSPAN_INSIDE"] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


class Connection(http.client.HTTPConnection):
    """Known to its hosts by the coordinator that it goes to."""

    def __init__(self, hosts, name, timeout_s):
        super().__init__(hosts.address[name], HTTP, timeout=timeout_s)
        self.hosts, self.name = hosts, name

    def connect(self):
        super().connect()
        with self.hosts.lock:
            self.hosts.open.setdefault(self.name, []).append(self.sock)


class Hosts(Cluster):
    """
    The same face as a cluster of `up`, but started host by host; requests go to the coordinator that leads. each: flags of single coordinators, beside flags.
    With etcds > 0 that is the registry, else each coordinator has one of its own. ready: what ends is started again, as systemd would.
    """

    def __init__(self, *flags, workers=3, coordinators=1, etcds=0, each=(), lease_ms=3000, kv_bytes="256M", supervised=False):
        self.directory = tempfile.mkdtemp(prefix="longspan-test-")
        self.log_lines, self.log_changed, self.lock = [], threading.Condition(), threading.Lock()
        self.n_workers, self.supervised, self.stopping, self.open = workers, supervised, False, {}
        many = {"c": coordinators, "w": workers, "e": etcds}
        self.names = {kind: [f"{kind}{i + 1}" for i in range(n)] for kind, n in many.items()}
        self.address = {name: f"10.77.0.{FIRST[kind] + i}" for kind, names in self.names.items() for i, name in enumerate(names)}
        self.coordinators, self.worker_hosts, self.etcds = (self.names[k] for k in "cwe")
        self.lead = self.coordinators[0]
        self.command = ["longspan on", *self.address]
        cluster._clusters.append(self)
        self.places, self.running, self.args, self.held = {"client": os.getpid()}, {}, {}, set()
        try:
            self.build()
            self.begin(flags, each, lease_ms, kv_bytes)
        except BaseException:
            self.kill()
            raise

    def build(self):
        for name in self.address:  # who keeps the namespace
            # UCX looks for interfaces in /sys, which shows those of the namespace that it was mounted in
            p = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", "mount -t sysfs sysfs /sys && exec sleep infinity"])
            self.running["host " + name] = p
            self.places[name] = p.pid
        for name in self.address:
            wait_for("a namespace", lambda pid=self.places[name]: cluster.command_of(pid)[:1] == ["sleep"], 60)
        ports = [f"{name}={pid}={self.address.get(name, CLIENT)}/24" for name, pid in self.places.items()]
        self.relay = subprocess.Popen([sys.executable, os.path.join(cluster.HERE, "relay.py"), *ports], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        self.running["relay"] = self.relay
        assert self.relay.stdout.readline() == "ok\n"

    def begin(self, flags, each, lease_ms, kv_bytes):
        control = ",".join(f"{self.address[c]}:{CONTROL}" for c in self.coordinators)
        for name in self.worker_hosts:  # before there is a coordinator: hosts start in any order
            self.start(name, LONGSPAN, "worker", "--control", control, "--bind", self.address[name], "--threads", "1", "--kv-bytes", kv_bytes)
        peers = ",".join(f"{e}=http://{self.address[e]}:{ETCD_PEER}" for e in self.etcds)
        for name in self.etcds:
            a = self.address[name]
            self.start(name, "etcd", "--name", name, "--data-dir", os.path.join(self.directory, name), "--listen-client-urls", f"http://{a}:{ETCD}",
                       "--advertise-client-urls", f"http://{a}:{ETCD}", "--listen-peer-urls", f"http://{a}:{ETCD_PEER}",
                       "--initial-advertise-peer-urls", f"http://{a}:{ETCD_PEER}", "--initial-cluster", peers, "--heartbeat-interval", "50",
                       "--election-timeout", "500", "--logger", "zap", "--log-level", "error")
        registry = ",".join(f"{self.address[e]}:{ETCD}" for e in self.etcds)
        for i, name in enumerate(self.coordinators):
            a = self.address[name]
            self.start(name, LONGSPAN, "coordinator", "--http", f"{a}:{HTTP}", "--grpc", f"{a}:{GRPC}", "--control", f"{a}:{CONTROL}",
                       "--workers", str(self.n_workers), "--model", MODEL, "--state", os.path.join(self.directory, "state-" + name),
                       "--jobs-dir", os.path.join(self.directory, "jobs"), "--lease-ms", str(lease_ms),
                       *([] if not registry else ["--registry", "etcd:" + registry]), *map(str, flags), *map(str, each[i] if each else ()))
        wait_for("a coordinator that leads", self.follow, 60)
        self.wait_workers(timeout_s=60)
        if self.supervised:
            threading.Thread(target=self.supervise, daemon=True).start()

    # ---- processes ----

    def start(self, name, *args):
        """In the host's namespaces: it has the process id that is returned by Popen."""
        self.args[name] = args
        p = subprocess.Popen(["nsenter", "-t", str(self.places[name]), "-n", "-m", *args], stdin=subprocess.DEVNULL, cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.running[name] = p
        threading.Thread(target=self.read_log, args=(name, p), daemon=True).start()

    def start_again(self, name):
        self.start(name, *self.args[name])

    def read_log(self, name, p):
        for line in p.stdout:
            with self.log_changed:
                self.log_lines.append(f"{name}: {line.decode('utf-8', 'replace')}")
                self.log_changed.notify_all()

    def supervise(self):
        while not self.stopping:
            for name in self.args:
                if self.running[name].poll() is not None and name not in self.held and not self.stopping:
                    time.sleep(0.3)
                    self.start_again(name)
            time.sleep(0.05)

    def pid(self, name):
        return self.running[name].pid

    def signal(self, name, number):
        self.running[name].send_signal(number)

    # ---- the network ----

    def relay_do(self, *command):
        with self.lock:
            self.relay.stdin.write(" ".join(map(str, command)) + "\n")
            self.relay.stdin.flush()
            answer = self.relay.stdout.readline()
        if command == ("stats",):
            return json.loads(answer)
        assert answer == "ok\n", (command, answer)
        return True

    # ---- who leads ----

    @property
    def host(self):
        return self.address[self.lead]

    @property
    def port(self):
        return HTTP

    @property
    def grpc(self):
        return f"{self.host}:{GRPC}"

    def connect(self, timeout_s=120):
        return Connection(self, self.lead, timeout_s)

    def probe(self, name, timeout_s=1):
        """What /ready answers there; None: nothing."""
        c = http.client.HTTPConnection(self.address[name], HTTP, timeout=timeout_s)
        try:
            c.request("GET", "/ready")
            return c.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            c.close()

    def follow(self):
        """One look, as a load balancer takes: requests go to who is ready; connections to who does not answer, while another is ready, are cut."""
        ready = {name: self.probe(name) for name in self.coordinators}
        leads = [name for name, code in ready.items() if code == 200]
        if leads and self.lead not in leads:
            self.lead = leads[0]
        for name in self.coordinators:
            if leads and ready[name] is None:
                with self.lock:
                    sockets = self.open.pop(name, [])
                for s in sockets:
                    try:
                        s.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
        return leads

    def workers(self, state="ready"):
        try:
            return super().workers(state)
        except subprocess.TimeoutExpired:  # the coordinator hangs
            return []

    def worker_id(self, name):
        return next(w["id"] for w in self.workers() if w["address"].startswith(self.address[name] + ":"))

    # ---- the end ----

    def stop(self):
        """-> seconds that each process took"""
        self.stopping = True
        took = {}
        for name in (*self.worker_hosts, *self.coordinators):
            start = time.monotonic()
            self.signal(name, signal.SIGTERM)
            assert self.running[name].wait(60) == 0, f"{name} ended with status {self.running[name].returncode}"
            took[name] = time.monotonic() - start
        self.kill()
        return took

    def kill(self):
        self.stopping = True
        for p in list(self.running.values()):
            if p.poll() is None:
                p.kill()
            p.wait()
        self._remove()
