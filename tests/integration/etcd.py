"""A real etcd of one member, for tests: killed, stopped and started again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading

import cluster

for program in ("etcd", "etcdctl"):
    if not shutil.which(program):
        cluster.lacking(f"{program} is not installed (scripts/install.sh)")


class Etcd:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="longspan-etcd-")
        self.client, self.peer = (f"127.0.0.1:{cluster.free_port()}" for _ in range(2))
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["etcd", "--name", "n", "--data-dir", os.path.join(self.directory, "data"), "--listen-client-urls", f"http://{self.client}",
             "--advertise-client-urls", f"http://{self.client}", "--listen-peer-urls", f"http://{self.peer}",
             "--initial-advertise-peer-urls", f"http://{self.peer}", "--initial-cluster", f"n=http://{self.peer}",
             "--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """It answers nothing, and keeps its connections."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def ctl(self, *args):
        done = subprocess.run(["etcdctl", f"--endpoints={self.client}", *args], capture_output=True, timeout=20,
                              env={**os.environ, "ETCDCTL_API": "3"})
        return done.stdout.decode() if done.returncode == 0 else ""

    def keys(self):
        return self.ctl("get", "--prefix", "longspan/", "--keys-only").split()

    def remove(self):
        self.kill()
        shutil.rmtree(self.directory, True)


class Link:
    """A way to an address that can be cut: what is on it then is swallowed, either way, and nothing says so."""

    def __init__(self, to):
        host, port = to.rsplit(":", 1)
        self.to, self.is_cut, self.sockets = (host, int(port)), False, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.to)
            except OSError:
                near.close()
                continue
            self.sockets += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a, b):
        try:
            while data := a.recv(65536):
                if not self.is_cut:
                    b.sendall(data)
        except OSError:
            pass
        finally:
            for s in (a, b):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def cut(self):
        self.is_cut = True

    def mend(self):
        """Connections of before have lost bytes: they break."""
        self.is_cut = False
        sockets, self.sockets = self.sockets, []
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()
        self.mend()
