"""Choices, edits of logits and JSON by schema, through the `openai` client; models of random weights say it, so only the grammar keeps it in shape."""

import datetime
import ipaddress
import json
import os
import random
import re
import threading
import time
import unittest
import uuid

import cluster
from cluster import Cluster

openai = cluster.need_module("openai")

NAMES = ["a", "b", "name", "kind"]


def draw_schema(r, depth=0):
    if r.random() < 0.25:
        low = r.randrange(-500, 500)
        return r.choice([{"type": "integer", "minimum": low, "exclusiveMaximum": low + r.randrange(1, 2000)},
                         {"type": "string", "pattern": "^[A-F]{2,4}(-[0-9]{1,3})?$"},
                         {"type": "string", "format": r.choice(["date", "date-time", "uuid", "ipv4"])},
                         {"oneOf": [{"type": "object", "properties": {"kind": {"const": "x"}, "v": {"type": "integer"}}, "required": ["kind", "v"],
                                     "additionalProperties": False}, {"const": "nothing"}]},
                         {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 9}]}])
    kind = r.randrange(8 if depth < 3 else 4)
    if kind == 0:
        return {"type": "string", "maxLength": r.randrange(1, 9)}
    if kind == 1:
        return {"enum": r.sample(["red", "green", 12, None, True], 2)}
    if kind == 2:
        return {"type": ["integer", "null"]}
    if kind == 3:
        return {"type": "boolean", "description": "yes or no"}
    if kind == 4:
        low = r.randrange(2)
        return {"type": "array", "items": draw_schema(r, depth + 1), "minItems": low, "maxItems": low + r.randrange(3)}
    if kind == 5:
        return {"anyOf": [draw_schema(r, depth + 1), {"type": "null"}]}
    properties = {n: draw_schema(r, depth + 1) for n in NAMES if r.random() < 0.6}
    return {"type": "object", "properties": properties, "required": [n for n in properties if r.random() < 0.7], "additionalProperties": False}


def fits(schema, v):
    """What the schemas drawn here mean, said again."""
    if "anyOf" in schema:
        return any(fits(s, v) for s in schema["anyOf"])
    if "oneOf" in schema:
        return sum(fits(s, v) for s in schema["oneOf"]) == 1
    if "allOf" in schema:
        return type(v) is int and all(s.get("minimum", v) <= v <= s.get("maximum", v) for s in schema["allOf"])
    if "const" in schema:
        return v == schema["const"]
    if "enum" in schema:
        return any(type(e) is type(v) and e == v for e in schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    of = {"string": str, "boolean": bool, "integer": int, "null": type(None), "array": list, "object": dict}
    if type(v) not in [of[t] for t in types]:
        return False
    if isinstance(v, str):
        readers = {"date": datetime.date.fromisoformat, "date-time": lambda t: datetime.datetime.fromisoformat(t.replace("Z", "+00:00")),
                   "uuid": uuid.UUID, "ipv4": ipaddress.IPv4Address}
        if "format" in schema:
            readers[schema["format"]](v)
        return len(v) <= schema.get("maxLength", 99) and re.search(schema.get("pattern", ""), v) is not None
    if type(v) is int and "minimum" in schema:
        return schema["minimum"] <= v < schema["exclusiveMaximum"]
    if isinstance(v, list):
        return schema["minItems"] <= len(v) <= schema["maxItems"] and all(fits(schema["items"], x) for x in v)
    if isinstance(v, dict):
        return set(schema["required"]) <= set(v) <= set(schema["properties"]) and all(fits(schema["properties"][k], x) for k, x in v.items())
    return True


def named(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


class Structured(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2, model="random:tiny")
        cls.connect()

    @classmethod
    def connect(cls):
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.cluster.port}/v1", api_key="none", max_retries=0, timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.cluster.check_quiet()
        cls.cluster.stop()

    def complete(self, prompt="x", **more):
        return self.client.completions.create(**{"model": "default", "prompt": prompt, "max_tokens": 8, **more})

    def test_random_schemas(self):
        r = random.Random(7)
        whole = 0
        for i in range(40):
            schema = draw_schema(r)
            a = self.complete(f"schema {i}", max_tokens=900, n=2, seed=i, extra_body={"response_format": named(schema)})
            for c in a.choices:
                if c.finish_reason == "length":
                    continue
                value = json.loads(c.text)
                self.assertTrue(fits(schema, value), (schema, c.text))
                whole += 1
        self.assertGreater(whole, 60)

    def test_streamed_schema(self):
        schema = {"type": "object", "properties": {"id": {"type": "integer"}, "tag": {"enum": ["x", "y"]}}, "required": ["id", "tag"]}
        stream = self.client.chat.completions.create(model="default", messages=[{"role": "user", "content": "go"}], max_tokens=200, n=3,
                                                     seed=3, stream=True, response_format=named(schema), stream_options={"include_usage": True})
        texts, ends, usage = {}, {}, None
        for chunk in stream:
            usage = chunk.usage or usage
            for c in chunk.choices:
                texts[c.index] = texts.get(c.index, "") + (c.delta.content or "")
                ends[c.index] = c.finish_reason or ends.get(c.index)
        self.assertEqual(sorted(texts), [0, 1, 2])
        self.assertEqual(set(ends.values()), {"stop"})
        for text in texts.values():
            value = json.loads(text)
            self.assertIn(value["tag"], ["x", "y"])
            self.assertIsInstance(value["id"], int)
        whole = self.client.chat.completions.create(model="default", messages=[{"role": "user", "content": "go"}], max_tokens=200, n=3, seed=3,
                                                    response_format=named(schema))
        self.assertEqual([c.message.content for c in whole.choices], [texts[i] for i in range(3)])
        self.assertEqual(whole.usage.completion_tokens, usage.completion_tokens)

    def test_choices_are_requests_of_their_own(self):
        a = self.complete("One two three " * 30, n=4, seed=11, temperature=1, logprobs=1)
        self.assertEqual([c.index for c in a.choices], [0, 1, 2, 3])
        self.assertEqual(a.usage.completion_tokens, 32)
        for i, c in enumerate(a.choices):
            alone = self.complete("One two three " * 30, seed=11 + i, temperature=1, logprobs=1)
            self.assertEqual(alone.choices[0].text, c.text)
            self.assertEqual(alone.choices[0].logprobs.token_logprobs, c.logprobs.token_logprobs)
        self.assertGreater(len({c.text for c in a.choices}), 1)

    def test_edits(self):
        plain = self.complete(temperature=0, logprobs=0, extra_body={"ignore_eos": True})
        first = plain.choices[0].logprobs.tokens[0]
        one = self.cluster.http("POST", "/tokenize", {"prompt": first, "add_special_tokens": False})[2]["tokens"]
        self.assertEqual(len(one), 1)
        other = self.complete(temperature=0, logprobs=0, logit_bias={str(one[0]): -100}, extra_body={"ignore_eos": True})
        self.assertNotIn(first, other.choices[0].logprobs.tokens)
        only = self.complete(temperature=1, logit_bias={str(one[0]): 100}, extra_body={"ignore_eos": True})
        self.assertEqual(only.choices[0].text, first * 8)
        # each token once: a penalty that nothing outweighs, over as many steps as there are tokens
        varied = self.complete(temperature=0, logprobs=0, max_tokens=60, extra_body={"ignore_eos": True, "repetition_penalty": 100})
        self.assertGreater(len(set(varied.choices[0].logprobs.tokens)), 20)
        again = self.complete(temperature=1, seed=5, presence_penalty=1.5, frequency_penalty=0.5, max_tokens=30)
        self.assertEqual(again.choices[0].text,
                         self.complete(temperature=1, seed=5, presence_penalty=1.5, frequency_penalty=0.5, max_tokens=30).choices[0].text)
        sharp = self.complete(temperature=2, seed=5, logprobs=0, extra_body={"min_p": 1.0, "ignore_eos": True})
        self.assertEqual(sharp.choices[0].text, plain.choices[0].text)

    def test_client_features(self):
        """What the client package does around a request: raw answers, ids, streaming as a context, timeouts, retries."""
        chat = self.client.chat.completions
        words = [{"role": "user", "content": "go"}]
        raw = chat.with_raw_response.create(model="default", messages=words, max_tokens=3, parallel_tool_calls=None, user="u")
        self.assertEqual(raw.status_code, 200)
        answer = raw.parse()
        self.assertEqual((raw.headers["x-request-id"], answer._request_id), (answer.id, answer.id))
        with chat.with_streaming_response.create(model="default", messages=words, max_tokens=3, stream=True) as streamed:
            self.assertTrue(streamed.headers["content-type"].startswith("text/event-stream"))
            self.assertTrue(any(line == "data: [DONE]" for line in streamed.iter_lines()))
        with chat.create(model="default", messages=words, max_tokens=5000, stream=True, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))  # left in the middle: the connection closes, the request ends
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.3).completions.create(model="default", prompt="x", max_tokens=20000,
                                                                     extra_body={"ignore_eos": True})
        patient = self.client.with_options(max_retries=2)
        with self.assertRaises(openai.BadRequestError):  # 400 is not tried again
            patient.completions.create(model="default", prompt="x", temperature=9)
        self.assertEqual(patient.completions.create(model="default", prompt="x", max_tokens=2).usage.completion_tokens, 2)

    def test_many_clients_leave_nothing(self):
        """64 streams at once, some with schemas, penalties or several choices, a third of them left at a random moment, for LONGSPAN_TEST_SECONDS."""
        schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}}, "required": ["a", "b"]}
        seconds = float(os.environ.get("LONGSPAN_TEST_SECONDS") or 15)
        coordinator = self.cluster.coordinator()
        before = cluster.descriptors(coordinator)
        until, faults, counts = time.monotonic() + seconds, [], {"whole": 0, "left": 0, "busy": 0}
        lock = threading.Lock()

        def client(i):
            r = random.Random(f"many {i}")
            while time.monotonic() < until:
                more = [{}, {"response_format": named(schema)}, {"presence_penalty": 1, "n": 2}, {"response_format": {"type": "json_object"}}][i % 4]
                leave = r.random() < 0.35 and r.randrange(1, 20)
                what, texts, ends = "whole", {}, []
                try:
                    stream = self.client.chat.completions.create(model="default", messages=[{"role": "user", "content": f"{i} go"}], stream=True,
                                                                 max_tokens=r.choice([5, 30, 80]), seed=r.randrange(1000), **more)
                    for n, chunk in enumerate(stream):
                        for c in chunk.choices:
                            texts[c.index] = texts.get(c.index, "") + (c.delta.content or "")
                            ends += [(c.index, c.finish_reason)] if c.finish_reason else []
                        if leave and n >= leave:
                            what = "left"
                            break
                    stream.close()
                    if what == "whole" and len(ends) != more.get("n", 1):
                        faults.append(f"{i}: ends {ends}")
                    if what == "whole" and "response_format" in more and ends[0][1] == "stop":
                        json.loads(texts[0])
                except openai.RateLimitError:
                    what = "busy"
                except Exception as e:
                    faults.append(f"{i}: {e!r} {texts}")
                with lock:
                    counts[what] += 1

        threads = [threading.Thread(target=client, args=(i,)) for i in range(64)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(faults[:5], [])
        self.assertGreater(min(counts["whole"], counts["left"]), 16, counts)
        self.cluster.check_quiet()
        self.client.close()
        self.connect()
        print(f"{seconds:.0f} s: {counts}; coordinator: {cluster.resident_bytes(coordinator) >> 20} MiB resident")
        cluster.wait_for("descriptors as before", lambda: cluster.descriptors(coordinator) <= before + 4, 60)

    def test_refused(self):
        for schema, word in [({"type": "string", "pattern": "a(?=b)"}, "schema.pattern"), ({"type": "object", "properties": {"x": {"type": "string", "format": "uri"}}}, "x.format"),
                             ({"$ref": "#/$defs/none"}, "$ref")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.complete(extra_body={"response_format": named(schema)})
            self.assertEqual(e.exception.param, "response_format")
            self.assertIn(word, e.exception.message)


if __name__ == "__main__":
    cluster.main(needs_model=False)
