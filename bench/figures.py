#!/usr/bin/env python3
"""
The figures of the README, with the peer measured in the same run, interleaved: medians of --runs. bench/run.sh builds what it needs; the peer is
bench/peers.sh's. Prints a table; --json FILE keeps everything.

    bench/figures.py [--runs 3] [--only prefill,decode,spread,batch,exchange,tree] [--json FILE]
"""
import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build/release")
PEER = os.path.join(ROOT, "build/peers/llama.cpp/build/bin")
Q4 = os.path.join(ROOT, "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
BF16 = os.path.join(ROOT, "build/peers/SmolLM2-135M-Instruct.BF16.gguf")
THREADS, NEW = 2, 64


class Server:
    """longspan up on a free port."""

    def __init__(self, model, workers, threads, *flags):
        self.state = tempfile.mkdtemp(prefix="longspan-bench-")
        self.up = subprocess.Popen([os.path.join(BUILD, "longspan"), "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--model", model, "--workers",
                                    str(workers), "--threads", str(threads), "--state", self.state, *flags], stderr=subprocess.PIPE, text=True)
        for line in self.up.stderr:
            found = re.search(r"serving: http://127.0.0.1:(\d+)/v1 .* gRPC (\S+);", line)
            if found:
                self.port, self.grpc = int(found[1]), found[2]
                break
        self.lines = []    # (when, what) of what it logs
        threading.Thread(target=lambda: [self.lines.append((time.monotonic(), line)) for line in self.up.stderr], daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(20)

    def complete(self, ids, new):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        c.request("POST", "/v1/completions", json.dumps({"prompt": ids, "max_tokens": new, "temperature": 0, "ignore_eos": True}),
                  {"Content-Type": "application/json"})
        answer = json.loads(c.getresponse().read())
        if "error" in answer:
            sys.exit(f"longspan: {answer['error']['message']}")
        return answer["timings"]

    def status(self):
        return json.loads(subprocess.run([os.path.join(BUILD, "longspan"), "status", "--grpc", self.grpc, "--json"], capture_output=True, check=True).stdout)


def prompt(n):
    return [random.randrange(1000, 49000) for _ in range(n)]


def ours_prefill(server, n):
    return n / server.complete(prompt(n), 1)["prefill_ms"] * 1000


def ours_decode(server, depth):
    return NEW / server.complete(prompt(depth), NEW + 1)["decode_ms"] * 1000


class Peer:
    """llama-bench: tokens per second. The first run tries every choice and keeps the best for the runs that follow."""

    def __init__(self, model, flags, **choices):
        self.flags = ["-m", model, "-t", str(THREADS), "-r", "1", "-o", "json", *flags]
        self.choices = {name: list(values) for name, values in choices.items()}

    def run(self):
        program = os.path.join(PEER, "llama-bench")
        if not os.path.exists(program):
            return None
        flags = [f for name, values in self.choices.items() for f in (f"-{name}", ",".join(map(str, values)))]
        out = subprocess.run([program, *self.flags, *flags], capture_output=True, check=True)
        best = max(json.loads(out.stdout), key=lambda x: x["avg_ts"])
        names = {"fa": "flash_attn", "ub": "n_ubatch"}
        self.choices = {name: [int(best[names[name]])] for name in self.choices}
        return best["avg_ts"]

    def chosen(self):
        return " ".join(f"-{name} {values[0]}" for name, values in self.choices.items() if len(values) == 1)


def bandwidth():
    out = subprocess.run([os.path.join(BUILD, "bench/bandwidth"), str(THREADS), "1024"], capture_output=True, text=True, check=True).stdout
    return float(re.search(r"median ([\d.]+)", out)[1])


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def row(rows, what, ours, theirs, **more):
    ours, theirs = median(ours), median(theirs)
    rows.append({"what": what, "longspan": ours, "llama.cpp": theirs, "ratio": ours / theirs if theirs else None, **more})
    print("| {} | {:.1f} | {} | {} | {} |".format(what, ours, f"{theirs:.1f}" if theirs else "-", f"{ours / theirs:.2f}" if theirs else "-",
                                                  ", ".join(f"{k} {v}" for k, v in more.items())), flush=True)


def prefill(rows, runs):
    for name, model in (("bf16", BF16), ("Q4_1", Q4)):
        with Server(model, 1, THREADS) as s:
            ours_prefill(s, 512)
            peer, a, b = Peer(model, ["-p", "4096", "-n", "0"], fa=(0, 1), ub=(512, 2048)), [], []
            for _ in range(runs):
                a.append(ours_prefill(s, 4096))
                b.append(peer.run())
        row(rows, f"prefill of 4096 tokens, {name}, tok/s", a, b, peer=peer.chosen())


def decode(rows, runs):
    kv = 2 * 2 * 30 * 3 * 64
    for name, model in (("bf16", BF16), ("Q4_1", Q4)):
        weights = os.path.getsize(model) - (2 << 20)    # the vocabulary's share of the file is not read
        for depth in (512, 7680):
            with Server(model, 1, THREADS) as s:
                peer, a, b, w = Peer(model, ["-p", "0", "-n", str(NEW), "-d", str(depth)], fa=(0, 1)), [], [], []
                for _ in range(runs):
                    a.append(ours_decode(s, depth))
                    b.append(peer.run())
                    w.append(bandwidth())
            read = median(a) * (weights + kv * (depth + NEW / 2)) / 1e9
            row(rows, f"decode at {depth}, {name}, tok/s", a, b, reads=f"{read:.1f} GB/s = {read / median(w):.0%} of {median(w):.1f}", peer=peer.chosen())


def spread(rows, runs):
    with Server(Q4, 2, 1) as two, Server(Q4, 1, 2) as one:
        a, b = [], []
        for _ in range(runs):
            a.append(1000 / ours_decode(two, 7680))
            b.append(1000 / ours_decode(one, 7680))
    rows.append({"what": "spread", "two": median(a), "one": median(b)})
    print(f"| 7680 tokens, 2 workers x 1 thread, ms a token | {median(a):.2f} | 1 x 2: {median(b):.2f} | {median(a) / median(b):.2f} | |", flush=True)


def batch(rows, runs):
    """With all cores at work for the worker, and with one left to the coordinator."""
    for threads in (THREADS, THREADS - 1):
        batch_of(rows, threads)


def batch_of(rows, n_threads):
    with Server(Q4, 1, n_threads) as s:
        before = s.status()["scheduler"]
        start = time.monotonic()
        threads = [threading.Thread(target=s.complete, args=(prompt(64), 129)) for _ in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        took, after = time.monotonic() - start, s.status()
    now = after["scheduler"]
    steps = now["steps"] - before["steps"]
    each = (now["coordination_us"] - before["coordination_us"]) / steps
    memory = after["workers"][0]
    resident, weights, pool = (memory[name] / 2**20 for name in ("resident_bytes", "weight_bytes", "pool_bytes"))
    rows.append({"what": f"batch, {n_threads} threads", "tokens_per_s": 16 * 129 / took, "coordination_us": each, "resident_mib": resident, "weights_mib": weights, "pool_mib": pool})
    print(f"| 16 decodes at once, Q4_1, {n_threads} thread{'s' * (n_threads > 1)}, tok/s | {16 * 129 / took:.0f} | - | - | coordination {each:.0f} us a step; the worker's resident set {resident:.0f} MiB: "
          f"weights {weights:.0f}, of a pool of {pool:.0f} what is in use |", flush=True)


def program(*command):
    return subprocess.run([os.path.join(BUILD, command[0]), *command[1:]], capture_output=True, text=True, check=True).stdout


def exchange(rows, runs):
    """Half a round trip between two processes: what a round of exchange costs beside its bytes."""
    for lanes in ("shm", "tcp"):
        found = [dict((int(n), float(us)) for n, us in re.findall(r"(\d+) bytes +half round trip +([\d.]+) us", program("bench/exchange_bench", "--lanes", lanes)))
                 for _ in range(runs)]
        sizes = {n: median([f[n] for f in found]) for n in (1024, 16384, 262144)}
        rows.append({"what": f"exchange, {lanes}", "half_round_trip_us": sizes})
        print(f"| a message between workers, {lanes}, us | " + ", ".join(f"{n >> 10} KB {us:.1f}" for n, us in sizes.items()) + " | - | - | |", flush=True)


def tree(rows, _):
    out = program("tests/kernels/check_attn", "--bench")
    found = re.findall(r"attn (\S+) +head_dim +(\d+) n +\d+ over 256 MB: +(\d+) ns a block joined by the fixed tree, +(\d+) as they come", out)
    for isa, head_dim, fixed, free in found:
        rows.append({"what": f"tree, {isa}, {head_dim}", "fixed_ns": int(fixed), "free_ns": int(free)})
    print("| partials joined by the fixed tree, over as they come | " + ", ".join(f"{isa} {d}: {int(a) / int(b):.2f}" for isa, d, a, b in found) + " | - | - | |", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--only", default="prefill,decode,spread,batch,exchange,tree")
    args.add_argument("--json")
    args = args.parse_args()
    if not os.path.exists(BF16) and os.path.exists(os.path.join(PEER, "llama-quantize")):
        subprocess.run([os.path.join(PEER, "llama-quantize"), "--allow-requantize", Q4, BF16, "BF16"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = []
    print("| what | longspan | llama.cpp | ratio | |\n|---|---|---|---|---|")
    for name in args.only.split(","):
        {"prefill": prefill, "decode": decode, "spread": spread, "batch": batch, "exchange": exchange, "tree": tree}[name](rows, args.runs)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"rows": rows, "cpus": os.cpu_count()}, f, indent=1)


if __name__ == "__main__":
    main()
