"""Who comes first, from outside: classes, and deadlines that end requests that run and requests that wait."""

import threading
import time
import unittest

import cluster
from cluster import Cluster


class Order(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--sequences-max", 1, workers=1)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def ask(self, prompt, max_tokens, **fields):
        """-> (status, body)"""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **fields}
        code, _, data = self.cluster.http("POST", "/v1/completions", body)
        return code, data

    def test_deadline(self):
        status, body = self.ask("Once upon a time", 4000, timeout=0.5)
        self.assertEqual((status, "deadline" in body["error"]["message"]), (504, True))
        status, body = self.ask("Once upon a time", 5, timeout=60)
        self.assertEqual((status, body["usage"]["completion_tokens"]), (200, 5))

    def test_classes_and_preemption(self):
        """A request of a higher class takes the place of one that runs; that one's text is what it is alone."""
        alone = self.ask("The sea", 300)[1]["choices"][0]["text"]
        answers = {}

        def low():
            answers["low"] = self.ask("The sea", 300, priority=5), time.monotonic()

        thread = threading.Thread(target=low)
        thread.start()
        time.sleep(0.2)
        status, _ = self.ask("A mountain", 5)
        high_ended = time.monotonic()
        thread.join()
        (low_status, low_body), low_ended = answers["low"]
        self.assertEqual((status, low_status), (200, 200))
        self.assertLess(high_ended, low_ended)
        self.assertEqual(low_body["choices"][0]["text"], alone)
        self.assertEqual(low_body["usage"]["completion_tokens"], 300)


if __name__ == "__main__":
    cluster.main()
