"""Workers die and hang at random moments under load: every request ends, right or with an error that names a worker, and nothing is left behind."""

import os
import random
import re
import signal
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose

CLIENTS, SECONDS, SEED = 6, 25, 20240918


class Chaos(unittest.TestCase):
    def test_random_faults(self):
        with Cluster("--spread-min-tokens", 300, "--kv-bytes", "96M", "--threads", 1, workers=3) as c:
            self.storm(c)
            c.check_quiet()

    def storm(self, c):
        prompts = [prose(n, 50 + n) for n in (1, 4, 12, 30, 45, 70)]
        want = {p: c.complete(p, 40)[:2] for p in prompts}
        stop = threading.Event()
        counts, faults, lock = {}, [], threading.Lock()

        def count(what, fault=None):
            with lock:
                counts[what] = counts.get(what, 0) + 1
                if fault:
                    faults.append(fault)

        def client(i):
            r = random.Random(f"{SEED} {i}")
            while not stop.is_set():
                prompt, n = r.choice(prompts), r.choice([1, 5, 20, 40])
                body = {"prompt": prompt, "max_tokens": n, "temperature": 0, "logprobs": 0, "ignore_eos": True}
                start = time.monotonic()
                code, _, answer = c.http("POST", "/v1/completions", body, timeout_s=60)
                took = time.monotonic() - start
                if code == 200:
                    lp = answer["choices"][0]["logprobs"]
                    same = (lp["tokens"], lp["token_logprobs"]) == (want[prompt][0][:n], want[prompt][1][:n])
                    count("answered", None if same else f"other tokens: {n} of {prompt[:40]}")
                elif code == 503:
                    named = re.search(r"\bworkers? \d+|no worker|workers that are left", answer["error"]["message"])
                    count("503", None if named else f"names nobody: {answer}")
                    time.sleep(0.1)
                else:
                    count(str(code), f"{code}: {answer}")
                if took > 40:
                    count("slow", f"{took:.1f} s for {code}")

        threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
        for t in threads:
            t.start()
        r = random.Random(SEED)
        until = time.monotonic() + SECONDS
        n_faults = 0
        while time.monotonic() < until:
            time.sleep(r.uniform(0.5, 3))
            workers = c.workers()
            if len(workers) < 2:
                continue
            pid = r.choice(workers)["pid"]
            number = r.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            try:
                os.kill(pid, number)
                n_faults += 1
                if number == signal.SIGSTOP and r.random() < 0.7:
                    time.sleep(r.uniform(0, 2.5))
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        stop.set()
        for t in threads:
            t.join(90)
            self.assertFalse(t.is_alive(), "a request never ends")
        print(f"seed {SEED}: {n_faults} faults; {counts}", flush=True)
        self.assertEqual(faults, [])
        self.assertGreater(counts["answered"], 5)
        c.wait_workers(timeout_s=60)
        for p in prompts:
            self.assertEqual(c.complete(p, 40)[:2], want[p])


if __name__ == "__main__":
    cluster.main()
