"""Workers die and hang at random moments under load: requests go on with the right tokens, or, where too few workers are left for too long or one is lost
again and again, end with an error that names a worker; nothing is left behind."""

import os
import random
import re
import signal
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose
from test_resume import Reader

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
        self.assertGreater(counts["answered"], 2 * counts.get("503", 0))
        c.wait_workers(timeout_s=60)
        for p in prompts:
            self.assertEqual(c.complete(p, 40)[:2], want[p])

    def test_coordinator_and_workers(self):
        """Coordinators and workers are killed under streams that come back: no token is lost, doubled or another, and no stream ends otherwise than it would."""
        prompts = [prose(n, 50 + n) for n in (1, 12, 40)]
        paths = ("/v1/completions", "/v1/chat/completions")
        with Cluster("--spread-min-tokens", 300, "--kv-bytes", "96M", "--threads", 1, workers=3) as c:
            def body(path, prompt):
                what = {"prompt": prompt} if path == paths[0] else {"messages": [{"role": "user", "content": prompt}]}
                return {**what, "max_tokens": 60, "temperature": 1, "seed": 5, "ignore_eos": True,
                        "logprobs": 1 if path == paths[0] else True}

            want = {(path, p): Reader(c, path, body(path, p), "undisturbed").finish().answer() for path in paths for p in prompts}
            stop, wrong, ended = threading.Event(), [], []

            def client(i):
                r = random.Random(f"{SEED} {i}")
                for n in range(1000):
                    if stop.is_set():
                        return
                    path, p = r.choice(paths), r.choice(prompts)
                    try:
                        got = Reader(c, path, body(path, p), f"{i} {n}").finish(r.choice([20, 1 << 30]), timeout_s=90).answer()
                        ended.append(path)
                        if got != want[path, p]:
                            wrong.append((path, p[:30], got))
                    except AssertionError as e:
                        wrong.append((path, p[:30], repr(e)))

            threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
            for t in threads:
                t.start()
            r = random.Random(SEED)
            until, kills = time.monotonic() + SECONDS, 0
            while time.monotonic() < until:
                time.sleep(r.uniform(1, 5))
                workers = c.workers()
                pid = c.coordinator() if r.random() < 0.6 or len(workers) < 2 else r.choice(workers)["pid"]
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            stop.set()
            for t in threads:
                t.join(120)
                self.assertFalse(t.is_alive(), "a stream never ends")
            print(f"seed {SEED}: {kills} kills, {len(ended)} streams", flush=True)
            self.assertEqual(wrong, [])
            self.assertGreater(len(ended), 5)
            c.wait_workers(timeout_s=60)
            c.check_quiet(20)


if __name__ == "__main__":
    cluster.main()
