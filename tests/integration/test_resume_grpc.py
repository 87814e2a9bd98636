"""Generate over gRPC with an idempotency_key, taken up again by resume_from: nothing is lost and nothing told twice, whether the connection was lost or the coordinator killed."""

import time
import unittest

import cluster
from cluster import Cluster, prose
from readers import no_prompt_on_disk, read_after_a_while, read_through_kills
from rpc import Rpc, grpc, pb

Code = grpc.StatusCode


class Reader:
    """A client that counts on nothing: each call has a connection of its own, which is cut after some messages; it comes back with the last place it saw."""

    def __init__(self, cluster, key, fields):
        self.cluster, self.key, self.fields = cluster, key, fields
        self.told, self.place, self.done, self.ids = [], "", False, set()

    def open(self):
        self.rpc = Rpc(self.cluster.grpc)
        self.call = self.rpc.generate(120, idempotency_key=self.key, resume_from=self.place, **self.fields)

    def read(self, messages):
        """-> OK, None if it has left by itself, or what ended the call"""
        try:
            for m in self.call:
                assert m.place, m
                self.place = m.place
                self.told.append(m)
                self.ids |= {m.id} if m.id else set()
                messages -= 1
                if not messages:
                    return None
            self.done = True
            return Code.OK
        except grpc.RpcError as e:
            return e.code()

    def leave(self):
        self.rpc.close()

    def finish(self, at_once=1 << 30, timeout_s=120):
        """Reads to the end, coming back as often as it takes; leaves by itself after so many messages each time."""
        until = time.monotonic() + timeout_s
        while not self.done:
            assert time.monotonic() < until, "the answer does not end"
            self.open()
            code = self.read(at_once)
            self.leave()
            assert code in (None, Code.OK, Code.UNAVAILABLE), code
            if code == Code.UNAVAILABLE:
                time.sleep(0.1)
        return self

    def answer(self):
        """Everything that was told, put together, by choice."""
        choices = {}
        for m in self.told:
            got = choices.setdefault(m.index, {"text": "", "ids": [], "logprobs": [], "tops": [], "scores": [], "ends": []})
            got["text"] += m.text
            got["ids"] += m.token_ids
            got["logprobs"] += m.logprobs
            got["tops"] += [[(i.token_id, i.logprob) for i in t.items] for t in m.top]
            for p in m.prompt_logprobs:
                assert p.position == len(got["scores"]) + 1, (p.position, len(got["scores"]))
                got["scores"] += p.logprobs
            if m.HasField("done"):
                got["ends"].append((m.done.finish_reason, m.done.seed, m.done.usage.prompt_tokens, m.done.usage.completion_tokens))
        assert len(self.ids) == 1, self.ids
        return choices


CHAT = {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content="Tell me about rivers.")]), "max_tokens": 100, "temperature": 1, "n": 2,
        "seed": 11, "top_logprobs": 2, "min_tokens": 100}
TEXT = {"text": prose(40, 5), "max_tokens": 90, "temperature": 1, "seed": 3, "ignore_eos": True, "stop": ["qqqq", "zzzzz"],
        "logit_bias": {11: 1.5, 28: -2.0, 30: -1.0}}
LONG = {**TEXT, "max_tokens": 4000}


class ResumeGrpc(unittest.TestCase):
    def test_connection_lost(self):
        with Cluster("--resume-ms", 3000, workers=2) as c:
            rpc = Rpc(c.grpc)
            for fields in (CHAT, TEXT):
                want = Reader(c, "undisturbed", fields).finish().answer()
                self.assertEqual({e[0] for v in want.values() for e in v["ends"]}, {pb.FINISH_REASON_LENGTH})
                # as it is without a key
                plain = list(rpc.generate(**fields))
                self.assertEqual({m.place for m in plain}, {""})
                for i, choice in want.items():
                    self.assertEqual([t for m in plain if m.index == i for t in m.token_ids], choice["ids"])
                    self.assertEqual("".join(m.text for m in plain if m.index == i), choice["text"])
                reader = Reader(c, "b", fields)
                self.assertEqual(reader.finish(35).answer(), want)
                # behind the last place nothing is left but the end
                reader.told, reader.done = [], False
                reader.finish()
                self.assertEqual(reader.told, [])

            # a prompt that is echoed and scored; a seed that nobody named
            scored = {**TEXT, "max_tokens": 24, "score": True, "echo": True}
            self.assertEqual(Reader(c, "s", scored).finish(3).answer(), Reader(c, "t", scored).finish().answer())
            drawn = {k: v for k, v in TEXT.items() if k != "seed"}
            self.assertEqual(Reader(c, "d", drawn).finish(40).answer(), Reader(c, "d", drawn).finish().answer())

            reader = Reader(c, "gone", LONG)
            read_after_a_while(self, c, reader)
            # another request may not have its key; a second call takes the answer from the first
            other = Reader(c, "gone", {**LONG, "seed": 4})
            other.open()
            self.assertEqual(other.read(1), Code.ALREADY_EXISTS)
            other.leave()
            second = Reader(c, "gone", LONG)
            second.place = reader.place
            second.open()
            self.assertIsNone(second.read(5))
            self.assertEqual(reader.read(1 << 30), Code.ABORTED)
            reader.leave()
            second.leave()

            # places of another answer, and what is none
            for bad in ("1", second.place + "x", "gen-0/1.1", second.place, second.place.replace("/", "/-,-,-,"), "x" * 5000, "\u00e4"):
                other = Reader(c, "other", {**TEXT, "max_tokens": 5})
                other.place = bad
                other.open()
                self.assertEqual(other.read(1), Code.INVALID_ARGUMENT, bad)
                self.assertIn("resume_from", other.call.details())
                other.leave()
            beyond = Reader(c, "beyond", {**TEXT, "max_tokens": 5}).finish()
            beyond.place = beyond.place.split("/")[0] + "/900.90000"
            beyond.open()
            self.assertEqual(beyond.read(1), Code.INVALID_ARGUMENT)
            beyond.leave()
            c.check_quiet()  # those that were left above end when nobody has come for them in time
            # it can be ended for good: nothing goes on, and another who asks for it begins where it was
            reader = Reader(c, "left", LONG)
            reader.open()
            self.assertIsNone(reader.read(3))
            reader.leave()
            self.assertEqual(list(rpc.generate(**LONG, idempotency_key="left", abandon=True)), [])
            c.check_quiet(2)
            for fields in ({"abandon": True}, {"abandon": True, "resume_from": "x"}):
                with self.assertRaises(grpc.RpcError) as e:
                    list(rpc.generate(**LONG, **fields))
                self.assertEqual(e.exception.code(), Code.INVALID_ARGUMENT)
            # a job has a key of its own
            with self.assertRaises(grpc.RpcError) as e:
                rpc.inference.SubmitJob(pb.SubmitJobRequest(generate=pb.GenerateRequest(text="x", max_tokens=1, idempotency_key="k")), timeout=10)
            self.assertEqual(e.exception.code(), Code.INVALID_ARGUMENT)
            self.assertIn("idempotency_key", e.exception.details())
            rpc.close()
            c.check_quiet()

    def test_coordinator_killed(self):
        with Cluster("--spread-min-tokens", 300, workers=2) as c:
            kinds = (CHAT, TEXT)
            want = [Reader(c, "undisturbed", fields).finish().answer() for fields in kinds]
            readers = [Reader(c, f"k{i}{j}", kinds[j]) for i in range(2) for j in range(2)]
            read_through_kills(self, c, readers, (10, 45))
            for i, r in enumerate(readers):
                self.assertEqual(r.answer(), want[i % 2])
            c.check_quiet()
            no_prompt_on_disk(self, c, b"rivers")


if __name__ == "__main__":
    cluster.main()
