"""The `openai` client tries again where it should: when the server is full, and when it has no worker."""

import os
import signal
import threading
import unittest

import cluster
from cluster import Cluster, wait_for

openai = cluster.need_module("openai")


class Retries(unittest.TestCase):
    def client(self, c, retries):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{c.port}/v1", api_key="none", max_retries=retries, timeout=60)

    def test_full(self):
        """429 with Retry-After while another holds the only place; who waits gets it."""
        with Cluster("--requests-max", 1, workers=1, model="random:tiny") as c, self.client(c, 0) as once, self.client(c, 20) as patient:
            stream = once.completions.create(model="default", prompt="x", max_tokens=20000, stream=True, extra_body={"ignore_eos": True})
            next(iter(stream))
            with self.assertRaises(openai.RateLimitError) as e:
                once.completions.create(model="default", prompt="y", max_tokens=2)
            self.assertGreaterEqual(int(e.exception.response.headers["retry-after"]), 1)
            self.assertEqual(e.exception.code, "too_many_requests")

            def leave():
                """When the patient one, too, has been refused."""
                wait_for("another refusal", lambda: busy() > before)
                stream.close()

            def busy():
                return c.metrics()['longspan_requests_total{outcome="busy"}']

            before = busy()
            leaver = threading.Thread(target=leave)
            leaver.start()
            raw = patient.completions.with_raw_response.create(model="default", prompt="y", max_tokens=2)
            leaver.join()
            self.assertEqual(raw.parse().usage.completion_tokens, 2)
            self.assertGreater(raw.retries_taken, 0)
            c.check_quiet()

    def test_no_worker(self):
        """503 while the only worker is gone; its successor serves."""
        with Cluster("--worker-wait-ms", 0, workers=1, model="random:tiny") as c, self.client(c, 0) as once, self.client(c, 30) as patient:
            self.assertEqual(once.completions.create(model="default", prompt="y", max_tokens=2).usage.completion_tokens, 2)
            worker = c.workers()[0]["pid"]
            os.kill(worker, signal.SIGSTOP)  # it comes to rest with the request on it, then is gone
            lost = []

            def ask():
                try:
                    lost.append(patient.completions.with_raw_response.create(model="default", prompt="z", max_tokens=2))
                except openai.APIError as e:
                    lost.append(e)

            thread = threading.Thread(target=ask)
            thread.start()
            wait_for("it is there", lambda: lost or (m := c.metrics())["longspan_requests_running"] + m["longspan_requests_waiting"])
            os.kill(worker, signal.SIGKILL)
            thread.join()
            self.assertNotIsInstance(lost[0], Exception, lost)
            self.assertEqual(lost[0].parse().usage.completion_tokens, 2)
            self.assertGreater(lost[0].retries_taken, 0)


if __name__ == "__main__":
    cluster.main(needs_model=False)
