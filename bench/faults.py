#!/usr/bin/env python3
"""
What faults cost, over real processes on this host: workers of one thread, the default model, greedy answers that are compared with those of an undisturbed run (a
difference ends the program). Medians of --runs. Needs build/release/longspan.

    recovery  a worker that holds leaves of a sequence of --positions tokens is killed, or stopped, in the midst of its decode: until it is noticed, until the client has
              its next token, rows computed again; with --replicas 0 and 1; beside it the prefill of the whole prompt
    replicas  what second copies cost: prefill and a token's time with --replicas 1 over those with 0
    goodput   requests in time at 1, 2 and 10 times the load that the server keeps up with, of `longspan bench`

    bench/faults.py [--runs 3] [--positions 7000] [--only recovery,replicas,goodput] [--json FILE]
"""
import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

from figures import BUILD, Q4, Server, median, prompt

NEW = 256


class Stream(threading.Thread):
    """A greedy completion, and when each of its tokens came."""

    def __init__(self, server, ids, new):
        super().__init__(daemon=True)
        self.port, self.ids, self.new = server.port, ids, new
        self.tokens, self.at, self.error = [], [], None
        self.began = time.monotonic()
        self.start()

    def run(self):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            c.request("POST", "/v1/completions", json.dumps({"prompt": self.ids, "max_tokens": self.new, "temperature": 0, "ignore_eos": True, "stream": True,
                                                             "logprobs": 0}), {"Content-Type": "application/json"})
            answer = c.getresponse()
            while line := answer.readline():
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.error = event["error"]["message"]
                    return
                got = (event["choices"][0].get("logprobs") or {}).get("tokens", [])
                self.tokens += got
                self.at += [time.monotonic()] * len(got)
        except (OSError, http.client.HTTPException, ValueError) as e:
            self.error = str(e)

    def wait(self, n):
        while len(self.tokens) < n and self.is_alive():
            time.sleep(0.002)
        if self.error or len(self.tokens) < n:
            sys.exit(f"longspan: {self.error or 'the answer ended early'}")

    def ended(self, want):
        self.join(300)
        if self.error or self.tokens != want:
            sys.exit(f"longspan: {self.error or 'other tokens than undisturbed'}")
        return self


def metric(server, name):
    c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    c.request("GET", "/metrics")
    return next(float(line.split()[-1]) for line in c.getresponse().read().decode().splitlines() if line.startswith(name + " "))


def held(server):
    """Blocks of running requests at each ready worker -> [(blocks, pid, id)], most first"""
    return sorted(((w["blocks"] - w["blocks_cached"], w["pid"], w["id"]) for w in server.status()["workers"] if w["state"] == "ready"), reverse=True)


def copied(server):
    """Waits until no more second copies are made."""
    before = -1
    while (now := metric(server, "longspan_replicas_total")) != before:
        before = now
        time.sleep(1)


def noticed(server, since, worker):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for when, line in list(server.lines):
            if when >= since and f"worker {worker} " in line and "is lost" in line:
                return when - since
        time.sleep(0.01)
    sys.exit(f"longspan: worker {worker} is not missed")


def emit(rows, what, **more):
    rows.append({"what": what, **more})
    print("| {} | {} |".format(what, " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in more.values())), flush=True)


def recovery(rows, runs, positions):
    print("| recovery | noticed, s | next token after, s | rows computed again | whole prefill, s |\n|---|---|---|---|---|")
    for replicas in (0, 1):
        for name, number, which in (("killed, most blocks", signal.SIGKILL, 0), ("killed, fewer blocks", signal.SIGKILL, 1),
                                    ("stopped, most blocks", signal.SIGSTOP, 0)):
            saw, gap, again, whole = [], [], [], []
            for _ in range(runs):
                ids = prompt(positions)
                with Server(Q4, 2, 1, "--spread-min-tokens", "1", "--replicas", str(replicas)) as s:
                    calm = Stream(s, ids, NEW)
                    calm.join(600)
                    whole.append(calm.at[0] - calm.began)
                with Server(Q4, 2, 1, "--spread-min-tokens", "1", "--replicas", str(replicas)) as s:
                    stream = Stream(s, ids, NEW)
                    stream.wait(4)
                    if replicas:
                        copied(s)
                    stream.wait(len(stream.tokens) + 1)
                    _, pid, worker = held(s)[which]
                    since = time.monotonic()
                    os.kill(pid, number)
                    saw.append(noticed(s, since, worker))
                    stream.ended(calm.tokens)
                    gap.append(max(b - a for a, b in zip(stream.at, stream.at[1:])))
                    again.append(metric(s, "longspan_recovered_rows_total"))
            emit(rows, f"{name}, --replicas {replicas}", noticed_s=median(saw), gap_s=median(gap), computed_again=median(again), prefill_s=median(whole))


def replicas(rows, runs, positions):
    print("| second copies | with 0 | with 1 | ratio |\n|---|---|---|---|")
    prefill, token = ([], []), ([], [])
    for _ in range(runs):
        ids = prompt(positions)
        for n in (0, 1):
            with Server(Q4, 2, 1, "--spread-min-tokens", "1", "--replicas", str(n)) as s:
                stream = Stream(s, ids, NEW)
                stream.join(600)
                prefill[n].append(stream.at[0] - stream.began)
                token[n].append(1000 * (stream.at[-1] - stream.at[0]) / (NEW - 1))
    for what, of in (("prefill, s", prefill), ("a token, ms", token)):
        emit(rows, what, without=median(of[0]), with_copies=median(of[1]), ratio=median(b / a for a, b in zip(*of)))


def goodput(rows, runs, positions):
    print("| load | requests a second | done in time, a second | late | refused |\n|---|---|---|---|---|")
    with Server(Q4, 1, 2) as s:
        def bench(*flags):
            out = subprocess.run([os.path.join(BUILD, "longspan"), "bench", "--url", f"http://127.0.0.1:{s.port}", "--input-tokens", "256", "--output-tokens", "64",
                                  "--ignore-eos", "--slo-ttft-ms", "2000", "--slo-tpot-ms", "100", "--json", "-", *flags], capture_output=True, check=False)
            return json.loads(out.stdout)
        closed = bench("--concurrency", "8", "--requests", "48", "--warmup", "4")
        rate = 0.8 * closed["summary"]["requests_per_s"]
        for times in (1, 2, 10):
            o = bench("--rate", f"{rate * times:.3f}", "--duration-s", "20")["summary"]
            emit(rows, f"{times} x", offered=rate * times, goodput=o["goodput_per_s"], late=o["requests"] - o["good"] - o["failed"], refused=o["failed"])


def main():
    parts = {"recovery": recovery, "replicas": replicas, "goodput": goodput}
    a = argparse.ArgumentParser()
    a.add_argument("--runs", type=int, default=3)
    a.add_argument("--positions", type=int, default=7000)
    a.add_argument("--only", default=",".join(parts))
    a.add_argument("--json")
    args = a.parse_args()
    rows = []
    for name in args.only.split(","):
        parts[name](rows, args.runs, args.positions)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
