"""Published faults of comparable servers, their inputs tried here: each is refused clearly or answered within bounds, and the cluster lives on with nothing leaked.

CVEs whose way in has no counterpart (decoders of images and videos, pickles of Python, remote code of models) are tried as what a client can send of them: fields,
addresses and bytes that must be refused, fetched by nobody, and executed by nobody.
"""

import base64
import os
import pickle
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import cluster
from cluster import LONGSPAN, Cluster
from gguf_file import ARRAY, F32, STRING, U32, key, text
from rpc import Rpc, grpc
from test_hostile import listening, say

TEMPLATE = os.path.join(cluster.ROOT, "tests/golden/tokenizer/templates/qwen2.5.jinja")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASK = [{"role": "user", "content": "x"}]
HUGE = [10**6, 2**31 - 1, 2**31, 2**32, 2**63 - 1]


class Canary:
    """A pickle (or a text) that makes a file when somebody executes it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Served(unittest.TestCase):
    """A cluster that each test must leave as it was."""

    flags = []

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="longspan-cves-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, True)
        cls.cluster = Cluster(*cls.flags, workers=2, model="random:tiny")
        cls.pids = cls.cluster.processes()
        cls.reference = cls.cluster.complete("One two three four", 4)[:2]
        cls.resident = cluster.resident_bytes(cls.cluster.coordinator())

    @classmethod
    def tearDownClass(cls):
        cls.cluster.check_quiet()
        cls.cluster.stop()

    def tearDown(self):
        self.assertEqual(self.cluster.processes(), self.pids)
        start = time.monotonic()
        self.assertEqual(self.cluster.complete("One two three four", 4)[:2], self.reference)
        self.assertLess(cluster.elapsed(start), 15, "an honest client waits")
        self.cluster.check_quiet()
        self.assertEqual(len(self.cluster.workers()), 2)
        self.assertLess(cluster.resident_bytes(self.cluster.coordinator()) - self.resident, 512 << 20)
        self.assertEqual(os.listdir(self.directory), [], "something was executed")

    def within(self, seconds, path, body, codes=(400,), field=None):
        """The answer must come in time (twice that, on a slow machine), with one of the codes, and name the field. -> the answer"""
        start = time.monotonic()
        code, _, answer = self.cluster.http("POST", path, body)
        self.assertLess(cluster.elapsed(start), 2 * seconds, str(body)[:200])
        self.assertIn(code, codes, (str(body)[:200], str(answer)[:300]))
        if code == 400 and field:
            self.assertEqual((answer["error"]["param"] or "").split("[")[0], field, (str(body)[:200], answer))
        return answer


class Requests(Served):
    flags = ["--chat-template", TEMPLATE]

    # ---- numbers ----

    def test_huge_counts(self):
        """CVE-2026-34756 (n), CVE-2024-8939 (best_of) of vLLM, and their like."""
        for v in HUGE + [-1, -(2**63)]:
            for path, body in ((COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": ASK})):
                fields = ["n", "max_tokens", "min_tokens"] + (["best_of", "logprobs"] if path == COMPLETIONS else ["top_logprobs", "max_completion_tokens"])
                for field in fields:
                    more = {"logprobs": True} if field == "top_logprobs" else {}
                    self.within(2, path, {**body, "max_tokens": 1, **more, field: v}, field=None if field.startswith("m") else field)
        for v in (2**63, 10**30, -(10**30)):  # no integer of 64 bits
            self.within(2, COMPLETIONS, {"prompt": "x", "n": v})
        rpc = Rpc(self.cluster.grpc)
        for field in ("n", "top_logprobs", "min_tokens", "max_tokens"):
            with self.assertRaises(grpc.RpcError) as e:
                rpc.whole(timeout=10, **{"text": "x", "max_tokens": 1, field: 2**32 - 1})
            self.assertEqual(e.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, (field, e.exception.details()))
        rpc.close()

    def test_negative_discard(self):
        """CVE-2026-21869 of llama.cpp: a negative n_discard reached memory. There is no such field; those there are know their bounds."""
        for field in ("n_discard", "n_keep", "n_probs", "n_predict", "n_cache_reuse", "id_slot"):
            self.within(2, COMPLETIONS, {"prompt": "x", field: -1}, field=field)
        for field, v in (("top_k", -2), ("seed", -1), ("min_p", -1e-9), ("top_p", -1), ("temperature", -1e308), ("repetition_penalty", 0),
                         ("repetition_penalty", -1e300), ("presence_penalty", -2.0001), ("timeout", -1), ("density", -1), ("logit_bias", {"1": -1e300}),
                         ("logit_bias", {"-1": 1}), ("logit_bias", {"4294967296": 1}), ("logit_bias", {"256": 1})):
            self.within(2, COMPLETIONS, {"prompt": "x", "max_tokens": 1, field: v}, field=field)
        for tokens in ([-1], [2**31], [2**32], [2**63 - 1], [256]):
            self.within(2, COMPLETIONS, {"prompt": tokens, "max_tokens": 1}, field="prompt")
            self.within(2, "/detokenize", {"tokens": tokens}, field="tokens")

    def test_empty_prompts(self):
        """CVE-2024-8768 of vLLM: an empty prompt ended the server."""
        for prompt in ("", [], [[]], [""]):
            self.within(5, COMPLETIONS, {"prompt": prompt, "max_tokens": 1}, field="prompt")
        for messages in ([], [{}], [{"role": "user"}]):
            self.within(5, CHAT, {"messages": messages, "max_tokens": 1}, field="messages")
        self.within(5, CHAT, {"messages": [{"role": "user", "content": ""}], "max_tokens": 1}, (200,))

    def test_penalties(self):
        """CVE-2026-44223 of vLLM: any penalty ended the engine. All of them here, at their ends, with what is made of several choices and a schema."""
        for sign in (-2, 2):
            for more in ({}, {"n": 3}, {"response_format": {"type": "json_object"}}, {"logit_bias": {str(i): sign * 50 for i in range(0, 256, 3)}}):
                self.within(20, COMPLETIONS, {"prompt": "x" * 300, "max_tokens": 16, "presence_penalty": sign, "frequency_penalty": sign,
                                              "repetition_penalty": 0.01 if sign < 0 else 100, "min_tokens": 4, "logprobs": 20, **more}, (200,))

    # ---- schemas and patterns ----

    def schema(self, schema, codes=(400,), seconds=10):
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
        self.within(seconds, COMPLETIONS, {"prompt": "x", "max_tokens": 4, "response_format": wanted}, codes, "response_format")
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": schema}, "required": ["x"]}}}
        # within a tool "#" is the whole of the parameters: of some the references lead elsewhere
        self.within(seconds, CHAT, {"messages": ASK, "max_tokens": 4, "tools": [tool], "tool_choice": "required"}, (*codes, 400), "tools")

    def test_malformed_schemas(self):
        """CVE-2025-48942 (schemas), CVE-2025-48943 (patterns), CVE-2025-48944 (type and pattern of tools) of vLLM: each ended the server."""
        for body in ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}],
                      "tool_choice": "required"}, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}}):
            self.within(10, CHAT, {"messages": ASK, "max_tokens": 4, **body}, (200,))  # such are taken
        for kind in ("something", "", ["string", "nothing"], [], 5, None, {}, {"type": "string"}):
            self.schema({"type": kind})
        for pattern in ("[", "(", ")", "*", "+a", "a{2,1}", "\\", "[z-a]", "a{99999999999}", "a{-1}", "(?<n>a", "(?P<n>a)", "\\p{L}", "[[:alpha:", "{", "a**",
                        "(?=a)", "\\1", "(?#", "[\\d-z]{1,", 5, None, {}):
            self.schema({"type": "string", "pattern": pattern})
        for bad in ({"type": "object", "properties": []}, {"type": "object", "properties": {"a": 5}}, {"type": "object", "required": "a"},
                    {"enum": []}, {"enum": "a"}, {"type": "array", "items": 7}, {"type": "array", "minItems": -1}, {"type": "array", "minItems": 3, "maxItems": 2},
                    {"type": "string", "maxLength": 2**63 - 1}, {"type": "array", "items": {}, "maxItems": 2**40}, {"anyOf": []}, {"oneOf": {}}):
            self.schema(bad)

    def test_recursive_schemas(self):
        """CVE-2025-57809 of XGrammar: rules that lead to themselves. Here references, and schemas nested ever deeper."""
        for bad in ({"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"anyOf": [{"$ref": "#"}]}, {"allOf": [{"$ref": "#"}]},
                    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
                    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}):
            self.schema(bad)
        deep = {"type": "integer"}
        for _ in range(500):
            deep = {"type": "array", "items": deep}
        self.schema(deep)
        for name in (b'{"anyOf":[', b'{"items":', b'{"properties":{"a":'):
            body = b'{"prompt":"x","response_format":{"type":"json_schema","json_schema":{"name":"a","schema":' + name * 100000
            self.within(10, COMPLETIONS, body)

    def test_pattern_bombs(self):
        """CVE-2025-48887 of vLLM: a pattern that backtracks for ever. Patterns become automata here: within their limits, or refused."""
        for pattern in ("^(a+)+$", "^(a|a)*b$", "^(a|aa)+$", "^((a{1,100}){1,100}){1,100}$", "^(.*)*$", "^(a?){5000}a{5000}$", "^(x+x+)+y$", "^" + "(" * 5000 + "a" + ")" * 5000 + "$",
                        "^(" + "|".join("a" * i for i in range(1, 300)) + ")*$", "(a|b)*a" + "(a|b)" * 30, "^([a-z]{1,900}[0-9]{1,900}){1,9}$"):
            self.schema({"type": "string", "pattern": pattern}, (200, 400))

    def test_ever_new_schemas(self):
        """CVE-2025-29770 of vLLM: each new schema stayed in a cache without bound."""
        coordinator = self.cluster.coordinator()
        before = 0
        for i in range(240):
            schema = {"type": "object", "properties": {f"k{i}_{j}": {"type": "string", "maxLength": 50 + i} for j in range(20)}, "additionalProperties": False}
            wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            self.within(10, COMPLETIONS, {"prompt": "x", "max_tokens": 2, "response_format": wanted}, (200,))
            if i == 40:
                before = cluster.resident_bytes(coordinator)
        self.assertLess(cluster.resident_bytes(coordinator) - before, 64 << 20)

    # ---- templates ----

    def test_template_of_the_request(self):
        """CVE-2025-61620 (chat_template), CVE-2025-62426 (chat_template_kwargs that reach the renderer's own arguments) of vLLM."""
        bomb = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
        for path in (CHAT, "/tokenize"):
            self.within(2, path, {"messages": ASK, "chat_template": bomb}, field="chat_template")
        plain = self.cluster.post("/tokenize", {"messages": ASK})["tokens"]
        for kwargs in ({"tokenize": True}, {"chat_template": bomb}, {"return_tensors": "pt", "return_dict": True, "padding": "max_length", "max_length": 2**40},
                       {"continue_final_message": True}, {"conversation": [], "tools": None}, {"__class__": 1, "self": 2}):
            got = self.within(2, "/tokenize", {"messages": ASK, "chat_template_kwargs": kwargs}, (200, 400), "chat_template_kwargs")
            self.assertEqual(got.get("tokens", plain), plain, kwargs)
        self.within(10, CHAT, b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":' + b'{"a":' * 100000)

    def test_repeated_marks(self):
        """CVE-2025-46560 (marks of media in plain text, replaced in quadratic time), CVE-2026-44222 (taken for media that is not there) of vLLM."""
        for mark in ("<|audio_1|><|image_1|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>", "<image>", "<|endoftext|>", "[IMG]"):
            self.within(10, CHAT, {"messages": [{"role": "user", "content": mark}], "max_tokens": 2}, (200,))
            self.within(10, CHAT, {"messages": [{"role": "user", "content": mark * 200000}], "max_tokens": 2}, field="messages")

    # ---- addresses and media ----

    def test_addresses_are_not_fetched(self):
        """CVE-2025-6242, CVE-2026-24779 (any address), CVE-2026-22773, CVE-2026-5497 (images, frames) of vLLM; CVE-2026-0599 of TGI (addresses in Markdown)."""
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.settimeout(0.5)
            here = f"127.0.0.1:{trap.getsockname()[1]}"
            dot = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()
            for url in (f"http://{here}/a.png", f"http://example.org\\@{here}/", "file:///etc/passwd", f"data:image/png;base64,{dot}",
                        "data:video/jpeg;base64," + ",".join([dot] * 5000)):
                for kind, value in (("image_url", {"url": url}), ("image_url", url), ("video_url", {"url": url}), ("audio_url", {"url": url}),
                                    ("input_audio", {"data": dot, "format": "wav"}), ("input_image", url), ("file", {"file_data": url})):
                    parts = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: value}]
                    answer = self.within(5, CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}, field="messages")
                    self.assertNotIn("root:", str(answer))
            for field in ("multi_modal_data", "mm_processor_kwargs", "image_data", "media_io_kwargs", "images"):
                self.within(5, CHAT, {"messages": ASK, field: {"image": f"http://{here}/"}}, field=field)
            self.within(5, COMPLETIONS, {"prompt": f"![](http://{here}/a.png) <img src=http://{here}/b>", "max_tokens": 2}, (200,))
            with self.assertRaises(TimeoutError):
                trap.accept()

    def test_embeddings(self):
        """CVE-2025-62164 of vLLM: tensors in a request, unpickled."""
        data = base64.b64encode(pickle.dumps(Canary(os.path.join(self.directory, "embedding")))).decode()
        for field in ("prompt_embeds", "input_embeds", "kv_transfer_params", "custom_logit_processor", "logits_processors", "lora_path", "structured_outputs", "guided_regex",
                      "guided_grammar", "grammar", "guided_decoding_backend", "vllm_xargs"):
            self.within(2, COMPLETIONS, {"prompt": "x", field: data}, field=field)

    def test_paths(self):
        """CVE-2025-10164 of SGLang (weights by HTTP), CVE-2025-23319 of Triton (shared memory by name), CVE-2026-7482 of Ollama (models by HTTP), routes of vLLM without a key."""
        for path in ("/update_weights_from_tensor", "/update_weights_from_disk", "/release_memory_occupation", "/v1/load_lora_adapter", "/collective_rpc", "/invocations",
                     "/v1/invocations", "/pause", "/reset_prefix_cache", "/v1/rerank", "/api/create", "/api/pull", "/api/blobs/sha256:" + "0" * 64,
                     "/v2/systemsharedmemory/region/triton_python_backend_shm_region_0/register", "/v2/repository/index", "/slots/0?action=save", "/props", "/lora-adapters"):
            self.assertEqual(self.cluster.http("POST", path, {"name": "x", "key": "/etc/passwd"})[0], 404, path)

    def test_traversal(self):
        """CVE-2024-37032 of Ollama: files by a path that climbs."""
        for path in ("/../../../../etc/passwd", "/live.js/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd",
                     "/v1/models/..%2f..%2f..%2fetc%2fpasswd", "/v1/models/../../etc/passwd", "/live.js%00.html", "http://169.254.169.254/latest/meta-data/", "/\\..\\..\\etc\\passwd",
                     "*", "etc/passwd"):
            heard = say(self.cluster.port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), 5)
            self.assertRegex(heard[:16], rb"^HTTP/1\.[01] 40[045] ", path)
            self.assertNotIn(b"root:", heard, path)

    def test_answers_tell_nothing(self):
        """CVE-2025-23320 of Triton (a name of shared memory), CVE-2026-22778 of vLLM (an address of the heap) in what a client is told of its fault."""
        for path, body in ((COMPLETIONS, {"prompt": "x", "n": 10**9}), (COMPLETIONS, b"{"), (COMPLETIONS, {"prompt": [2**40]}), (CHAT, {"messages": [{"role": "x" * 10**6, "content": {}}]}),
                           (CHAT, {"messages": ASK, "tools": [{}]}), (COMPLETIONS, {"prompt": "x" * 10**6}), (COMPLETIONS, {"prompt": "x", "model": "y" * 10**6}),
                           ("/detokenize", {"tokens": [10**9]}), (COMPLETIONS, {"prompt": "x", "y" * 10**6: 1})):
            answer = self.within(5, path, body, (400, 404))
            self.assertLess(len(answer["error"]["message"]), 2000)
            self.assertNotRegex(answer["error"]["message"], r"0x[0-9a-f]{6}|/dev/shm|/tmp|/home|\.[ch]:\d")

    # ---- bytes ----

    def test_large_headers(self):
        """CVE-2025-48956 of vLLM: one request with a header without end."""
        coordinator = self.cluster.coordinator()
        before = cluster.resident_bytes(coordinator)
        for start in (b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"GET /", b"GET /health HTTP/1.1\r\nHost: x\r\n"):
            piece = (b"Y: z\r\n" if start.endswith(b"\n") else b"y") * (1 << 16)
            with socket.create_connection(("127.0.0.1", self.cluster.port), timeout=20) as s:
                try:
                    s.sendall(start)
                    for _ in range(1000):
                        s.sendall(piece)
                    self.fail("all of it was taken")
                except OSError:
                    pass
        self.assertLess(cluster.resident_bytes(coordinator) - before, 16 << 20)

    def test_small_chunks(self):
        """CVE-2025-23310, CVE-2025-23311 of Triton: a body in very many chunks. CVE-2025-33201: one over any limit."""
        body = b'{"prompt":"x","max_tokens":1' + b" " * 400000 + b"}"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        heard = say(self.cluster.port, head + b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n", 30)
        self.assertTrue(heard.startswith(b"HTTP/1.1 200 "), heard[:200])
        with socket.create_connection(("127.0.0.1", self.cluster.port), timeout=20) as s:
            piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            try:
                s.sendall(head)
                for _ in range(400):
                    s.sendall(piece)
                self.fail("all of it was taken")
            except OSError:
                pass

    def test_pickles_on_every_port(self):
        """ShadowMQ (CVE-2024-50050, CVE-2025-30165, CVE-2025-32444, CVE-2025-23254), CVE-2025-47277 of vLLM, CVE-2026-3059, CVE-2026-3060 of SGLang: pickles on sockets."""
        data = pickle.dumps(Canary(os.path.join(self.directory, "pickle")))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        ready = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
        for pid in self.pids[1:]:
            for port in listening(pid):
                for message in (data, struct.pack(">I", len(data)) + data, struct.pack("<Q", len(data)) + data, greeting + ready + b"\x00" + bytes([len(data)]) + data):
                    say(port, message, 0.05)

    def test_wild_lengths(self):
        """CVE-2024-42477, CVE-2024-42478, CVE-2024-42479 of llama.cpp's rpc-server: lengths, offsets and types from the wire. CVE-2022-33070, CVE-2022-48468 of protobuf-c."""
        wild = [0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1, 2**64 - 8]
        for pid in self.pids[1:]:
            for port in listening(pid):
                for n in wild:
                    tensor = struct.pack("<QIQ4I4I", n & 2**64 - 1, 0xFFFFFFFF, n, *[0xFFFFFFFF] * 8)
                    say(port, b"".join(bytes([command]) + struct.pack("<Q", n) + tensor for command in range(8)), 0.02)
        rpc = Rpc(self.cluster.grpc)
        port = next(p for p in listening(self.cluster.coordinator()) if p not in (self.cluster.port, int(self.cluster.grpc.rsplit(":", 1)[1])))
        control = Rpc(f"127.0.0.1:{port}")
        generate = rpc.channel.unary_stream("/longspan.v1.Inference/Generate", request_serializer=bytes, response_deserializer=bytes)
        attach = control.channel.stream_stream("/longspan.v1.Control/Attach", request_serializer=bytes, response_deserializer=bytes)
        for data in (b"\x12\xff\xff\xff\xff\x0f", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x1a\x05\x0a\xff\xff\xff\x7f", b"\xff" * 11, b"\x13", b"\x14", b"\x0b\x0c" * 50000,
                     b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", b"\x22\x04" * 100000, b"\x28" + b"\xff" * 10, b"\x00\x00", b"\xa2\x02\x03\x08\xff\xff"):
            for call in (lambda d: list(generate(d, timeout=20)), lambda d: list(attach(iter([d]), timeout=20))):
                try:
                    self.assertEqual(call(data), [])
                except grpc.RpcError as e:
                    self.assertIn(e.code(), (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED), (data[:20], e.details()))
        rpc.close()
        control.close()

    def test_frames(self):
        """HTTP/2: CVE-2023-44487 (streams opened and reset), CVE-2024-27316 (headers that never end), CVE-2019-9512 (pings), CVE-2019-9515 (settings), CVE-2019-9518 (empty frames)."""
        def frame(kind, flags, stream, payload=b""):
            return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

        def literal(name, value):
            return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value

        head = b"".join(literal(*h) for h in ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/longspan.v1.Inference/Generate"), (b":authority", b"x"),
                                              (b"content-type", b"application/grpc"), (b"te", b"trailers")))
        start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
        floods = {"reset": b"".join(frame(1, 4, i) + frame(3, 0, i, bytes(4)) for i in range(1, 40001, 2)),
                  "reset of calls": b"".join(frame(1, 4, i, head) + frame(3, 0, i, struct.pack(">I", 8)) for i in range(1, 40001, 2)),
                  "continuation": frame(1, 0, 1, head) + frame(9, 0, 1, literal(b"a", b"b" * 100) * 100) * 2000,
                  "pings": frame(6, 0, 0, bytes(8)) * 100000, "settings": frame(4, 0, 0, struct.pack(">HI", 4, 1)) * 50000,
                  "empty": frame(1, 4, 1, head) + frame(0, 0, 1) * 100000}
        grpc_port = int(self.cluster.grpc.rsplit(":", 1)[1])
        for name, flood in floods.items():
            say(grpc_port, start + flood, 0.2)
            rpc = Rpc(self.cluster.grpc)
            begun = time.monotonic()
            self.assertEqual(rpc.whole(timeout=60, text="One", max_tokens=2, temperature=0)[3].usage.completion_tokens, 2, name)
            self.assertLess(cluster.elapsed(begun), 20, name)
            rpc.close()


class Templates(Served):
    """CVE-2024-34359 of llama-cpp-python, CVE-2026-5760 of SGLang: a model whose chat template runs code; and templates that never end."""

    @classmethod
    def setUpClass(cls):
        files = tempfile.mkdtemp(prefix="longspan-cves-")
        cls.addClassCleanup(shutil.rmtree, files, True)
        target = tempfile.mkdtemp(prefix="longspan-cves-")  # where nothing may appear
        cls.addClassCleanup(shutil.rmtree, target, True)
        run = f"popen('touch {target}/x').read()"
        # a template that calls what there is none of is refused when it is loaded
        cls.refused = {"popen": "{{ cycler.__init__.__globals__.os." + run + " }}", "__subclasses__": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
                       "cycler": "{{ cycler('a').x }}", "import": "{% import 'os' as os %}", "include": "{% include '/etc/passwd' %}"}
        cls.evil = {"globals": "{{ cycler.__init__.__globals__.os }}", "classes": "{% for c in ().__class__.__base__ %}{{ c.__init__.__globals__['os'] }}{% endfor %}",
                    "text": "{{ ''.__class__.__mro__[1] }}", "attr": "{{ ''|attr('__class__')|attr('__mro__')|first }}",
                    "namespace": "{{ namespace.__init__.__globals__['__builtins__']['open'] }}",
                    "raise": "{{ raise_exception.__globals__.os.environ }}", "loop": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
                    "range": "{{ range(99999999999)|list|length }}", "double": "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
                    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "times": "{{ 'x' * 99999999999 }}", "indent": "{{ ('\n' * 99999)|indent(99999999) }}"}
        path = os.path.join(files, "evil.jinja")
        cases = "".join(f"{{% {'elif' if i else 'if'} messages[0].content == '{name}' %}}{code}" for i, (name, code) in enumerate(cls.evil.items()))
        with open(path, "w", encoding="utf-8") as f:
            f.write(cases + "{% else %}{{ messages[0].content }}{% endif %}")
        cls.flags = ["--chat-template", path]
        super().setUpClass()
        cls.directory = target

    def test_code_in_templates(self):
        self.assertTrue(self.cluster.post(CHAT, {"messages": ASK, "max_tokens": 2})["choices"])  # the template itself is one that is taken
        for name in self.evil:
            self.within(20, CHAT, {"messages": [{"role": "user", "content": name}], "max_tokens": 2})
            self.assertEqual(self.cluster.http("GET", "/health", timeout_s=5)[0], 200)


    def test_refused_when_loaded(self):
        """A template that calls what does not exist here never gets as far as a request."""
        files = tempfile.mkdtemp(prefix="longspan-cves-")
        self.addCleanup(shutil.rmtree, files, True)
        path = os.path.join(files, "evil.jinja")
        for name, code in self.refused.items():
            with open(path, "w", encoding="utf-8") as f:
                f.write("{{ messages[0].content }}" + code)
            _, err = cluster.run("up", "--workers", 1, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--state", os.path.join(files, "state"), "--model", "random:tiny",
                                 "--chat-template", path, check=1, timeout_s=60)
            self.assertRegex(err, "chat-template: line 1: .*" + name)


class Models(unittest.TestCase):
    """Published faults of readers of model files, as files."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="longspan-cves-")
        self.addCleanup(shutil.rmtree, self.directory, True)

    def refused(self, path):
        start = time.monotonic()
        done = subprocess.run(["sh", "-c", 'ulimit -v 8000000; exec "$@"', "sh", LONGSPAN, "model", path], capture_output=True, timeout=120, check=False)
        err = done.stderr.decode("utf-8", "replace")
        self.assertEqual(done.returncode, 1, (path, done.stdout[-300:], err))
        self.assertTrue(err.strip().splitlines()[-1].startswith("longspan: "), err)
        self.assertIn(os.path.basename(path), err)
        self.assertNotIn("no memory", err)  # it was refused for what it says, not for what was tried
        self.assertLess(cluster.elapsed(start), 20, path)
        return err

    def test_gguf(self):
        def gguf(n_tensors, n_keys, rest, version=3):
            return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest + bytes(4096)

        def tensor(name, dims, offset=0, kind=0, n_dims=None):
            return text(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)

        arch, huge = key("general.architecture", STRING, "llama"), 2**64 - 1
        sizes = b"".join(key(f"llama.{name}", U32, 64) for name in ("context_length", "embedding_length", "feed_forward_length"))
        sizes += key("llama.attention.head_count", U32, 4) + key("llama.attention.layer_norm_rms_epsilon", F32, 1e-5) + key("tokenizer.ggml.tokens", (ARRAY, STRING), ["a", "b"])
        end = "past the end of the file"
        cases = {  # what is wrong: what must be said of it
            "CVE-2024-39720 four bytes": ("header", b"GGUF"),
            "CVE-2024-21836 tensors": ("tensors do not fit", gguf(huge, 1, arch)),
            "CVE-2024-21836 tensors that wrap": ("tensors do not fit", gguf(2**64 // 32 + 1, 1, arch)),
            "CVE-2024-23605 keys": ("keys do not fit", gguf(0, huge, arch)),
            "CVE-2024-23605 keys that wrap": ("keys do not fit", gguf(0, 2**61 + 1, arch)),
            "CVE-2024-32878 fewer keys": ("cut off", gguf(0, 2, arch)[:60]),
            "CVE-2024-23496 length of a name": ("inside a key", gguf(0, 1, struct.pack("<Q", huge) + b"x")),
            "CVE-2024-23496 length of a text": ("key a", gguf(0, 1, text("a") + struct.pack("<IQ", STRING, huge))),
            "CVE-2024-21825 array of texts": ("key a", gguf(0, 1, text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**61))),
            "CVE-2024-21825 array of numbers": ("key a", gguf(0, 1, text("a") + struct.pack("<IIQ", ARRAY, U32, 2**62 + 1))),
            "array of arrays": ("key a", gguf(0, 1, text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 1000)),
            "type of a key": ("type 255", gguf(0, 1, text("a") + struct.pack("<II", 255, 0))),
            "CVE-2024-21802 dimensions": ("dimensions", gguf(1, 1, arch + tensor("t", [1] * 4, n_dims=2**32 - 1))),
            "CVE-2026-33298 elements": ("dimension 0", gguf(1, 1, arch + tensor("t", [2**32, 2**32]))),
            "CVE-2026-33298 bytes": ("size overflows", gguf(1, 1, arch + tensor("t", [2**62]))),
            "CVE-2026-53923 rows": (end, gguf(1, 1, arch + tensor("t", [2**32 + 256, 1], kind=12))),
            "negative rows": ("dimension 0", gguf(1, 1, arch + tensor("t", [2**63, 2]))),
            "CVE-2025-53630 sum": (end, gguf(2, 1, arch + tensor("a", [2**61 - 8]) + tensor("b", [2**61 - 8], 2**63 - 32))),
            "CVE-2026-27940 sum": (end, gguf(2, 1, arch + tensor("a", [8]) + tensor("b", [2**62 - 8], 32))),
            "CVE-2026-7482 past the end": (end, gguf(1, 1, arch + tensor("t", [2**20]))),
            "CVE-2026-7482 offset": ("offset", gguf(1, 1, arch + tensor("t", [8], 2**40))),
            "CVE-2026-7482 offset that wraps": ("offset", gguf(1, 1, arch + tensor("t", [8], 2**64 - 32))),
            "CVE-2025-0317 alignment": ("general.alignment", gguf(1, 2, arch + key("general.alignment", U32, 0) + tensor("t", [8]))),
            "alignment that is no power": ("general.alignment", gguf(1, 2, arch + key("general.alignment", U32, 2**32 - 1) + tensor("t", [8]))),
            "type of a tensor": ("type 4294967295", gguf(1, 1, arch + tensor("t", [8], kind=2**32 - 1))),
            "no layers": ("0 layers", gguf(0, 8, arch + sizes + key("llama.block_count", U32, 0))),
            "all layers": ("4294967295 layers", gguf(0, 8, arch + sizes + key("llama.block_count", U32, 2**32 - 1))),
            "CVE-2025-49847 token": ("tokenizer.ggml.tokens", gguf(0, 2, arch + text("tokenizer.ggml.tokens") + struct.pack("<IIQQ", ARRAY, STRING, 1, 2**31 + 1))),
        }
        for i, (name, (word, data)) in enumerate(cases.items()):
            with self.subTest(name):
                path = os.path.join(self.directory, f"evil-{i}.gguf")
                with open(path, "wb") as f:
                    f.write(data)
                self.assertIn(word, self.refused(path))

    def test_code_beside_weights(self):
        """CVE-2025-24357 (weights that are a pickle), CVE-2025-66448 (auto_map: code beside the configuration) of vLLM."""
        source = os.path.join(cluster.ROOT, "tests/golden/spec/toy")
        path = os.path.join(self.directory, "evil-model")
        shutil.copytree(source, path)
        canary = os.path.join(self.directory, "executed")
        config_path = os.path.join(path, "config.json")
        with open(config_path, encoding="utf-8") as f:
            config = f.read().rstrip().removesuffix("}") + ', "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}'
        with open(config_path, "w", encoding="utf-8") as f:
            f.write(config + ', "trust_remote_code": true}')
        with open(os.path.join(path, "evil.py"), "w", encoding="utf-8") as f:
            f.write(f"open({canary!r}, 'w')\n")
        self.assertIn("trust_remote_code", self.refused(path))
        with open(config_path, "w", encoding="utf-8") as f:
            f.write(config + "}")
        self.assertTrue(cluster.run("model", path, timeout_s=30)[0])  # names of code are read by nobody
        os.remove(os.path.join(path, "model.safetensors"))
        with open(os.path.join(path, "pytorch_model.bin"), "wb") as f:
            f.write(pickle.dumps(Canary(canary)))
        self.refused(path)
        self.assertFalse(os.path.exists(canary))

    def test_safetensors(self):
        """Lengths and places that lie, as in the faults of GGUF above."""
        path = os.path.join(self.directory, "evil-model")
        shutil.copytree(os.path.join(cluster.ROOT, "tests/golden/spec/toy"), path)
        weights = os.path.join(path, "model.safetensors")
        with open(weights, "rb") as f:
            data = f.read()
        n = struct.unpack("<Q", data[:8])[0]
        head, rest = data[8 : 8 + n], data[8 + n :]
        place = head[head.index(b'"data_offsets"') :]
        place = place[: place.index(b"]") + 1]
        shape = head[head.index(b'"shape"') :]
        shape = shape[: shape.index(b"]") + 1]

        def with_head(h):
            return struct.pack("<Q", len(h)) + h + rest

        for lie in (struct.pack("<Q", 2**64 - 1) + data[8:], struct.pack("<Q", 2**63) + data[8:], struct.pack("<Q", len(data)) + data[8:], data[:5], with_head(b"[" * 100000),
                    with_head(head.replace(place, b'"data_offsets":[0,18446744073709551615]', 1)), with_head(head.replace(place, b'"data_offsets":[-8,8]', 1)),
                    with_head(head.replace(place, b'"data_offsets":[64,0]', 1)), with_head(head.replace(shape, b'"shape":[4294967296,4294967296]', 1)),
                    with_head(head.replace(shape, b'"shape":[-1,-1]', 1)), data[:-1]):
            with open(weights, "wb") as f:
                f.write(lie)
            self.refused(path)


if __name__ == "__main__":
    cluster.main(needs_model=False)
