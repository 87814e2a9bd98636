#!/usr/bin/env python3
"""
What a prefix found on disk saves: seconds until the first token of a prompt that is computed, found in memory, and found on the disk of --kv-disk, whose files the
system has in its cache or not. One worker, whose pool holds one such prompt and a little more, so that another prompt evicts it. Nothing but the standard library.

    bench/kv_disk.py [--tokens 7000] [--rounds 3] [--dir DIRECTORY] [--longspan build/release/longspan]
"""
import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

BLOCK_BYTES = 1474560  # of the default model, in bf16


def metric(host, name):
    c = http.client.HTTPConnection(host)
    c.request("GET", "/metrics")
    text = c.getresponse().read().decode()
    return sum(float(v) for v in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.M))


def first_token(host, prompt):
    """-> seconds until the first token, tokens that were found, the token"""
    c = http.client.HTTPConnection(host)
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    begin = time.monotonic()
    c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(c.getresponse().read())
    took = time.monotonic() - begin
    return took, answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["logprobs"]["token_logprobs"]


def uncache(directory):
    """The files' pages leave the system's cache. -> bytes"""
    n = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                n += os.fstat(f.fileno()).st_size
    return n


def measure(host, directory, tokens, rounds):
    took = {"computed": [], "memory": [], "disk, cached by the system": [], "disk": []}
    for i in range(rounds):
        rng = random.Random(i)
        prompt, other = ([rng.randrange(1000, 30000) for _ in range(tokens)] for _ in range(2))

        def ask(what, least):
            seconds, found, logprobs = first_token(host, prompt)
            assert found >= least if least else not found, f"{what}: {found} tokens were found"
            assert logprobs == same.setdefault("logprobs", logprobs), f"{what}: other bits"
            took[what].append(seconds)

        same = {}
        whole = (tokens - 1) // 64 * 64
        ask("computed", 0)
        ask("memory", whole)
        for what in ("disk, cached by the system", "disk"):
            first_token(host, other)  # evicts it
            until = time.monotonic() + 20
            while metric(host, "longspan_kv_disk_written_total") < (i + 1) * (whole // 64) - 8 and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(1)  # what is left is written
            if what == "disk":
                uncache(directory)
            ask(what, whole - 8 * 64)  # a few stayed in memory, or were not written
    return took


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=7000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--dir", help="on the disk to measure; none: a temporary one")
    p.add_argument("--longspan", default="build/release/longspan")
    a = p.parse_args()
    directory = tempfile.mkdtemp(prefix="longspan-kv-disk-", dir=a.dir)
    blocks = a.tokens // 64 + 3  # what stays of an evicted prompt is little
    up = subprocess.Popen([a.longspan, "up", "--workers", "1", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--state", directory + "/state",
                           "--kv-disk", directory + "/kv", "--kv-bytes", str(blocks * BLOCK_BYTES)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        host = None
        for line in up.stdout:
            if found := re.search(rb"serving: http://(\S+:\d+)/v1", line):
                host = found[1].decode()
                break
        assert host, "the cluster did not start"
        took = measure(host, directory + "/kv", a.tokens, a.rounds)
        read, dropped = metric(host, "longspan_kv_disk_read_total"), metric(host, "longspan_kv_disk_dropped_total")
    finally:
        up.send_signal(signal.SIGTERM)
        up.stdout.close()
        up.wait()
        shutil.rmtree(directory)
    print(f"{a.tokens} tokens, seconds until the first one of the answer, median of {a.rounds} (least to most)")
    for what, t in took.items():
        print(f"{what:28} {statistics.median(t):7.3f}  ({min(t):.3f} to {max(t):.3f})")
    print(f"{read:.0f} blocks were read, {dropped:.0f} not written: the disk was behind")


if __name__ == "__main__":
    main()
