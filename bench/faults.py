#!/usr/bin/env python3
"""
What faults and too much load cost, over real processes on this host: the default model, greedy answers that are compared with those of an undisturbed run (a
difference ends the program). Medians of --runs; each part takes less than three minutes a run. Needs build/release/longspan.

    recovery  a worker that holds leaves of a sequence of --positions tokens is killed, or stopped, in the midst of its decode: until it is noticed, until the client has
              its next token, rows computed again; with --replicas 0 and 1. Beside it the prefill of the whole prompt by both workers and by one, which is what is
              left (`up` starts another in place of the one that was killed, which helps from then on; not in place of the one that is stopped)
    others    the same while other step groups decode: the longest time between two of their tokens, over their median, before and meanwhile; and, where the worker that
              takes over has a decode of its own, that of this one, by --recovery-share
    replicas  what second copies cost: prefill and a token's time with --replicas 1 over those with 0
    goodput   requests a second with their first token within 2 s and 100 ms a token after it, at 1, 2 and 10 times the load that the server keeps up with
              (of `longspan bench`), with --queue-wait-ms 1000 and without

    bench/faults.py [--runs 3] [--positions 7000] [--only recovery,others,replicas,goodput] [--json FILE]
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


def strike(s, stream, which, number, replicas):
    """-> (seconds until it is noticed, until the next token, rows computed again)"""
    stream.wait(4)
    if replicas:
        copied(s)
    stream.wait(len(stream.tokens) + 1)
    _, pid, worker = held(s)[which]
    since = time.monotonic()
    os.kill(pid, number)
    saw = noticed(s, since, worker)
    return saw, since


def recovery(rows, runs, positions):
    flags = ("--spread-min-tokens", "1")
    whole, left, cases = [], [], {}
    for _ in range(runs):
        ids = prompt(positions)
        with Server(Q4, 2, 1, *flags) as s:
            calm = Stream(s, ids, NEW)
            calm.join(600)
            whole.append(calm.at[0] - calm.began)
        with Server(Q4, 1, 1) as s:
            left.append(s.complete(ids, 1)["prefill_ms"] / 1000)
        for replicas in (0, 1):
            for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
                with Server(Q4, 2, 1, *flags, "--replicas", str(replicas)) as s:
                    stream = Stream(s, ids, NEW)
                    saw, since = strike(s, stream, 0, number, replicas)
                    stream.ended(calm.tokens)
                    gap = max(b - a for a, b in zip(stream.at, stream.at[1:]))
                    cases.setdefault((name, replicas), []).append((saw, gap, gap - saw, metric(s, "longspan_recovered_rows_total"), gap / whole[-1],
                                                                   (gap - saw) / left[-1]))
    print("| recovery | noticed, s | next token after, s | without the notice, s | rows computed again | over a prefill by two | over a prefill by the one left |\n"
          "|---|---|---|---|---|---|---|")
    for (name, replicas), got in cases.items():
        saw, gap, work, again, ratio, fair = (median(v) for v in zip(*got))
        emit(rows, f"{name}, --replicas {replicas}", noticed_s=saw, gap_s=gap, work_s=work, computed_again=again, over_whole=ratio, over_left=fair)
    emit(rows, "a prefill by two, s; by one", whole_s=median(whole), left_s=median(left))


def gaps(stream, first, last):
    """Between tokens that came from `first` to `last`."""
    return [b - a for a, b in zip(stream.at, stream.at[1:]) if a >= first and b <= last]


def beside(positions, workers, share):
    """A sequence at a worker of its own is lost; `workers` - 1 others have one decode each, or the last of them nothing. -> longest gap of others over their median, before and meanwhile"""
    with Server(Q4, workers, 1, "--spread-min-tokens", "1000000", "--recovery-share", str(share)) as s:
        other = Stream(s, prompt(64), 6000)
        other.wait(4)
        stream = Stream(s, prompt(positions), NEW)
        stream.wait(20)
        began = stream.at[0]
        _, pid, worker = held(s)[0]
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        noticed(s, since, worker)
        n = len(stream.tokens)
        stream.wait(n + 2)
        calm, busy = gaps(other, began, since), gaps(other, since, stream.at[n])
        if not calm or not busy:
            sys.exit("longspan: the others' answer was too short")
        usual = median(calm)
        return 1000 * usual, max(calm) / usual, median(busy) / usual, sorted(busy)[int(0.99 * (len(busy) - 1))] / usual, max(busy) / usual, stream.at[n] - since


def others(rows, runs, positions):
    """Two threads compute at a time, before and after, as many as the host has cores."""
    print("| tokens of another sequence while one is computed again | median before, ms | longest before, x | median meanwhile, x | p99, x | longest, x | it took, s |\n"
          "|---|---|---|---|---|---|---|")
    for name, workers, share in (("of another step group", 3, 50), ("of the same, --recovery-share 50", 2, 50), ("of the same, --recovery-share 10", 2, 10)):
        got = [beside(min(positions, 2000), workers, share) for _ in range(runs)]
        usual, longest, middle, p99, most, took = (median(v) for v in zip(*got))
        emit(rows, name, median_ms=usual, longest_before=longest, median_x=middle, p99_x=p99, longest_x=most, took_s=took)


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
    print("| load | requests a second | done in time, a second | over that at 1 x | late | refused at once, or not begun |\n|---|---|---|---|---|---|")
    for wait in (1000, 0):
        with Server(Q4, 1, 2, "--queue-wait-ms", str(wait)) as s:
            def bench(*flags):
                out = subprocess.run([os.path.join(BUILD, "longspan"), "bench", "--url", f"http://127.0.0.1:{s.port}", "--input-tokens", "256", "--output-tokens",
                                      "32", "--ignore-eos", "--slo-ttft-ms", "2000", "--slo-tpot-ms", "100", "--json", "-", *flags], capture_output=True,
                                     check=False)
                return json.loads(out.stdout)["summary"]
            rate = bench("--concurrency", "8", "--requests", "32", "--warmup", "4")["requests_per_s"]
            first = None
            for times in (1, 2, 10) if wait else (1, 10):
                o = bench("--rate", f"{rate * times:.3f}", "--duration-s", "12" if wait or times == 1 else "5")
                first = first or o["goodput_per_s"] or float("nan")
                emit(rows, f"{times} x, --queue-wait-ms {wait}", offered=rate * times, goodput=o["goodput_per_s"], over_first=o["goodput_per_s"] / first,
                     late=o["ok"] - o["good"], refused=o["refused"])


def main():
    parts = {"recovery": recovery, "others": others, "replicas": replicas, "goodput": goodput}
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
