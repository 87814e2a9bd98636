#!/usr/bin/env python3
"""
Figures of serving, with llama.cpp's server and RPC mode measured in the same run, interleaved: medians of --runs. Needs build/release/longspan and, for the peer,
bench/peers.sh. The load on both servers is `longspan bench`. Parts, each under three minutes:

    batch    16 decodes at once, output tokens per second, against llama-server -np 16 (both of its settings of flash attention are tried, the better is kept)
    mixed    TTFT p99 of short prompts with one prompt of 8k tokens among them, against without; llama-server's beside it
    prefix   a shared prefix of 4k tokens x 32 requests: seconds, the share of prompts from cache, the share of bytes that attention read; against --prefix-sharing=false
             and llama-server
    rpc      decode at 7680 tokens over two processes: our two workers against llama.cpp with two rpc-servers
    ready    seconds from the start of `up` with the default model to ready

    bench/serving.py [--runs 3] [--only batch,mixed,prefix,rpc,ready] [--json FILE]
"""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from figures import BUILD, Q4, ROOT, THREADS, Server, median, ours_decode, row

LONGSPAN = os.path.join(BUILD, "longspan")
PEER = os.path.join(ROOT, "build/peers/llama.cpp/build-server/bin")
RPC_SERVER = next((p for p in (os.path.join(PEER, n) for n in ("ggml-rpc-server", "rpc-server")) if os.path.exists(p)), None)
DEEP, NEW = 7680, 64


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class LlamaServer:
    """llama-server on a free port."""

    def __init__(self, *flags):
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([os.path.join(PEER, "llama-server"), "-m", Q4, "--host", "127.0.0.1", "--port", str(self.port), "-t", str(THREADS),
                                         "-tb", str(THREADS), *map(str, flags)], stdout=self.log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 60
        while True:
            try:
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                self.log.seek(0)
                sys.exit("llama-server did not start:\n" + self.log.read().decode("utf-8", "replace")[-2000:])
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)


def has_server():
    return os.path.exists(os.path.join(PEER, "llama-server"))


def load(port, *flags):
    """longspan bench -> its summary; the exit status says whether anything was answered."""
    done = subprocess.run([LONGSPAN, "bench", "--url", f"http://127.0.0.1:{port}", "--json", "-", *map(str, flags)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"longspan bench {' '.join(map(str, flags))}: {done.stderr}{done.stdout[-500:]}")
    summary = json.loads(done.stdout)["summary"]
    if summary["failed"]:
        sys.exit(f"longspan bench {' '.join(map(str, flags))}: {summary['failed']} requests failed")
    return summary


def batch(rows, runs):
    flags = ["--requests", 16, "--concurrency", 16, "--input-tokens", 64, "--output-tokens", 128]
    ours, theirs, best = [], [], None
    with Server(Q4, 1, THREADS) as s:
        load(s.port, "--requests", 2, "--input-tokens", 64, "--output-tokens", 8)
        if has_server():
            tried = {}
            for fa in ("on", "off"):
                with LlamaServer("-np", 16, "-c", 16 * 512, "-fa", fa) as p:
                    tried[fa] = load(p.port, *flags, "--warmup", 2)["output_tokens_per_s"]
            best = max(tried, key=tried.get)
        for i in range(runs):
            ours.append(load(s.port, *flags, "--seed", i + 1)["output_tokens_per_s"])
            if best:
                with LlamaServer("-np", 16, "-c", 16 * 512, "-fa", best) as p:
                    theirs.append(load(p.port, *flags, "--seed", i + 1, "--warmup", 2)["output_tokens_per_s"])
    row(rows, "16 decodes at once, Q4_1, tok/s", ours, theirs, peer=f"-np 16 -fa {best}" if best else "not built")


def mixed_ttft(port, long_prompt, seed):
    """p99 of 40 short prompts at four a second; long_prompt: one of 8k tokens comes a second after the first of them."""
    short = subprocess.Popen([LONGSPAN, "bench", "--url", f"http://127.0.0.1:{port}", "--json", "-", "--rate", "4", "--requests", "40", "--input-tokens", "64",
                              "--output-tokens", "16", "--seed", str(seed)], stdout=subprocess.PIPE, text=True)
    if long_prompt:
        time.sleep(1)
        load(port, "--requests", 1, "--input-tokens", 8000, "--output-tokens", 16, "--seed", 1000 + seed)
    summary = json.loads(short.communicate()[0])["summary"]
    if summary["failed"]:
        sys.exit("mixed: short prompts failed")
    return summary["ttft_ms"]["p99"]


def mixed(rows, runs):
    """Each run: without and with the long prompt, on one server, then on the other; the ratio is the median of the runs' own."""
    figures = {"longspan": [], "llama.cpp": []}
    with Server(Q4, 1, THREADS) as s:
        load(s.port, "--requests", 2, "--input-tokens", 64, "--output-tokens", 8)
        for i in range(runs):
            figures["longspan"].append([mixed_ttft(s.port, long_prompt, 10 * i + 1) for long_prompt in (False, True)])
            if has_server():
                with LlamaServer("-np", 8, "-c", 8 * 8192, "-fa", "on") as p:
                    load(p.port, "--requests", 2, "--input-tokens", 64, "--output-tokens", 8)
                    figures["llama.cpp"].append([mixed_ttft(p.port, long_prompt, 10 * i + 1) for long_prompt in (False, True)])
    for name, pairs in figures.items():
        if pairs:
            alone, among, ratio = median([a for a, _ in pairs]), median([b for _, b in pairs]), median([b / a for a, b in pairs])
            rows.append({"what": "mixed", "server": name, "alone_ms": alone, "among_ms": among, "ratio": ratio})
            print(f"| {name}: TTFT p99 of short prompts beside one of 8000 tokens, ms | {among:.1f} | without it: {alone:.1f} | {ratio:.2f} | |", flush=True)


def bytes_read(port):
    """Bytes of keys and values that attention has read, and would have read without shared reads."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    return [float(next(line for line in text.splitlines() if line.startswith(f"longspan_kv_bytes_{what}_total")).split()[1]) for what in ("read", "dense")]


def prefix(rows, runs):
    """The peer keeps a prefix a slot, so it has four slots: later requests find it there."""
    flags = ["--requests", 32, "--concurrency", 32, "--input-tokens", 4160, "--prefix-tokens", 4096, "--output-tokens", 16]
    few = ["--requests", 4, "--concurrency", 4, *flags[4:]]    # without sharing, four say what 32 would take: prefill is linear in their number
    ours, none, theirs, cached, read = [], [], [], [], []
    with Server(Q4, 1, THREADS) as s, Server(Q4, 1, THREADS, "--prefix-sharing=false") as apart:
        for i in range(runs):
            before = bytes_read(s.port)
            summary = load(s.port, *flags, "--seed", i + 1)
            after = bytes_read(s.port)
            read.append((after[0] - before[0]) / (after[1] - before[1]))
            ours.append(summary["seconds"])
            cached.append(summary["cached_tokens"] / summary["input_tokens"])
            none.append(load(apart.port, *few, "--seed", i + 1)["seconds"] * 8)
            if has_server():
                with LlamaServer("-np", 4, "-c", 4 * 4608, "-fa", "on") as p:
                    theirs.append(load(p.port, *flags, "--seed", i + 1)["seconds"])
    row(rows, "4096 shared tokens x 32 requests, seconds", ours, theirs, without_sharing=f"{median(none):.1f} (8 x 4 requests)", cached=f"{median(cached):.0%} of the prompts",
        read=f"{median(read):.0%} of the bytes of keys and values that each by itself would have read", peer="-np 4" if theirs else "not built")


def llama_rpc(runs):
    """llama-server over two rpc-servers of one thread each, or None."""
    if not has_server() or not RPC_SERVER:
        return []
    ports = [free_port(), free_port()]
    workers = [subprocess.Popen([RPC_SERVER, "-H", "127.0.0.1", "-p", str(p), "-t", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for p in ports]
    try:
        time.sleep(1)
        with LlamaServer("--rpc", ",".join(f"127.0.0.1:{p}" for p in ports), "-ngl", 99, "-np", 1, "-c", 8192, "-fa", "on") as p:
            return [load(p.port, "--requests", 1, "--input-tokens", DEEP, "--output-tokens", NEW, "--seed", i + 1)["tpot_ms"]["p50"] for i in range(runs)]
    finally:
        for w in workers:
            w.terminate()
            w.wait(10)


def rpc(rows, runs):
    with Server(Q4, 2, 1) as s:
        ours = [1000 / ours_decode(s, DEEP) for _ in range(runs)]
    theirs = llama_rpc(runs)
    row(rows, f"decode at {DEEP} over two processes of one thread, ms a token", ours, theirs, peer="two rpc-servers" if theirs else "not built")


def ready(rows, runs):
    took = []
    for _ in range(max(runs, 3)):
        start = time.monotonic()
        with Server(os.path.join(ROOT, "models/smollm2-135m-instruct"), 2, 1):
            took.append(time.monotonic() - start)
    rows.append({"what": "ready", "seconds": statistics.median(took), "worst": max(took)})
    print(f"| start to ready of up, default model, 2 workers, s | {statistics.median(took):.2f} | - | - | worst {max(took):.2f} |", flush=True)


PARTS = {"batch": batch, "mixed": mixed, "prefix": prefix, "rpc": rpc, "ready": ready}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--only", default=",".join(PARTS))
    args.add_argument("--json")
    args = args.parse_args()
    rows = []
    print("| what | longspan | llama.cpp | ratio | |\n|---|---|---|---|---|")
    for name in args.only.split(","):
        PARTS[name](rows, args.runs)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"rows": rows, "cpus": os.cpu_count()}, f, indent=1)


if __name__ == "__main__":
    main()
