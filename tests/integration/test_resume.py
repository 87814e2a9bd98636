"""Streams with an Idempotency-Key, taken up again by Last-Event-ID: nothing is lost and nothing told twice, whether the connection was lost or the coordinator killed."""

import http.client
import json
import time
import unittest

import cluster
from cluster import Cluster, prose
from readers import no_prompt_on_disk, read_after_a_while, read_through_kills


class Reader:
    """A client that counts on nothing: it reads events until told to stop, or until the stream breaks, and comes back with the last id it saw."""

    def __init__(self, cluster, path, body, key):
        self.cluster, self.path, self.key = cluster, path, key
        self.body = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        self.told, self.last_id, self.done, self.connection = [], None, False, None

    def open(self):
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.key}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        self.connection = self.cluster.connect(60)
        self.connection.request("POST", self.path, self.body, headers)
        self.response = self.connection.getresponse()
        return self.response.status

    def read(self, events):
        """-> whether it was not cut off"""
        try:
            event_id = None
            for line in self.response:
                if line.startswith(b"id: "):
                    event_id = line[4:].strip().decode()
                elif line == b"data: [DONE]\n":
                    self.last_id, self.done = event_id, True
                    return True
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return False
                    self.last_id = event_id
                    self.told.append(event)
                    events -= 1
                    if not events:
                        return True
        except (OSError, http.client.HTTPException):
            pass
        return False

    def leave(self):
        self.response.close()
        self.connection.close()

    def finish(self, at_once=1 << 30, timeout_s=120):
        """Reads to the end, coming back as often as it takes; leaves by itself after so many events each time."""
        until = time.monotonic() + timeout_s
        while not self.done:
            assert time.monotonic() < until, "the stream does not end"
            try:
                code = self.open()
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
                continue
            if code == 200:
                self.read(at_once)
            else:
                assert code == 503, (code, self.response.read())
                time.sleep(0.1)
            self.leave()
        return self

    def answer(self):
        """Everything that was told, put together: by choice (role, text, log-probabilities, reasons), and usage."""
        choices, usage = {}, []
        for e in self.told:
            for c in e["choices"]:
                got = choices.setdefault(c["index"], {"roles": 0, "text": "", "logprobs": [], "reasons": [], "calls": ""})
                delta = c.get("delta", {})
                got["roles"] += "role" in delta
                got["text"] += c.get("text", "") or delta.get("content") or ""
                for call in delta.get("tool_calls", ()):
                    got["calls"] += json.dumps([call["index"], call["function"].get("name")]) + call["function"].get("arguments", "")
                if c["logprobs"]:
                    got["logprobs"] += c["logprobs"].get("content") or list(zip(*[c["logprobs"][k] for k in sorted(c["logprobs"])]))
                got["reasons"] += [c["finish_reason"]] if c["finish_reason"] else []
            if e.get("usage"):
                usage.append((e["usage"]["prompt_tokens"], e["usage"]["completion_tokens"]))
        return choices, usage


CHAT = {"messages": [{"role": "user", "content": "Tell me about rivers."}], "max_tokens": 160, "temperature": 1, "n": 2, "seed": 11,
        "logprobs": True, "top_logprobs": 2, "min_tokens": 160}
TEXT = {"prompt": prose(40, 5), "max_tokens": 120, "temperature": 1, "seed": 3, "logprobs": 1, "echo": False, "ignore_eos": True,
        "stop": ["qqqq", "zzzzz"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 60}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"]}}}


class Resume(unittest.TestCase):
    def whole(self, c, path, body):
        """Undisturbed, without a key."""
        return Reader(c, path, body, "undisturbed").finish().answer()

    def test_connection_lost(self):
        with Cluster("--resume-ms", 3000, workers=2) as c:
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
                want = self.whole(c, path, body)
                self.assertEqual({tuple(v["reasons"]) for v in want[0].values()}, {("length",)})
                reader = Reader(c, path, body, "b")
                self.assertEqual(reader.finish(40).answer(), want)
                # from the last event on nothing is left but the end
                reader.told, reader.done = [], False
                reader.finish()
                self.assertEqual(reader.told, [])
                # the same request again is the same answer
                self.assertEqual(Reader(c, path, body, "b").finish().answer(), want)

            short = {**TEXT, "max_tokens": 24, "echo": True, "logprobs": None}
            self.assertEqual(Reader(c, "/v1/completions", short, "a").finish(3).answer(), self.whole(c, "/v1/completions", short))

            # calls of tools, in pieces
            body = {"messages": [{"role": "user", "content": "Weather in Rome?"}], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 80,
                    "temperature": 0}
            template = c.http("POST", "/v1/chat/completions", body)[0]
            if template == 200:
                self.assertEqual(Reader(c, "/v1/chat/completions", body, "t").finish(3).answer(), self.whole(c, "/v1/chat/completions", body))

            reader = Reader(c, "/v1/completions", {**TEXT, "max_tokens": 4000}, "gone")
            read_after_a_while(self, c, reader)
            # a second connection takes the stream from the first
            second = Reader(c, "/v1/completions", {**TEXT, "max_tokens": 4000}, "gone")
            second.last_id = reader.last_id
            second.open()
            self.assertTrue(second.read(5))
            self.assertFalse(reader.read(1 << 30))
            second.leave()

            # ids of another stream, and what is none
            for bad in ("1", second.last_id + "x", "cmpl-0/1.1", second.last_id.replace("/", "/-,-,-,"), "x" * 5000):
                other = Reader(c, "/v1/completions", {**TEXT, "max_tokens": 5}, "other")
                other.last_id = bad
                self.assertEqual(other.open(), 400, bad)
                self.assertEqual(json.loads(other.response.read())["error"]["param"], "Last-Event-ID")
                other.leave()
            beyond = Reader(c, "/v1/completions", {**TEXT, "max_tokens": 5}, "beyond")
            beyond.finish()
            beyond.done, beyond.last_id = False, beyond.last_id.split("/")[0] + "/900.90000"
            self.assertEqual(beyond.open(), 400)
            beyond.leave()
            c.check_quiet()

    def test_coordinator_killed(self):
        with Cluster("--spread-min-tokens", 300, workers=2) as c:
            want = {path: self.whole(c, path, body) for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT))}
            readers = [Reader(c, path, body, f"k{i}") for i in range(2) for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT))]
            read_through_kills(self, c, readers, (10, 60))
            for r in readers:
                self.assertEqual(r.answer(), want[r.path])
            c.check_quiet()
            no_prompt_on_disk(self, c, b"rivers")


if __name__ == "__main__":
    cluster.main()
