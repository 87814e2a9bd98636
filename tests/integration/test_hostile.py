"""What comes from outside and means no good: garbage on every port, bodies that are wrong, too large, too deep; broken model files."""

import concurrent.futures
import glob
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import cluster
from cluster import LONGSPAN, MODEL, Cluster, prose
from rpc import Rpc, grpc, pb

SEED = 7


def listening(pid):
    """TCP ports that the process listens on, from /proc."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as f:
            for line in f.readlines()[1:]:
                field = line.split()
                if field[3] == "0A" and field[9] in inodes:
                    ports.add(int(field[1].rsplit(":", 1)[1], 16))
    return sorted(ports)


def say(port, data, wait_s=0.2):
    """Sends bytes, hears what comes back within a moment."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        try:
            s.sendall(data)
            s.settimeout(wait_s)
            while piece := s.recv(1 << 16):
                heard += piece
        except OSError:
            pass
    return heard


class Hostile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2)
        cls.pids = cls.cluster.processes()
        cls.reference = cls.cluster.complete("One two three four", 4)[:2]

    @classmethod
    def tearDownClass(cls):
        cls.cluster.check_quiet()
        cls.cluster.stop()

    def tearDown(self):
        """Nobody died of it, and the answer is as before."""
        self.assertEqual(self.cluster.processes(), self.pids)
        self.assertEqual(self.cluster.complete("One two three four", 4)[:2], self.reference)
        self.assertEqual(len(self.cluster.workers()), 2)

    # ---- ports ----

    def test_garbage_on_every_port(self):
        r = random.Random(SEED)
        garbage = [b"", b"\0", b"\0" * 100000, r.randbytes(100), r.randbytes(200000), b"GET / HTTP/1.0\r\n\r\n", b"\r\n" * 1000,
                   b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + r.randbytes(5000),
                   b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\xff\xff\1\5\0\0\0\1" + r.randbytes(3000),
                   b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + r.randbytes(512), b"\xff" * 65536, b"A" * 300000]
        everywhere = {p: listening(p) for p in self.pids[1:]}
        self.assertEqual(len(everywhere[self.cluster.coordinator()]), 3)
        for pid, ports in everywhere.items():
            self.assertTrue(ports, cluster.command_of(pid))
            for port in ports:
                for g in garbage:
                    say(port, g, 0.03)

    def test_half_open(self):
        """Connections that say nothing, or half of something, hinder nobody."""
        held = []
        try:
            for pid in self.pids[1:]:
                for port in listening(pid):
                    for piece in (b"", b"P", b"POST /v1/completions HTTP/1.1\r\nContent-Le", b"PRI * HTTP/2.0\r\n\r\nSM"):
                        s = socket.create_connection(("127.0.0.1", port))
                        s.sendall(piece)
                        held.append(s)
            for _ in range(300):
                held.append(socket.create_connection(("127.0.0.1", self.cluster.port)))
            body = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"prompt\""
            for _ in range(50):
                s = socket.create_connection(("127.0.0.1", self.cluster.port))
                s.sendall(body)
                held.append(s)
            self.assertEqual(self.cluster.complete("One two three four", 4)[:2], self.reference)
        finally:
            for s in held:
                s.close()

    def test_control_port(self):
        """Whoever speaks gRPC to the control port without being a worker is shown out."""
        port = next(p for p in listening(self.cluster.coordinator())
                    if p not in (self.cluster.port, int(self.cluster.grpc.rsplit(":", 1)[1])))
        rpc = Rpc(f"127.0.0.1:{port}")
        attach = rpc.channel.stream_stream("/longspan.v1.Control/Attach", request_serializer=bytes, response_deserializer=bytes)
        r = random.Random(SEED)
        for data in (b"", b"\xff" * 100, r.randbytes(3000), b"\x0a\x02\x08\x63", b"\x3a\x00"):
            try:  # the client's own half-close may end the stream before the message is looked at
                self.assertEqual(list(attach(iter([data]), timeout=20)), [])
            except grpc.RpcError as e:
                self.assertIn(e.code(), (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED), e.details())
        rpc.close()

    # ---- HTTP ----

    def test_wrong_types(self):
        """Every field with a value of every wrong type: 400, and the field's name."""
        values = {"object": {}, "list": [[]], "string": "x", "fraction": 1.5, "negative": -7, "true": True}
        number, integer = {"fraction", "negative"}, {"negative"}
        fields = {"model": {"string"}, "stream": {"true"}, "stream_options": {"object"}, "max_tokens": integer, "temperature": number,
                  "top_p": number, "top_k": integer, "seed": integer, "stop": {"string"}, "ignore_eos": {"true"}, "user": {"string"},
                  "n": number, "presence_penalty": number, "frequency_penalty": number}
        tables = {"/v1/completions": ({"prompt": "x"}, {**fields, "prompt": {"string"}, "logprobs": integer, "echo": {"true"},
                                                        "best_of": number, "logit_bias": {"object"}}),
                  "/v1/chat/completions": ({"messages": [{"role": "user", "content": "x"}]},
                                           {**fields, "messages": set(), "logprobs": {"true"}, "top_logprobs": integer,
                                            "max_completion_tokens": integer, "tools": {"object"}, "response_format": set()}),
                  "/tokenize": ({"prompt": "x"}, {"prompt": {"string", "list"}, "model": {"string"}, "add_special_tokens": {"true"}}),
                  "/detokenize": ({"tokens": [1]}, {"tokens": set(), "model": {"string"}})}
        tried = 0
        for path, (body, table) in tables.items():
            for field, right in table.items():
                for kind in values.keys() - right:
                    code, _, answer = self.cluster.http("POST", path, {**body, field: values[kind]})
                    self.assertEqual(code, 400, (path, field, kind, answer))
                    self.assertEqual((code, answer["error"]["param"].split("[")[0]), (400, field), (path, kind, answer))
                    tried += 1
            for bad in ([], "x", 1, None, [body]):
                self.cluster.refused(path, json.dumps(bad), 400)
            self.cluster.refused(path, {**body, "frobnicate": 1}, 400, "frobnicate")
            self.cluster.refused(path, {}, 400)
        self.assertGreater(tried, 150)
        for bad in ([1], [{}], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}], [{"role": "user", "content": 1}],
                    [{"role": "user", "content": ["x"]}], [{"role": "user", "content": [{"type": "text", "text": 5}]}], [],
                    [{"role": "user", "content": "x", "tool_calls": []}]):
            code, _, answer = self.cluster.http("POST", "/v1/chat/completions", {"messages": bad})
            self.assertEqual((code, answer["error"]["param"][:8]), (400, "messages"), bad)

    def test_not_json(self):
        for body in (b"", b"{", b"{}x", b"nope", b"{\"prompt\": \"\xff\xfe\"}", b"{\"prompt\": \"\xed\xa0\x80\"}", b"{\"prompt\": \"\\ud800\"}",
                     b"{\"prompt\": \"\xc0\x80\"}", b"{\"prompt\": \"a\nb\"}", b"\xef\xbb\xbf{\"prompt\": \"x\"}", b"{'prompt': 'x'}",
                     b"{\"prompt\": \"x\", \"prompt\": \"y\"}", b"{\"prompt\": \"x\", \"seed\": 99999999999999999999}",
                     b"{\"prompt\": \"x\", \"temperature\": 1e999}", b"{\"prompt\": \"x\", \"temperature\": NaN}", b"\0" * 50,
                     b"[" * 200000, b"{\"a\":" * 100000, b"{\"prompt\": " + b"[" * 100000 + b"]" * 100000 + b"}"):
            for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
                code, _, answer = self.cluster.http("POST", path, body)
                self.assertEqual(code, 400, (path, body[:60], answer))
                self.assertTrue(answer["error"]["message"])

    def test_large_prompts(self):
        """10 MB of all sorts: refused for its length, at once."""
        n = 10 << 20
        for text in (prose(20000, 1) * 8, "a" * n, " " * n, "\n" * n, "🙂" * (n // 4), "ab" * (n // 2), "1" * n, "日" * (n // 3), "\t x" * (n // 3)):
            start = time.monotonic()
            self.cluster.refused("/v1/completions", {"prompt": text, "max_tokens": 1}, 400, "prompt", "context_length_exceeded")
            self.assertLess(cluster.elapsed(start), 30, text[:10])
        self.cluster.refused("/v1/chat/completions", {"messages": [{"role": "user", "content": prose(20000, 1) * 8}]}, 400, "messages",
                             "context_length_exceeded")
        self.cluster.refused("/v1/completions", {"prompt": [5] * (1 << 20)}, 400, "prompt", "context_length_exceeded")
        self.cluster.refused("/v1/completions", {"prompt": ["a", *["b"] * 100000]}, 400, "prompt")
        rpc = Rpc(self.cluster.grpc)
        with self.assertRaises(grpc.RpcError) as e:
            list(rpc.generate(text=prose(20000, 1) * 8, max_tokens=1))
        self.assertEqual(e.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        with self.assertRaises(grpc.RpcError) as e:
            list(rpc.generate(text="x" * (80 << 20), max_tokens=1))
        self.assertEqual(e.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        with self.assertRaises(grpc.RpcError) as e:
            list(rpc.generate(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="x")] * 300000), max_tokens=1))
        self.assertEqual(e.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        rpc.close()

    def test_body_over_the_limit(self):
        self.assertEqual(self.cluster.http("POST", "/v1/completions", b"{" + b" " * (65 << 20))[0], 413)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n".encode()
        self.assertNotIn(b" 200 ", say(self.cluster.port, head + b"{" * 1000))

    def test_large_prompt_while_others_stream(self):
        """While 10 MB are being looked at, tokens of another go on coming."""
        s = self.cluster.stream("/v1/completions", {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True})
        events = iter(s)
        next(events)
        t = threading.Thread(target=self.cluster.refused, args=("/v1/completions", {"prompt": "ab " * (3 << 20)}, 400))
        gaps, last = [], time.monotonic()
        t.start()
        while t.is_alive():
            next(events)
            gaps.append(cluster.elapsed(last))
            last = time.monotonic()
        s.abort()
        self.assertLess(max(gaps), 5)

    def test_framing(self):
        """Requests on whose end two readers might disagree are refused, and the connection is closed."""
        body = b'{"prompt":"x","max_tokens":1}'
        n = len(body)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        chunked = b"Transfer-Encoding: chunked\r\n"
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (n, body)
        cases = [(b"Content-Length: %d\r\n%s\r\n" % (n, chunked) + chunks, b"400"),
                 (b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (n, n + 1) + body, b"400"),
                 (b"Content-Length: +%d\r\n\r\n" % n + body, b"400"), (b"Content-Length: -1\r\n\r\n" + body, b"400"),
                 (b"Content-Length: 0x1d\r\n\r\n" + body, b"400"), (b"Transfer-Encoding: gzip\r\n\r\n" + body, b"400"),
                 (b"Content-Length : %d\r\n\r\n" % n + body, b"400"), (b"Host: y\r\nContent-Length: %d\r\n\r\n" % n + body, b"400"),
                 (chunked + b"\r\n" + b"zz\r\n" + body, b"4"), (chunked + b"\r\n" + b"ffffffffffffffff\r\n" + body, b"4"),
                 (b"X: " + b"y" * 200000 + b"\r\n\r\n", b"4"), (b"".join(b"X%d: y\r\n" % i for i in range(20000)) + b"\r\n", b"4")]
        for case, want in cases:
            line = say(self.cluster.port, head + case, 10).split(b"\r\n")[0]
            if line:  # or it was closed without a word
                self.assertTrue(line.startswith(b"HTTP/1.1 " + want) or line.startswith(b"HTTP/1.0 " + want), (case[:80], line))
            elif want == b"400":
                self.fail(f"no answer to {case[:80]!r}")
        answer = say(self.cluster.port, head + chunked + b"Connection: close\r\n\r\n" + chunks, 20)
        self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer[:200])
        self.assertTrue(say(self.cluster.port, b"GET /health HTTP/1.1\r\n\r\n", 10).startswith(b"HTTP/1.1 400"))  # no Host
        self.assertTrue(say(self.cluster.port, b"GET /" + b"x" * 200000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 10)[:12] in
                        (b"", b"HTTP/1.1 400", b"HTTP/1.1 414", b"HTTP/1.1 431"))

    def test_many_at_once(self):
        """More requests than there are places: some wait, none hangs, and what is refused is refused with 429."""
        def one(i):
            return self.cluster.http("POST", "/v1/completions", {"prompt": f"Number {i}", "max_tokens": 2})[0]

        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            codes = list(pool.map(one, range(200)))
        self.assertLessEqual(set(codes), {200, 429})
        self.assertGreater(codes.count(200), 100)


class Models(unittest.TestCase):
    """Mutants of the default model's file: a clear error or, where the bit decides nothing, an answer; never a crash."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="longspan-test-")
        cls.original = glob.glob(os.path.join(MODEL, "*.gguf"))[0]
        cls.size = os.path.getsize(cls.original)
        cls.path = os.path.join(cls.directory, "mutant.gguf")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.directory)

    def look(self, *command):
        done = subprocess.run([LONGSPAN, *command], capture_output=True, timeout=60, cwd=self.directory)
        err = done.stderr.decode("utf-8", "replace")
        self.assertIn(done.returncode, (0, 1), f"{command}: {err}")
        if done.returncode:
            last = err.strip().splitlines()[-1]
            self.assertTrue(last.startswith("longspan: "), err)
            self.assertGreater(len(last), 20, err)
            self.assertNotIn("Sanitizer", err)
        return done.returncode, err

    def test_truncated(self):
        with open(self.original, "rb") as f:
            start = f.read(4 << 20)
        r = random.Random(SEED)
        for n in [0, 1, 3, 4, 7, 8, 15, 16, 23, 24, 25, 32, 100, 1000, 10000, *(r.randrange(len(start)) for _ in range(8)), len(start)]:
            with open(self.path, "wb") as f:
                f.write(start[:n])
            code, err = self.look("model", self.path)
            self.assertEqual(code, 1, f"{n} bytes")
            self.assertIn("mutant.gguf", err)
        shutil.copyfile(self.original, self.path)
        os.truncate(self.path, self.size - 1)
        for command in (["model", self.path], ["generate", "--local", "--model", self.path, "--prompt", "x"]):
            code, err = self.look(*command)
            self.assertEqual(code, 1)
            self.assertIn("mutant.gguf", err)

    def flipped(self, places):
        with open(self.path, "r+b") as f:
            old = []
            for at, bit in places:
                f.seek(at)
                byte = f.read(1)[0]
                old.append((at, byte))
                f.seek(at)
                f.write(bytes([byte ^ (1 << bit)]))
        return old

    def restore(self, old):
        with open(self.path, "r+b") as f:
            for at, byte in reversed(old):
                f.seek(at)
                f.write(bytes([byte]))

    def test_flipped(self):
        shutil.copyfile(self.original, self.path)
        r = random.Random(SEED)
        refused = []
        header = [(r.randrange(2000), r.randrange(8)) for _ in range(30)]  # keys, counts, types
        later = [(r.randrange(4 << 20), r.randrange(8)) for _ in range(20)]  # vocabulary, merges, tensors' places
        for place in header + later:
            old = self.flipped([place])
            code, err = self.look("model", self.path)
            if code:
                refused.append(place)
                self.assertIn("mutant.gguf", err)
            self.restore(old)
        self.assertGreater(len(refused), 12)
        for place in refused[:2]:
            old = self.flipped([place])
            self.assertEqual(self.look("generate", "--local", "--model", self.path, "--prompt", "x")[0], 1)
            self.restore(old)
        # weights: they decide the answer, perhaps one that is not finite
        for _ in range(3):
            old = self.flipped([(r.randrange(4 << 20, self.size), r.randrange(8)) for _ in range(20000)])
            self.look("generate", "--local", "--workers", "1", "--model", self.path, "--prompt", "Why?", "--max-tokens", "4")
            self.restore(old)
        code, _ = self.look("generate", "--local", "--workers", "1", "--model", self.path, "--prompt", "Why?", "--max-tokens", "4")
        self.assertEqual(code, 0)


if __name__ == "__main__":
    cluster.main()
