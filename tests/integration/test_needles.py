"""
64 needles at 64 depths of one context, in the model that is made to copy: every one is found, by any number of workers, over the shared prefix.
The context has 16 k positions, or POSITIONS=65536 for the whole proof: attention grows with the square, so that takes sixteen times as long.
"""

import concurrent.futures
import os
import random
import unittest

import cluster
from cluster import Cluster

POSITIONS, NEEDLES, SEED = int(os.environ.get("POSITIONS", 16384)), 64, 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def haystack():
    """-> (text, [(key of eight bytes, value of eight)])"""
    r = random.Random(SEED)
    needles = [(f"NEEDLE{i:02d}", "".join(r.choices(LETTERS.upper(), k=8))) for i in range(NEEDLES)]
    between = POSITIONS // NEEDLES - 16
    pieces = []
    for key, value in needles:
        before = r.randrange(between)
        pieces += ["".join(r.choices(LETTERS, k=before)), key, value, "".join(r.choices(LETTERS, k=between - before))]
    return "".join(pieces), needles


class Needles(unittest.TestCase):
    def test_found(self):
        text, needles = haystack()
        self.assertEqual(len(text), POSITIONS)
        seen = []
        for workers in (1, 2, 3, 4):
            with Cluster(workers=workers, model="constructed:copy") as c:

                def ask(needle, c=c):
                    tokens, logprobs, answer = c.complete(text + needle[0], 8, timeout_s=3600)
                    usage = answer["usage"]
                    return "".join(tokens), logprobs, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

                answers = [ask(needles[0])]
                with concurrent.futures.ThreadPoolExecutor(NEEDLES) as pool:
                    answers += pool.map(ask, needles[1:])
                self.assertEqual(answers[0][2:], (POSITIONS + 8, 0))
                self.assertTrue(all(a[3] == POSITIONS for a in answers[1:]), "the context was computed again")
                self.assertEqual([a[0] for a in answers], [value for _, value in needles], f"{workers} workers")
                self.assertTrue(all(p > -0.01 for a in answers for p in a[1]))
                blocks = [w["blocks"] for w in c.workers()]
                self.assertEqual(len(blocks), workers)
                self.assertTrue(all(b >= POSITIONS // 64 // workers // 2 for b in blocks), blocks)
                c.check_quiet()
                seen.append([a[:2] for a in answers])
        for other in seen[1:]:
            self.assertEqual(other, seen[0])


if __name__ == "__main__":
    cluster.main(needs_model=False)
