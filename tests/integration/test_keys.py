"""API keys: without one nobody is served, over HTTP and gRPC; a key is a tenant; jobs are seen by their own tenant alone."""

import hashlib
import os
import tempfile
import unittest

import cluster
from cluster import Cluster, run
from rpc import Rpc, grpc, pb

openai = cluster.need_module("openai")

KEYS = {"team-a": "sk-a-0123456789", "team-b": "sk-b-9876543210", "operator": "sk-o-5555555555"}


class Keyed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = tempfile.TemporaryDirectory(prefix="longspan-keys-")
        path = os.path.join(cls.files.name, "keys")
        with open(path, "w", encoding="utf-8") as f:
            for tenant, key in KEYS.items():
                f.write(f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}\n")
        cls.key_file = os.path.join(cls.files.name, "mine")
        with open(cls.key_file, "w", encoding="utf-8") as f:
            f.write(KEYS["team-a"] + "\n")
        cls.cluster = Cluster("--api-keys", path, "--api-key-file", cls.key_file, workers=1)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()
        cls.files.cleanup()

    def client(self, key):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.cluster.port}/v1", api_key=key, max_retries=0)

    def rpc(self, tenant=None, key=None):
        rpc = Rpc(self.cluster.grpc)
        self.addCleanup(rpc.close)
        key = KEYS.get(tenant, key)
        return rpc, [("authorization", f"Bearer {key}")] if key else []

    def test_http(self):
        ask = {"model": "default", "prompt": "The", "max_tokens": 4, "temperature": 0}
        for key in KEYS.values():
            self.assertTrue(self.client(key).completions.create(**ask).choices[0].text)
        with self.assertRaises(openai.AuthenticationError) as e:
            self.client("sk-stranger").completions.create(**ask)
        self.assertEqual(e.exception.code, "invalid_api_key")
        for method, path in (("GET", "/v1/models"), ("GET", "/status"), ("POST", "/v1/chat/completions"), ("POST", "/tokenize")):
            code, headers, _ = self.cluster.http(method, path, "{}" if method == "POST" else None)
            self.assertEqual((code, headers["WWW-Authenticate"]), (401, "Bearer"), path)
        for path in ("/health", "/ready", "/metrics", "/", "/live.js", "/live.css"):
            self.assertEqual(self.cluster.http("GET", path)[0], 200)

    def test_operator(self):
        """What changes the cluster is for the operator's key alone."""
        for tenant in ("team-a", "operator"):
            rpc, mine = self.rpc(tenant)
            for method, m, otherwise in ((rpc.cluster.Drain, pb.DrainRequest(worker=99), grpc.StatusCode.NOT_FOUND), (rpc.cluster.Rebalance, pb.RebalanceRequest(), None)):
                expect = otherwise if tenant == "operator" else grpc.StatusCode.PERMISSION_DENIED
                if expect:
                    with self.assertRaises(grpc.RpcError) as e:
                        method(m, metadata=mine)
                    self.assertEqual(e.exception.code(), expect)
                else:
                    method(m, metadata=mine)

    def test_grpc(self):
        rpc, mine = self.rpc("team-a")
        self.assertTrue(list(rpc.inference.Generate(pb.GenerateRequest(text="The", max_tokens=2), metadata=mine)))
        for key in (None, "sk-stranger", "x" * 2000):
            other, shown = self.rpc(key=key)
            for call in (lambda: list(other.inference.Generate(pb.GenerateRequest(text="The", max_tokens=2), metadata=shown)),
                         lambda: other.inference.ListJobs(pb.ListJobsRequest(), metadata=shown),
                         lambda: other.cluster.Status(pb.StatusRequest(), metadata=shown)):
                with self.assertRaises(grpc.RpcError) as e:
                    call()
                self.assertEqual(e.exception.code(), grpc.StatusCode.UNAUTHENTICATED)

    def test_prefixes_are_the_tenants_own(self):
        def cached(tenant, **more):
            answer = self.client(KEYS[tenant]).completions.create(model="default", prompt="tell me more " * 60, max_tokens=1, extra_body=more)
            return answer.usage.prompt_tokens_details.cached_tokens

        self.assertEqual(cached("team-a"), 0)
        self.assertEqual(cached("team-b"), 0)
        self.assertGreater(cached("team-a"), 64)
        self.assertEqual(cached("team-a", cache_salt="one"), 0)
        self.assertEqual(cached("team-b", cache_salt="one"), 0)
        self.assertGreater(cached("team-a", cache_salt="one"), 64)

    def test_command(self):
        c = self.cluster
        ask = ("generate", "--grpc", c.grpc, "--prompt", "The", "--max-tokens", "2")
        run(*ask, "--api-key-file", self.key_file)
        run(*ask, env={"LONGSPAN_API_KEY": KEYS["team-b"]})
        _, err = run(*ask, check=1)
        self.assertIn("Bearer", err)
        _, err = run(*ask, env={"LONGSPAN_API_KEY": "with space"}, check=1)
        self.assertIn("API key", err)

    def test_jobs(self):
        rpc, a = self.rpc("team-a")
        _, b = self.rpc("team-b")
        ask = pb.SubmitJobRequest(generate=pb.GenerateRequest(text="The", max_tokens=4, temperature=0), idempotency_key="one")
        mine = rpc.inference.SubmitJob(ask, metadata=a).id
        other = rpc.inference.SubmitJob(ask, metadata=b).id
        self.assertNotEqual(mine, other)
        self.assertEqual(rpc.inference.SubmitJob(ask, metadata=a).id, mine)
        self.assertEqual([j.id for j in rpc.inference.ListJobs(pb.ListJobsRequest(), metadata=a).jobs], [mine])
        self.assertEqual([j.id for j in rpc.inference.ListJobs(pb.ListJobsRequest(), metadata=b).jobs], [other])
        list(rpc.inference.WatchJob(pb.WatchJobRequest(id=mine), metadata=a))
        self.assertTrue(rpc.inference.GetJob(pb.GetJobRequest(id=mine, output=True), metadata=a).state)
        for call in (lambda: rpc.inference.GetJob(pb.GetJobRequest(id=mine), metadata=b), lambda: list(rpc.inference.WatchJob(pb.WatchJobRequest(id=mine), metadata=b)),
                     lambda: rpc.inference.CancelJob(pb.CancelJobRequest(id=mine), metadata=b),
                     lambda: rpc.inference.ListJobs(pb.ListJobsRequest(after_id=mine), metadata=b)):
            with self.assertRaises(grpc.RpcError) as e:
                call()
            self.assertEqual(e.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_up_needs_its_own(self):
        """`up` calls the cluster itself."""
        path = self.cluster.command[self.cluster.command.index("--api-keys") + 1]
        _, err = run("up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--api-keys", path, "--once", check=1, timeout_s=60)
        self.assertIn("api-key-file", err)


if __name__ == "__main__":
    cluster.main()
