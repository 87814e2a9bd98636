"""`longspan batch` and `longspan jobs`: OpenAI's batch format in and out, errors by line, and going on after an interruption."""

import json
import os
import signal
import subprocess
import unittest

import cluster
from cluster import LONGSPAN, ROOT, Cluster, run, wait_for


def line(custom_id, text, **more):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                       "body": {"messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0, **more}})


class Batch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2)
        cls.grpc = ["--grpc", cls.cluster.grpc]

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def path(self, name, lines=None):
        path = os.path.join(self.cluster.directory, name)
        if lines is not None:
            with open(path, "w") as f:
                f.write("\n".join(lines) + "\n")
        return path

    def read(self, path):
        with open(path) as f:
            return [json.loads(text) for text in f]

    def test_batch(self):
        lines = [line("a", "Name a colour."), "not json", line("b", "Name a river.", temperature=-1), "", line("a", "again"),
                 line("c", "Name a tree.", model="gpt-9"),
                 json.dumps({"custom_id": "d", "method": "GET", "url": "/v1/completions", "body": {}}),
                 json.dumps({"custom_id": "e", "method": "POST", "url": "/v1/completions",
                             "body": {"prompt": "One two three", "max_tokens": 5, "temperature": 0}}), line("f", "Name a bird.")]
        file = self.path("in.jsonl", lines)
        out, err = run("batch", file, *self.grpc)
        self.assertIn("8 answers", err)
        self.assertIn("5 of them errors", err)
        got = self.read(file + ".out.jsonl")
        self.assertEqual([g["custom_id"] for g in got], ["a", None, "b", "a", "c", "d", "e", "f"])
        by = {i: g for i, g in enumerate(got)}
        for i in (0, 7):
            self.assertEqual((by[i]["response"]["status_code"], by[i]["error"]), (200, None))
        want = self.cluster.post("/v1/chat/completions", json.loads(lines[0])["body"])
        self.assertEqual(by[0]["response"]["body"]["choices"], want["choices"])
        self.assertEqual(by[6]["response"]["body"]["choices"][0]["text"],
                         self.cluster.post("/v1/completions", json.loads(lines[7])["body"])["choices"][0]["text"])
        self.assertIn("line 2", by[1]["error"]["message"])
        self.assertIn("temperature", by[2]["error"]["message"])
        self.assertIn("earlier line", by[3]["error"]["message"])
        self.assertEqual(by[4]["response"]["status_code"], 404)
        self.assertIn("method", by[5]["error"]["message"])
        # the same file is the same jobs
        again = self.path("again.jsonl")
        run("batch", file, "--output", again, *self.grpc)
        self.assertEqual(self.read(again), got)

    def test_interrupted(self):
        file = self.path("long.jsonl", [line(f"n{i}", f"Count from {i}:", max_tokens=40, ignore_eos=True) for i in range(30)])
        out = self.path("long.out")

        def jobs():
            return len(json.loads(run("jobs", "list", "--json", *self.grpc)[0]))

        before = jobs()
        p = subprocess.Popen([LONGSPAN, "batch", file, "--output", out, *self.grpc], stderr=subprocess.PIPE, cwd=ROOT)
        wait_for("some answers", lambda: os.path.exists(out + ".part") and jobs() > before + 1)
        p.send_signal(signal.SIGINT)
        self.assertIn(b"goes on where it was", p.communicate(timeout=60)[1])
        self.assertEqual(p.returncode, 1)
        self.assertFalse(os.path.exists(out))
        # the coordinator dies while it goes on
        p = subprocess.Popen([LONGSPAN, "batch", file, "--output", out, *self.grpc], stderr=subprocess.PIPE, cwd=ROOT)
        wait_for("it goes on", lambda: os.path.exists(out + ".part"))
        os.kill(self.cluster.coordinator(), signal.SIGKILL)
        self.assertIn(b"30 answers", p.communicate(timeout=240)[1])
        self.assertEqual(p.returncode, 0)
        got = self.read(out)
        self.assertEqual([g["custom_id"] for g in got], [f"n{i}" for i in range(30)])
        self.assertEqual({g["response"]["status_code"] for g in got}, {200})
        self.assertEqual(len({g["id"] for g in got}), 30)

    def test_jobs(self):
        job = run("jobs", "submit", "--prompt", "Name a colour.", "--max-tokens", 6, "--name", "mine", "--key", "k", *self.grpc)[0].strip()
        self.assertEqual(run("jobs", "submit", "--prompt", "Name a colour.", "--max-tokens", 6, "--name", "mine", "--key", "k",
                             *self.grpc)[0].strip(), job)
        said = run("jobs", "watch", job, *self.grpc)[0]
        self.assertEqual(run("jobs", "get", job, *self.grpc)[0], said)
        self.assertTrue(said.strip())
        whole = json.loads(run("jobs", "get", job, "--json", *self.grpc)[0])
        self.assertEqual((whole["state"], whole["name"], whole["status"]), ("done", "mine", 200))
        self.assertIn(job, run("jobs", "list", *self.grpc)[0])
        self.assertIn("done", run("jobs", "cancel", job, *self.grpc)[0])
        self.assertIn("no such job", run("jobs", "get", "job-0", *self.grpc, check=1)[1])
        for bad in (["jobs"], ["jobs", "dance"], ["jobs", "get"], ["jobs", "list", "x"], ["batch"]):
            run(*bad, *self.grpc, check=2)


if __name__ == "__main__":
    cluster.main()
