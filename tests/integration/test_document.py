"""A real document of 6000 tokens and questions about it, with the default model and default settings (spread from 2048 tokens on)."""

import os
import unittest

import cluster
from cluster import Cluster

TEXTS = ("/usr/share/common-licenses/GPL-3", os.path.join(cluster.ROOT, "LICENSE"))
QUESTIONS = ("What is this document about?", "Who may copy this document?")
TOKENS = 6000


def document(c):
    """The first 6000 tokens of a licence, cut between lines, with a fact that is not in it."""
    text = ""
    for path in TEXTS:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                text += f.read() + "\n"
    lines = text.splitlines()
    low, high = 1, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        if c.post("/tokenize", {"prompt": "\n".join(lines[:middle])})["count"] <= TOKENS - 40:
            low = middle
        else:
            high = middle - 1
    lines = lines[:low]
    lines.insert(low // 2, "The author of this copy keeps seventeen geese on an island called Vellingar.")
    return "\n".join(lines)


def ask(c, text, question):
    a = c.post("/v1/chat/completions", {"messages": [{"role": "user", "content": f"{text}\n\n{question}"}], "max_tokens": 40,
                                        "temperature": 0, "logprobs": True})
    choice = a["choices"][0]
    return {"text": choice["message"]["content"], "finish": choice["finish_reason"], "usage": a["usage"],
            "tokens": [(t["token"], t["logprob"]) for t in choice["logprobs"]["content"]]}


class Document(unittest.TestCase):
    def test_questions(self):
        answers = []
        for workers in (1, 2):
            with Cluster(workers=workers) as c:
                text = document(c)
                answers.append([ask(c, text, q) for q in QUESTIONS])
                at = {w["id"]: w["blocks"] for w in c.workers()}
                self.assertTrue(all(n > 30 for n in at.values()), f"blocks by worker: {at}")  # spread over all
                c.check_quiet()
        for one, two in zip(*answers):
            self.assertEqual(one["tokens"], two["tokens"])
            self.assertEqual(one["text"], two["text"])
        for first, second in answers:
            n = first["usage"]["prompt_tokens"]
            self.assertGreater(n, TOKENS - 60)
            self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertGreater(cached, n - 64 - 20)  # all whole blocks of the document
        for a in answers[0]:
            print(f"{a['usage']}: {a['text']!r}", flush=True)
            self.assertGreater(len(a["text"]), 10)
            self.assertTrue(a["text"].isprintable() or "\n" in a["text"])


if __name__ == "__main__":
    cluster.main()
