"""What the integration tests share: a cluster started with `longspan up`, clients for it, and what it must give back.

LONGSPAN is the program (build/release/longspan if unset). A test that lacks something it needs ends with 77, "skipped"; under CI=true it fails.
"""

import array
import http.client
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LONGSPAN = os.path.abspath(os.environ.get("LONGSPAN") or os.path.join(ROOT, "build/release/longspan"))
MODEL = os.path.join(ROOT, "models/smollm2-135m-instruct")
CI = os.environ.get("CI") == "true"

PATIENT_MS = 10000  # of silence, after which a worker is given up

_clusters = []


def lacking(what):
    """Something that the test needs is not here."""
    if CI:
        sys.exit(f"{what}; CI=true: nothing may be skipped")
    print(f"skipped: {what}")
    sys.exit(77)


def need_module(name):
    try:
        return importlib.import_module(name)
    except ImportError as e:
        lacking(f"{e} (scripts/venv.sh makes .venv)")


def main(needs_model=True):
    """Runs the tests of the calling file; shows the logs of its clusters if one fails."""
    if not os.access(LONGSPAN, os.X_OK):
        lacking(f"{LONGSPAN} is not built")
    if needs_model and not os.path.isdir(MODEL):
        lacking(f"{MODEL} is not there (make model)")
    program = unittest.main(module="__main__", exit=False, verbosity=2, warnings="ignore")
    ok = program.result.wasSuccessful()
    for c in _clusters:
        if not ok and c.log_lines:
            lines = [line for line in c.log_lines if "; asking " not in line]  # members of etcd in turn, many a second while all are away
            print(f"---- log of {' '.join(c.command)}\n" + "".join(lines[-200:]))
        c.kill()
    sys.exit(0 if ok else 1)


# ---- logits ----


def logit_rows(path, vocabulary):
    """(position, logits) of what --dump-logits wrote."""
    with open(path, "rb") as f:
        while head := f.read(4):
            yield struct.unpack("<I", head)[0], array.array("f", f.read(4 * vocabulary))


def distance(got, want):
    """Of two rows, over the length of what is wanted."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(got, want)) / sum(b * b for b in want))


# ---- waiting and ports ----


class Stalls(threading.Thread):
    """Looks at the clock all the time: when the machine let this process stand still, others stood still too, and cannot be blamed."""

    def __init__(self):
        super().__init__(daemon=True)
        self.gaps, self.last, self.lock = [], time.monotonic(), threading.Lock()
        self.start()

    def run(self):
        while True:
            time.sleep(0.02)
            self.look()

    def look(self):
        with self.lock:
            now = time.monotonic()
            if now - self.last > 0.1:
                self.gaps.append((self.last, now))
            self.last = now

    def between(self, since, until):
        self.look()  # it may run before the thread does, after a halt
        return sum(max(0, min(end, until) - max(begin, since)) for begin, end in list(self.gaps))


_stalls = Stalls()


def elapsed(since, until=None):
    """Seconds from then, by time.monotonic(), to now or another time, less those in which the machine stood still."""
    until = until or time.monotonic()
    return until - since - _stalls.between(since, until)



def free_port():
    """Of those that the kernel gives nobody by itself, so that it is free still when it is bound."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def wait_for(what, probe, timeout_s=120):
    """The first true value of probe(), polled; TimeoutError names what was waited for."""
    since = time.monotonic()
    while True:
        value = probe()
        if value:
            return value
        if elapsed(since) > timeout_s:
            raise TimeoutError(f"{what} within {timeout_s} s (last: {value!r})")
        time.sleep(0.02)


# ---- processes ----


def children(pid):
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                stat = f.read()
        except OSError:
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        if int(fields[1]) == pid and fields[0] != b"Z":
            found.append(int(name))
    return sorted(found)


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().decode().split("\0")[:-1]
    except OSError:
        return []


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            stat = f.read()
        return stat[stat.rindex(b")") + 2 :].split()[0] != b"Z"
    except OSError:
        return False


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm", "rb") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(*args, timeout_s=300, check=0, stdin=None, env=None, cwd=ROOT):
    """longspan with args -> (stdout, stderr); check: the exit status it must have (None: any)."""
    done = subprocess.run([LONGSPAN, *map(str, args)], capture_output=True, timeout=timeout_s, input=stdin, cwd=cwd,
                          env={**os.environ, **(env or {})})
    out, err = done.stdout.decode(), done.stderr.decode()
    if check is not None and done.returncode != check:
        raise AssertionError(f"longspan {' '.join(map(str, args))}: status {done.returncode}, not {check}\n{out}\n{err}")
    return out, err


def generate(*args, **kw):
    """longspan generate --local --json -> its object"""
    return json.loads(run("generate", "--local", "--json", *args, **kw)[0])


class Cluster:
    """
    `longspan up` on free ports, with its state in a temporary directory; ready when made. A context manager. Silence is judged late, unless flags say
    when: on a machine that stands still for a second or two nobody is to be lost but who a test kills.
    """

    def __init__(self, *flags, workers=2, model=MODEL, ready=True):
        self.directory = tempfile.mkdtemp(prefix="longspan-test-")
        patient = [] if "--silence-ms" in flags else ["--silence-ms", str(PATIENT_MS)]
        self.command = [LONGSPAN, "up", "--workers", str(workers), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
                        "--state", os.path.join(self.directory, "state"), "--model", model, *patient, *map(str, flags)]
        self.n_workers = workers
        self.log_lines = []
        self.log_changed = threading.Condition()
        self.up = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT,
                                   stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        _clusters.append(self)
        try:
            line = self.wait_log(r"serving: https?://(\S+):(\d+)/v1 .* gRPC (\S+);", 60)
        except BaseException:
            self.kill()
            raise
        self.host, self.port, self.grpc = line.group(1), int(line.group(2)), line.group(3)

    def _read(self):
        for line in self.up.stdout:
            with self.log_changed:
                self.log_lines.append(line.decode("utf-8", "replace"))
                self.log_changed.notify_all()
        with self.log_changed:
            self.log_lines.append("")
            self.log_changed.notify_all()

    def wait_log(self, pattern, timeout_s=60, start=0):
        """The first match of pattern in a line of the log from line start on."""
        since = time.monotonic()
        with self.log_changed:
            at = start
            while True:
                for line in self.log_lines[at:]:
                    found = re.search(pattern, line)
                    if found:
                        return found
                at = len(self.log_lines)
                left = timeout_s - elapsed(since)
                ended = at and self.log_lines[-1] == ""
                if left <= 0 or ended:
                    raise AssertionError(f"no line of the log matches {pattern!r}:\n" + "".join(self.log_lines[-40:]))
                self.log_changed.wait(left)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind:
            self.kill()
        else:
            self.stop()

    def processes(self):
        return [self.up.pid, *children(self.up.pid)]

    def coordinator(self):
        for pid in children(self.up.pid):
            if command_of(pid)[1:2] == ["coordinator"]:
                return pid
        return None

    def stop(self, number=signal.SIGTERM):
        """SIGTERM; all processes must be gone in 15 s, not counting those in which the machine stood still. -> seconds it took"""
        if self.up.poll() is not None:
            raise AssertionError(f"up had ended, with status {self.up.returncode}")
        pids = self.processes()
        start = time.monotonic()
        self.up.send_signal(number)
        try:
            self.up.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("up did not stop within a minute") from None
        took = elapsed(start)
        left = [p for p in pids if is_alive(p)]
        self.reader.join(5)
        self._remove()
        assert took < 15, f"up stopped after {took:.1f} s"
        assert not left, f"up left processes: {[(p, command_of(p)) for p in left]}"
        assert self.up.returncode == 0, f"up ended with status {self.up.returncode}"
        return took

    def kill(self):
        """At the end of a test that failed."""
        if self.up.poll() is None:
            pids = self.processes()
            self.up.kill()
            self.up.wait()
            for pid in pids[1:]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
        self._remove()

    def _remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- HTTP ----

    def connect(self, timeout_s=120):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def http(self, method, path, body=None, headers=None, timeout_s=120):
        """-> (code, headers, body: parsed if JSON)"""
        c = self.connect(timeout_s)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            c.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            r = c.getresponse()
            data = r.read()
            if r.headers.get("Content-Type", "").startswith("application/json"):
                data = json.loads(data)
            return r.status, r.headers, data
        finally:
            c.close()

    def post(self, path, body, expect=200, **kw):
        code, _, data = self.http("POST", path, body, **kw)
        assert code == expect, f"{path}: {code}, not {expect}: {data}"
        return data

    def refused(self, path, body, code, field=None, kind=None):
        """The request must be refused so. -> the message"""
        got, _, data = self.http("POST", path, body)
        assert got == code, f"{path} {str(body)[:200]}: {got}, not {code}: {data}"
        error = data["error"]
        assert field is None or error["param"] == field, f"{path} {str(body)[:200]}: names {error}, not {field}"
        assert kind is None or error["code"] == kind, f"{path}: code {error}, not {kind}"
        return error["message"]

    def stream(self, path, body, timeout_s=120):
        return Stream(self, path, body, timeout_s)

    def complete(self, prompt, max_tokens, timeout_s=120, **more):
        """Greedy completion -> (tokens' texts, log-probabilities, whole answer)"""
        a = self.post("/v1/completions", {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0,
                                          "ignore_eos": True, **more}, timeout_s=timeout_s)
        lp = a["choices"][0]["logprobs"]
        return lp["tokens"], lp["token_logprobs"], a

    def metrics(self):
        """name or name{labels} -> value"""
        code, _, data = self.http("GET", "/metrics")
        assert code == 200
        found = {}
        for line in data.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[name] = float(value)
        return found

    # ---- status ----

    def status(self):
        return json.loads(run("status", "--grpc", self.grpc, "--json", timeout_s=60)[0])

    def workers(self, state="ready"):
        try:
            return [w for w in self.status()["workers"] if w["state"] == state]
        except AssertionError:  # the coordinator is away
            return []

    def wait_workers(self, n=None, timeout_s=60):
        n = self.n_workers if n is None else n
        return wait_for(f"{n} workers ready", lambda: (w := self.workers()) and len(w) == n and w, timeout_s)

    def idle(self):
        s = self.status()["scheduler"]
        return s["running"] == 0 and s["waiting"] == 0

    def check_quiet(self, timeout_s=60):
        """No request is left, and no block but those that are cache."""

        def held():
            s = self.status()
            left = [(w["id"], w["blocks"], w["blocks_cached"]) for w in s["workers"]
                    if w["state"] == "ready" and w["blocks"] != w["blocks_cached"]]
            return (s["scheduler"]["running"], s["scheduler"]["waiting"], left)

        since = time.monotonic()
        while (now := held()) != (0, 0, []):
            if elapsed(since) > timeout_s:
                raise AssertionError(f"(running, waiting, workers with blocks that are not cache) is {now}")
            time.sleep(0.05)


class Stream:
    """An event stream: iterate over the parsed events. error: what the server said if it was refused or broke off."""

    def __init__(self, cluster, path, body, timeout_s=120):
        self.connection = cluster.connect(timeout_s)
        self.connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()
        self.code = self.response.status
        self.error = None
        self.done = False
        if self.code != 200:
            self.error = json.loads(self.response.read())["error"]
            self.close()

    def __iter__(self):
        if self.code != 200:
            return
        for line in self.response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self.done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                self.error = event["error"]
                continue
            yield event
        self.close()

    def abort(self):
        """As a client that vanishes: the connection is reset."""
        sock = self.connection.sock or self.response.fp.raw._sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self):
        self.response.close()
        self.connection.close()


# ---- texts ----

_NOUNS = ("river mountain garden engine letter window market sailor teacher bridge forest candle machine island harbour "
          "picture village winter journey question library").split()
_VERBS = "crossed painted carried watched followed repaired described remembered measured answered discovered built".split()
_ADJECTIVES = "old quiet green broken distant careful bright narrow heavy patient early hidden wooden curious".split()


def prose(n_sentences, seed):
    """English of a sort, always the same for a seed: about 13 tokens a sentence."""
    r = random.Random(seed)
    sentences = []
    for i in range(n_sentences):
        a, b, c = r.sample(_NOUNS, 3)
        s = f"The {r.choice(_ADJECTIVES)} {a} {r.choice(_VERBS)} the {r.choice(_ADJECTIVES)} {b} near the {c}."
        sentences.append(s + ("\n\n" if i % 7 == 6 else " "))
    return "".join(sentences)
