"""
Sparse attention from outside: needles under each selector at a density that must keep them, by any number of workers; density 1 is dense; densities of
requests, which share no blocks; what cannot work is refused at start.

The model is the one that is made to copy: layer 3 finds the place where the last eight bytes occurred before. sketch-walk sees a query one block late, and
only the mean of a block's queries: its needles fill their blocks, its question shuffles the key through one whole block before it asks, and layer 2, whose
heads look back a fixed number of positions whatever the text is, stays dense. A key that is asked only in the block that answers is beyond this variant.
Contexts have 8 k positions, or POSITIONS=65536; what was found, and how much was read for it, is printed.
"""

import os
import random
import tempfile
import threading
import unittest

import cluster
from cluster import Cluster, generate, run

POSITIONS, NEEDLES, LETTERS = int(os.environ.get("POSITIONS", 8192)), 8, "abcdefghijklmnopqrstuvwxyz"
COPY = "constructed:copy"
PATIENT = ("--step-deadline-ms", 600000, "--silence-ms", 60000)  # a step at 64 k positions takes long, the more so on a busy machine


def haystack(fill, times):
    """-> (text, [(key of eight bytes, value of eight)]): each needle so many times in a row at the start of a block."""
    r = random.Random(1)
    needles = [tuple("".join(r.choices(LETTERS.upper(), k=8)) for _ in range(2)) for _ in range(NEEDLES)]
    gap, text = POSITIONS // NEEDLES, ""
    for key, value in needles:
        before = r.randrange(1, gap // 64 - 1) * 64
        text += "".join(r.choices(fill, k=before)) + (key + value) * times
        text += "".join(r.choices(fill, k=-len(text) % gap))
    return text, needles


def shuffled(key):
    r = random.Random(key)
    return "".join("".join(r.sample(key, 8)) for _ in range(8))


class Needles(unittest.TestCase):
    def asked(self, flags, text, questions, numbers=(1, 3)):
        """Every number of workers answers alike. -> (answers, share of keys and values that was read)"""
        seen = []
        for workers in numbers:
            with Cluster(*flags, *PATIENT, "--spread-min-tokens", 256, workers=workers, model=COPY) as c:
                answers = [c.complete(text + q, 8, timeout_s=3600) for q in questions]
                seen.append([a[:2] for a in answers])
                self.assertTrue(all(a[2]["usage"]["prompt_tokens_details"]["cached_tokens"] >= POSITIONS - 64
                                    for a in answers[1:]))
                self.assertTrue(all(w["sketch_bytes"] > 0 for w in c.workers()))
                metrics = c.metrics()
                c.check_quiet()
        self.assertTrue(all(other == seen[0] for other in seen))
        return ["".join(a[0]) for a in answers], metrics["longspan_kv_bytes_read_total"] / metrics["longspan_kv_bytes_dense_total"]

    def found(self, flags, text, questions, expected):
        answers, share = self.asked(flags, text, questions)
        self.assertEqual(answers, expected, flags)
        print(f"{' '.join(map(str, flags))}: {NEEDLES} of {NEEDLES} needles in {POSITIONS} positions, "
              f"{100 * share:.1f} % of the keys and values read", flush=True)
        return share

    def test_quest(self):
        text, needles = haystack("ab", 1)
        self.found(("--selector", "quest@0.1"), text, [k for k, _ in needles], [v for _, v in needles])

    def test_quest_local(self):  # slots of four blocks each: half of them
        text, needles = haystack("ab", 1)
        self.found(("--selector", "quest@0.5", "--selector-scope", "local", "--kv-codec", "int4-rot"), text,
                   [k for k, _ in needles], [v for _, v in needles])

    def test_socket(self):  # 20 %: its estimate of a product is a noisy one
        text, needles = haystack("ab", 1)
        self.found(("--selector", "socket@0.2"), text, [k for k, _ in needles], [v for _, v in needles])

    def test_limit_of_double_sparsity(self):
        """The model's keys have eight letters in 64 channels, none of which says more than another: eight channels are about one letter."""
        text, needles = haystack("ab", 1)
        questions, expected = [k for k, _ in needles], [v for _, v in needles]
        flags = ("--selector", "double-sparsity@0.2")
        with Cluster(*flags, *PATIENT, workers=1, model=COPY) as c:
            answers = ["".join(c.complete(text + q, 8, timeout_s=3600)[0]) for q in questions]
            dense = ["".join(c.complete(text + q, 8, density=1, timeout_s=3600)[0]) for q in questions[:2]]
        n = sum(a == v for a, v in zip(answers, expected))
        print(f"{' '.join(flags)}: {n} of {NEEDLES} needles, whose keys no channel stands for", flush=True)
        self.assertLess(n, NEEDLES)
        self.assertEqual(dense, expected[:2])

    def test_limit_of_streaming(self):
        """What has left the window is gone: of the needles that it does not reach, none is found; a window over all of them finds all."""
        text, needles = haystack("ab", 1)
        questions, expected = [k for k, _ in needles], [v for _, v in needles]
        with Cluster("--selector", "streaming@2048", *PATIENT, workers=2, model=COPY) as c:
            answers = ["".join(c.complete(text + q, 8, timeout_s=3600)[0]) for q in questions]
            self.assertTrue(all(w["sketch_bytes"] == 0 for w in c.workers()))
            code, _, body = c.http("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "density": 0.5})
            self.assertEqual((code, body["error"]["param"]), (400, "density"))
            c.check_quiet()
        within = [text.index(k) >= len(text) - 2048 for k in questions]
        self.assertEqual([a == v for a, v in zip(answers, expected)], within)
        print(f"streaming@2048: {sum(within)} of {NEEDLES} needles in {POSITIONS} positions, those within the window", flush=True)
        with Cluster("--selector", f"streaming@{POSITIONS}", *PATIENT, workers=1, model=COPY) as c:
            self.assertEqual(["".join(c.complete(text + q, 8, timeout_s=3600)[0]) for q in questions[:2]], expected[:2])

    def test_sketch_walk(self):
        text, needles = haystack(LETTERS, 4)
        share = self.found(("--selector", "sketch-walk@0.2", "--selector-dense-layers", 3), text,
                           [shuffled(k) + k for k, _ in needles], [v for _, v in needles])
        self.assertLess(share, 0.85)  # one of four layers is sparse

    def test_limit_of_sketch_walk(self):
        """A key that nothing names before the block that answers: its block is read by chance only. Dense, every one is found."""
        text, needles = haystack(LETTERS, 4)
        questions, expected = ["".join(random.Random(k).choices(LETTERS, k=64)) + k for k, _ in needles], [v for _, v in needles]
        flags = ("--selector", "sketch-walk@0.05", "--selector-dense-layers", 3)
        answers, _ = self.asked(flags, text, questions, (1,))
        n = sum(a == v for a, v in zip(answers, expected))
        print(f"{' '.join(map(str, flags))}: {n} of {NEEDLES} needles whose key is asked in the block that answers alone", flush=True)
        self.assertLess(n, NEEDLES)
        with Cluster("--selector", "sketch-walk@1", "--selector-dense-layers", 3, *PATIENT, workers=1, model=COPY) as c:
            self.assertEqual(["".join(c.complete(text + q, 8, timeout_s=3600)[0]) for q in questions], expected)


class Window(unittest.TestCase):
    """streaming gives back what its window has left: a generation that is longer than the pool, in memory that does not grow, with the bits of a large pool."""

    MODEL = "random:layers=2,d=64,heads=4,kv=2,head_dim=32,ff=96,vocab=256,positions=4096:2:5"  # 32 KiB a block
    POOL = 24  # blocks
    FLAGS = ("--step-rows-max", 64, "--prefill-chunk-rows", 64, *PATIENT)

    def test_longer_than_the_pool(self):
        prompt = "".join(random.Random(3).choices(LETTERS, k=1100))
        n = 600
        bound = 3 + 2 + 3 * 2  # block 0, the open one, one more; the window; what three steps compute
        with Cluster("--selector", "streaming@128", "--kv-bytes", "1G", "--spread-min-tokens", 256, *self.FLAGS, workers=2, model=self.MODEL) as c:
            expected = c.complete(prompt, n, timeout_s=600)[:2]
            c.check_quiet()
        with Cluster("--kv-bytes", self.POOL * 32 << 10, *self.FLAGS, workers=1, model=self.MODEL) as c:
            code, _, body = c.http("POST", "/v1/completions", {"prompt": prompt, "max_tokens": n})
            self.assertEqual(code, 400, body)
        with Cluster("--selector", "streaming@128", "--kv-bytes", self.POOL * 32 << 10, *self.FLAGS, workers=1, model=self.MODEL) as c:
            answers, held = [None, None], []

            def ask(i):
                answers[i] = c.complete(prompt, n, timeout_s=600)[:2]

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
            for t in threads:
                t.start()
            while any(t.is_alive() for t in threads):
                for w in c.workers():
                    held.append(w["blocks"] - w["blocks_cached"])
                threads[0].join(0.05)
                threads[1].join(0.05)
            self.assertEqual(answers, [expected, expected])
            self.assertLessEqual(max(held), 2 * bound, held)
            passed = c.metrics()["longspan_kv_blocks_passed_total"]
            print(f"streaming@128: {1100 + n} positions in a pool of {self.POOL * 64}; at most {max(held)} blocks in use by two sequences "
                  f"({bound} each at most), {passed:.0f} given back", flush=True)
            self.assertGreaterEqual(passed, (1100 + n) // 64 - 4)
            c.check_quiet()


class Densities(unittest.TestCase):
    def test_one_is_dense_and_nothing_is_shared(self):
        r = random.Random(2)
        text = "".join(r.choices(LETTERS, k=2000))

        def ask(c, **more):
            tokens, logprobs, answer = c.complete(text, 24, **more)
            return tokens, logprobs, answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        with Cluster(*PATIENT, workers=1, model=COPY) as c:
            dense = ask(c)
            code, _, body = c.http("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "density": 0.5})
            self.assertEqual((code, body["error"]["param"]), (400, "density"))
        for selector in ("quest", "sketch-walk", "socket", "double-sparsity"):
            with Cluster("--selector", selector, *PATIENT, workers=2, model=COPY) as c:
                self.assertEqual(c.status()["selector"].split("@")[0], selector)
                self.assertEqual(ask(c, density=1), dense)
                first = ask(c)
                self.assertEqual(first[2], 0)
                self.assertEqual(ask(c, density=0.2), (*first[:2], 1984))  # the deployment's
                self.assertEqual(ask(c, density=0.3)[2], 0)
                self.assertEqual(ask(c, density=1), (*dense[:2], 1984))
                c.check_quiet()


    def test_flag_of_generate(self):
        args = ("--model", COPY, "--workers", 1, "--raw", "--prompt", "abcdefgh" * 200, "--max-tokens", 100, "--selector", "quest@0.9")
        sparse, dense = (generate(*args, *more) for more in (("--density", 0.1), ("--density", 1)))
        self.assertLess(sparse["density"], 1)
        self.assertEqual(dense["density"], 1)
        for bad in ("0", "1.5", "x"):
            self.assertIn("--density", run("generate", "--local", *args, "--density", bad, check=2)[1])


class Refused(unittest.TestCase):
    def test_at_start(self):
        for flags, reason in (
            (("--selector", "sparse"), "there are dense, quest, socket, double-sparsity, sketch-walk and streaming"),
            (("--selector", "quest@1.5"), "density"),
            (("--selector", "quest@0.1,layers=1"), "flags of their own"),
            (("--selector", "quest", "--selector-dense-layers", 4), "selector-dense-layers"),
            (("--selector", "quest", "--selector-dense-layers", "few"), "selector-dense-layers"),
            (("--selector", "streaming@100"), "a multiple of 64"),
            (("--selector", "streaming", "--selector-scope", "local"), "streaming has a window"),
            (("--selector", "sketch-walk", "--model", "constructed:copy:1000000", "--positions-max", 300000), "4096 blocks"),
        ):
            with tempfile.TemporaryDirectory(prefix="longspan-test-") as state:
                _, err = run("coordinator", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--control", "127.0.0.1:0",
                             "--state", state, "--model", COPY, *flags, timeout_s=30, check=None)
            self.assertIn(reason, err)


if __name__ == "__main__":
    cluster.main(needs_model=False)
