"""
64 needles at 64 depths of one context, in the model that is made to copy: every one is found, by any number of workers, under every codec of KV, over
the shared prefix.
Keys differ in one byte, which is 19 nats of a score in this model. Rounding a key to 4 bits moves its score by 7 (one sigma), so int4-rot cannot tell
such keys apart for sure: its keys differ in several bytes.
The context has 16 k positions (lossy codecs: 8 k), or POSITIONS=65536 for the whole proof: attention grows with the square, so that takes sixteen times as long.
"""

import concurrent.futures
import os
import random
import unittest

import cluster
from cluster import Cluster

POSITIONS, NEEDLES, SEED = int(os.environ.get("POSITIONS", 0)), 64, 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PATIENT = ("--step-deadline-ms", 600000, "--silence-ms", 60000)  # a step at 64 k positions takes long, the more so on a busy machine


def haystack(positions, alike):
    """alike: keys that differ in one byte -> (text, [(key of eight bytes, value of eight)])"""
    r = random.Random(SEED)
    draw = lambda: "".join(r.choices(LETTERS.upper(), k=8))
    needles = [(f"NEEDLE{i:02d}" if alike else draw(), draw()) for i in range(NEEDLES)]
    between = positions // NEEDLES - 16
    pieces = []
    for key, value in needles:
        before = r.randrange(between)
        pieces += ["".join(r.choices(LETTERS, k=before)), key, value, "".join(r.choices(LETTERS, k=between - before))]
    return "".join(pieces), needles


class Needles(unittest.TestCase):
    def test_bf16(self):
        self.found("bf16", (1, 2, 3, 4))

    def test_int8(self):
        self.found("int8", (1, 3))

    def test_int4_rot(self):
        self.found("int4-rot", (1, 4))

    def found(self, codec, numbers):
        positions = POSITIONS or (16384 if codec == "bf16" else 8192)
        text, needles = haystack(positions, codec != "int4-rot")
        self.assertEqual(len(text), positions)
        seen = []
        for workers in numbers:
            with Cluster("--kv-codec", codec, *PATIENT, workers=workers, model="constructed:copy") as c:

                def ask(needle, c=c):
                    tokens, logprobs, answer = c.complete(text + needle[0], 8, timeout_s=3600)
                    usage = answer["usage"]
                    return "".join(tokens), logprobs, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

                answers = [ask(needles[0])]
                with concurrent.futures.ThreadPoolExecutor(NEEDLES) as pool:
                    answers += pool.map(ask, needles[1:])
                self.assertEqual(answers[0][2:], (positions + 8, 0))
                self.assertTrue(all(a[3] == positions for a in answers[1:]), "the context was computed again")
                self.assertEqual([a[0] for a in answers], [value for _, value in needles], f"{workers} workers")
                self.assertTrue(all(p > -0.01 for a in answers for p in a[1]))
                blocks = [w["blocks"] for w in c.workers()]
                self.assertEqual(len(blocks), workers)
                self.assertTrue(all(b >= positions // 64 // workers // 2 for b in blocks), blocks)
                c.check_quiet()
                seen.append([a[:2] for a in answers])
        for other in seen[1:]:
            self.assertEqual(other, seen[0])
        print(f"{codec}: {NEEDLES} of {NEEDLES} needles in {positions} positions, by {numbers} workers alike", flush=True)


if __name__ == "__main__":
    cluster.main(needs_model=False)
