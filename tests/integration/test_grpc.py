"""A foreign client, the `grpcio` package with stubs made from proto/, against the gRPC side."""

import os
import signal
import threading
import time
import unittest

import cluster
from cluster import Cluster, prose, wait_for
from rpc import Rpc, grpc, health, pb

Code = grpc.StatusCode
Serving = health.HealthCheckResponse


class Grpc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2)
        cls.rpc = Rpc(cls.cluster.grpc)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.check_quiet()
        cls.rpc.close()
        cls.cluster.stop()

    def test_generate(self):
        messages = list(self.rpc.generate(text="One two three four", max_tokens=10, temperature=0))
        self.assertTrue(messages[0].id)
        self.assertTrue(all(not m.id for m in messages[1:]))
        self.assertGreater(len(messages), 5)
        self.assertTrue(messages[-1].HasField("done"))
        done = messages[-1].done
        text, ids, logprobs, _ = self.rpc.whole(text="One two three four", max_tokens=10, temperature=0)
        self.assertEqual("".join(m.text for m in messages), text)
        self.assertEqual((len(ids), len(logprobs), done.finish_reason), (10, 10, pb.FINISH_REASON_LENGTH))
        self.assertEqual((done.usage.prompt_tokens, done.usage.completion_tokens), (4, 10))
        self.assertEqual((done.kv.density, done.kv.bytes_per_token), (1, 23040))
        self.assertGreater(done.timings.total_ms, 0)
        self.assertEqual(len(done.workers), 1)
        self.assertTrue(done.workers[0].fingerprint)
        # HTTP says the same
        tokens, lp, answer = self.cluster.complete("One two three four", 10)
        self.assertEqual(answer["choices"][0]["text"], text)
        self.assertEqual([float(f"{x:.9g}") for x in logprobs], lp)

    def test_prompts(self):
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Why is the sky blue?")])
        a = self.rpc.whole(chat=chat, max_tokens=8, temperature=0)
        ids = self.cluster.post("/tokenize", {"messages": [{"role": "user", "content": "Why is the sky blue?"}]})["tokens"]
        b = self.rpc.whole(token_ids=pb.TokenIds(ids=ids), max_tokens=8, temperature=0)
        self.assertEqual(a[:3], b[:3])
        self.assertEqual(a[3].usage.prompt_tokens, len(ids))

    def test_stop_and_end(self):
        whole = self.rpc.whole(text="One two three four", max_tokens=24, temperature=0)[0]
        text, ids, logprobs, done = self.rpc.whole(text="One two three four", max_tokens=24, temperature=0, stop=[whole[7:11]])
        self.assertEqual((text, done.finish_reason), (whole[: whole.index(whole[7:11])], pb.FINISH_REASON_STOP))
        self.assertEqual(len(ids), len(logprobs))

    def test_sampling(self):
        a, b, c = (self.rpc.whole(text="Once upon a time", max_tokens=12, temperature=1, seed=s) for s in (3, 3, 4))
        self.assertEqual(a[:3], b[:3])
        self.assertNotEqual(a[1], c[1])
        self.assertEqual(a[3].seed, 3)
        drawn = self.rpc.whole(text="Once upon a time", max_tokens=12, temperature=1)
        again = self.rpc.whole(text="Once upon a time", max_tokens=12, temperature=1, seed=drawn[3].seed)
        self.assertEqual(drawn[:3], again[:3])

    def test_scores_and_forced(self):
        """A token's log-probability is the same whether it was sampled, forced, or stood in the prompt."""
        prompt = self.cluster.post("/tokenize", {"prompt": prose(8, 4)})["tokens"]
        sampled = self.rpc.whole(token_ids=pb.TokenIds(ids=prompt), max_tokens=70, temperature=0, ignore_eos=True)
        forced = self.rpc.whole(token_ids=pb.TokenIds(ids=prompt), max_tokens=70, temperature=1, ignore_eos=True, seed=9,
                                forced_token_ids=sampled[1])
        self.assertEqual(sampled[:3], forced[:3])
        scores = []
        for m in self.rpc.generate(token_ids=pb.TokenIds(ids=prompt + sampled[1]), max_tokens=0, score=True):
            for p in m.prompt_logprobs:
                self.assertEqual(p.position, len(scores) + 1)
                scores += p.logprobs
        self.assertEqual(len(scores), len(prompt) + 70 - 1)
        self.assertEqual(scores[len(prompt) - 1 :], sampled[2])

    def test_top_logprobs(self):
        tops = []
        for m in self.rpc.generate(text="One two three four", max_tokens=5, temperature=0, top_logprobs=3):
            self.assertEqual(len(m.top), len(m.token_ids))
            tops += zip(m.token_ids, m.logprobs, m.top)
        self.assertEqual(len(tops), 5)
        for token, logprob, top in tops:
            self.assertEqual((len(top.items), top.items[0].token_id, top.items[0].logprob), (3, token, logprob))

    def test_logits(self):
        prompt = [504, 6376, 314]
        rows = {}
        for m in self.rpc.generate(token_ids=pb.TokenIds(ids=prompt), max_tokens=2, temperature=0, logits=True):
            rows.update((r.position, r.logits) for r in m.logits)
        ids = self.rpc.whole(token_ids=pb.TokenIds(ids=prompt), max_tokens=2, temperature=0)[1]
        self.assertEqual(sorted(rows), [0, 1, 2, 3])
        for position, token in ((2, ids[0]), (3, ids[1])):
            row = list(rows[position])
            self.assertEqual((len(row), row.index(max(row))), (49152, token))
        # from a position on: the same rows, and those before it are not sent
        late = {}
        for m in self.rpc.generate(token_ids=pb.TokenIds(ids=prompt), max_tokens=2, temperature=0, logits=True, logits_from=2):
            late.update((r.position, r.logits) for r in m.logits)
        self.assertEqual(late, {p: rows[p] for p in (2, 3)})
        for wrong in ({"logits_from": 1}, {"logits_from": 4, "logits": True}):
            with self.assertRaises(grpc.RpcError) as refused:
                self.rpc.whole(token_ids=pb.TokenIds(ids=prompt), max_tokens=2, **wrong)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("logits_from", refused.exception.details())

    def test_characters_stay_whole(self):
        """Tokens that are parts of characters, forced one by one: every message's text is whole."""
        text = "日本語 🙂🙃 naïve Ünïcödé 한국어 العربية"
        ids = self.cluster.post("/tokenize", {"prompt": text})["tokens"]
        self.assertGreater(len(ids), len(text.split()) * 3)
        pieces = [m.text for m in self.rpc.generate(text="x", max_tokens=len(ids), forced_token_ids=ids, ignore_eos=True)]
        self.assertEqual("".join(pieces), text)
        self.assertFalse([p for p in pieces if "\ufffd" in p])

    def test_progress(self):
        seen = [(m.progress.done, m.progress.total) for m in self.rpc.generate(text=prose(100, 5), max_tokens=1, progress=True)
                if m.HasField("progress")]
        self.assertTrue(seen)
        self.assertEqual(seen, sorted(seen))
        self.assertEqual(seen[-1][0], seen[-1][1])

    # ---- ends ----

    def test_deadline(self):
        start = time.monotonic()
        with self.assertRaises(grpc.RpcError) as e:
            list(self.rpc.generate(text="One two", max_tokens=5000, ignore_eos=True, timeout=0.7))
        self.assertEqual(e.exception.code(), Code.DEADLINE_EXCEEDED)
        self.assertLess(cluster.elapsed(start), 10)
        wait_for("nothing runs", self.cluster.idle, 30)

    def test_cancel(self):
        before = self.cluster.status()["scheduler"]["requests_cancelled"]
        call = self.rpc.generate(text="One two", max_tokens=5000, ignore_eos=True)
        next(iter(call))
        call.cancel()
        wait_for("nothing runs", self.cluster.idle, 30)
        self.assertEqual(self.cluster.status()["scheduler"]["requests_cancelled"], before + 1)

    def test_channel_goes_away(self):
        rpc = Rpc(self.cluster.grpc)
        calls = [rpc.generate(text=prose(4, i), max_tokens=5000, ignore_eos=True) for i in range(4)]
        for call in calls:
            next(iter(call))
        rpc.close()
        wait_for("nothing runs", self.cluster.idle, 30)

    # ---- refusals ----

    def test_refused(self):
        def refused(code, says, **fields):
            with self.assertRaises(grpc.RpcError) as e:
                list(self.rpc.generate(**fields))
            self.assertEqual(e.exception.code(), code, e.exception.details())
            self.assertIn(says, e.exception.details())

        bad = Code.INVALID_ARGUMENT
        refused(bad, "prompt")
        refused(bad, "prompt", text="")
        refused(bad, "chat", chat=pb.Chat())
        refused(bad, "messages", chat=pb.Chat(messages=[pb.ChatMessage(role="wizard", content="x")]))
        refused(bad, "temperature", text="x", temperature=-1)
        refused(bad, "temperature", text="x", temperature=float("nan"))
        refused(bad, "top_p", text="x", top_p=0)
        refused(bad, "top_p", text="x", top_p=1.5)
        refused(bad, "top_logprobs", text="x", top_logprobs=1000)
        refused(bad, "max_tokens", text="x", max_tokens=0)
        refused(bad, "stop", text="x", stop=["a"] * 100)
        refused(bad, "stop", text="x", stop=[""])
        refused(bad, "forced_token_ids", text="x", max_tokens=1, forced_token_ids=[1, 2])
        refused(bad, "forced_token_ids", text="x", max_tokens=1, forced_token_ids=[1 << 30])
        refused(bad, "token", token_ids=pb.TokenIds(ids=[1 << 20]))
        refused(bad, "NUL", text="a\0b")
        refused(bad, "8192", text=prose(800, 1))
        refused(bad, "8192", text="x", max_tokens=100000)
        refused(Code.NOT_FOUND, "gpt-4", text="x", model="gpt-4")

    def raw(self, method, data, stream=False):
        """Bytes as they are, to a method."""
        make = self.rpc.channel.unary_stream if stream else self.rpc.channel.unary_unary
        with self.assertRaises(grpc.RpcError) as e:
            answer = make(method, request_serializer=bytes, response_deserializer=bytes)(data, timeout=60)
            list(answer)
        return e.exception.code(), e.exception.details()

    def test_malformed(self):
        generate = "/longspan.v1.Inference/Generate"
        for data in (b"\xff" * 40, b"\x12\xff\xff\xff\xff\x0f", b"\x12\x03abc\xa2\x06\x01x", b"\x12\x02\xff\xfe", b"\x0b\x0c"):
            code, details = self.raw(generate, data, True)
            self.assertEqual(code, Code.INVALID_ARGUMENT, (data, details))
        self.assertEqual(self.raw("/longspan.v1.Inference/Nothing", b"")[0], Code.UNIMPLEMENTED)
        self.assertEqual(self.raw("/longspan.v1.Control/Attach", b"", True)[0], Code.UNIMPLEMENTED)  # not on the client port

    # ---- beside ----

    def test_status(self):
        s = self.rpc.cluster.Status(pb.StatusRequest(), timeout=60)
        self.assertTrue(s.ready)
        self.assertEqual((s.identity, s.precision, s.kv_codec, s.selector, s.positions_max), ("exact", "bf16", "bf16", "dense", 8192))
        self.assertEqual((s.kv_bytes_per_token, len(s.workers)), (23040, 2))
        for w in s.workers:
            self.assertEqual((w.state, w.load_fraction, w.block_bytes), ("ready", 1, 23040 * 64))
            self.assertEqual(w.pid in cluster.children(self.cluster.up.pid), True)
            self.assertGreater(w.n_blocks, 100)
            self.assertGreater(w.resident_bytes, w.weight_bytes)
        self.assertGreaterEqual(s.positions_fit, 8192)

    def test_health(self):
        for service in ("", "longspan.v1.Inference", "longspan.v1.Cluster"):
            self.assertEqual(self.rpc.health.Check(health.HealthCheckRequest(service=service), timeout=60).status, Serving.SERVING)
        with self.assertRaises(grpc.RpcError) as e:
            self.rpc.health.Check(health.HealthCheckRequest(service="other"), timeout=60)
        self.assertEqual(e.exception.code(), Code.NOT_FOUND)
        watch = self.rpc.health.Watch(health.HealthCheckRequest(service="other"), timeout=60)
        self.assertEqual(next(watch).status, Serving.SERVICE_UNKNOWN)
        watch.cancel()

    def test_watch(self):
        """NOT_SERVING while no worker is there, SERVING again when one is."""
        c = Cluster(workers=1)
        self.addCleanup(c.kill)
        rpc = Rpc(c.grpc)
        watch = rpc.health.Watch(health.HealthCheckRequest(), timeout=180)
        self.assertEqual(next(watch).status, Serving.SERVING)
        os.kill(c.workers()[0]["pid"], signal.SIGKILL)
        self.assertEqual(next(watch).status, Serving.NOT_SERVING)
        self.assertEqual(next(watch).status, Serving.SERVING)
        seen = []

        def rest():
            try:
                seen.extend(m.status for m in watch)
            except grpc.RpcError as e:
                seen.append(e.code())

        t = threading.Thread(target=rest)
        t.start()
        c.stop()  # a watcher does not hold it up
        t.join(60)
        self.assertIn(seen[-1:], ([Code.UNAVAILABLE], [Code.CANCELLED]))
        rpc.close()


if __name__ == "__main__":
    cluster.main()
