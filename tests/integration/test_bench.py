"""`longspan bench`: its numbers against those of an independent client on the same server, its loads, and servers that misbehave."""

import http.client
import http.server
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest
import xml.dom.minidom

import cluster
from cluster import Cluster, run


def bench(url, *flags, check=0, timeout_s=100):
    """-> everything that --json tells"""
    out, _ = run("bench", "--url", url, "--json", "-", *flags, check=check, timeout_s=timeout_s)
    return json.loads(out)


class Paced(http.server.BaseHTTPRequestHandler):
    """A server whose times are known: the first token after 60 ms, others every 20 ms."""

    protocol_version = "HTTP/1.1"
    first_s, gap_s = 0.060, 0.020
    bodies = []
    n_open = most_open = hold = 0
    met = threading.Condition()
    times = []  # of each: when it came, when its tokens went
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(json.dumps({"data": [{"id": "paced"}]}).encode())

    def answer(self, data, kind="application/json", status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Paced.met:
            Paced.bodies.append((time.monotonic(), self.path, body))
            Paced.n_open += 1
            Paced.most_open = max(Paced.most_open, Paced.n_open)
            Paced.met.notify_all()
            Paced.met.wait_for(lambda: Paced.most_open >= Paced.hold, 30)  # until so many are open at once
        try:
            self.stream(body)
        finally:
            with Paced.met:
                Paced.n_open -= 1

    def stream(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        due = time.monotonic()
        times = [due]
        Paced.times.append(times)
        for i in range(body["max_tokens"]):
            due += self.gap_s if i else self.first_s
            time.sleep(max(0, due - time.monotonic()))
            times.append(time.monotonic())
            self.chunk(b'data: {"choices": [{"text": " x", "finish_reason": null}]}\n\n')
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.chunk(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        self.chunk(b"")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        pass  # clients that are interrupted leave


class KnownTimes(unittest.TestCase):
    def setUp(self):
        Paced.bodies, Paced.most_open, Paced.hold, Paced.times = [], 0, 0, []
        self.server = Server(("127.0.0.1", 0), Paced)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def test_times(self):
        r = bench(self.url, "--requests", 12, "--concurrency", 4, "--input-tokens", 30, "--output-tokens", 11, "--warmup", 2)
        s = r["summary"]
        self.assertEqual((s["ok"], s["failed"], s["output_tokens"], s["input_tokens"]), (12, 0, 132, 360))
        self.assertEqual(Paced.most_open, 4)
        self.assertEqual(len(Paced.bodies), 14)
        went = [[1000 * (t - times[0]) for t in times[1:]] for times in Paced.times[2:]]  # a busy server is late itself
        gaps = [b - a for w in went for a, b in zip(w, w[1:])]
        for name, least, own in (("ttft_ms", 60, [w[0] for w in went]), ("tpot_ms", 20, [(w[-1] - w[0]) / 10 for w in went]), ("itl_ms", 20, gaps),
                                 ("e2e_ms", 260, [w[-1] for w in went])):
            self.assertGreater(s[name]["p50"], least * 0.9, name)
            self.assertLess(s[name]["p50"], max(least, statistics.median(own)) * 1.25 + 12, name)
        self.assertEqual(s["itl_ms"]["n"], 120)
        for q in r["requests"]:
            self.assertAlmostEqual(sum(q["itl_ms"]) / 10, q["tpot_ms"], places=2)
            self.assertEqual(len(q["itl_ms"]), 10)
        # the summary follows from the requests, by Python's own arithmetic
        ttft = sorted(q["ttft_ms"] for q in r["requests"])
        self.assertAlmostEqual(s["ttft_ms"]["p50"], statistics.median(ttft), places=3)
        self.assertAlmostEqual(s["ttft_ms"]["mean"], statistics.fmean(ttft), places=3)
        self.assertAlmostEqual(s["ttft_ms"]["p90"], statistics.quantiles(ttft, n=10, method="inclusive")[8], places=3)
        self.assertAlmostEqual(s["output_tokens_per_s"], 132 / s["seconds"], places=3)

    def test_seed(self):
        flags = ["--requests", 4, "--concurrency", 1, "--input-tokens", "20-60", "--output-tokens", "1-3", "--prefix-tokens", 10]
        bench(self.url, *flags)
        bench(self.url, *flags)
        bench(self.url, *flags, "--seed", 2)
        a, b, c = ([x[2] for x in Paced.bodies[i : i + 4]] for i in (0, 4, 8))
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)
        self.assertEqual(len({tuple(x["prompt"][:10]) for x in a}), 1)
        self.assertEqual(len({tuple(x["prompt"][10:]) for x in a}), 4)
        self.assertTrue(all(20 <= len(x["prompt"]) <= 60 and 1 <= x["max_tokens"] <= 3 for x in a))
        self.assertEqual((a[0]["model"], a[0]["temperature"], a[0]["ignore_eos"]), ("paced", 0, True))

    def test_open_loop(self):
        """Requests come when they are due, however slow the answers."""
        r = bench(self.url, "--requests", 40, "--rate", 40, "--output-tokens", 11, "--input-tokens", 10, "--slo-ttft-ms", 50, "--slo-tpot-ms", 1000)
        self.assertEqual(r["summary"]["ok"], 40)
        due = [q["due_ms"] for q in r["requests"]]
        self.assertEqual(due, sorted(due))
        at = [t for t, _, _ in Paced.bodies]
        self.assertLess(abs((at[-1] - at[0]) * 1000 - (due[-1] - due[0])), 600)  # one after another they would take ten seconds
        self.assertGreater(Paced.most_open, 3)
        self.assertEqual((r["summary"]["good"], r["summary"]["goodput_per_s"]), (0, 0))  # no TTFT is under 60 ms

    def test_mooncake_trace(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
            for at, n, ids in ((0, 1024, [1, 2]), (400, 700, [1, 3]), (800, 100, [9])):
                f.write(json.dumps({"timestamp": at + 5000, "input_length": n, "output_length": 2, "hash_ids": ids}) + "\n")
            f.flush()
            r = bench(self.url, "--trace", f.name, "--trace-scale", 2)
        prompts = [b["prompt"] for _, _, b in Paced.bodies]
        self.assertEqual([len(p) for p in prompts], [1024, 700, 100])
        self.assertEqual(prompts[0][:512], prompts[1][:512])
        self.assertNotEqual(prompts[0][512:700], prompts[1][512:])
        self.assertEqual([q["due_ms"] for q in r["requests"]], [0, 200, 400])

    def test_burstgpt_trace(self):
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as f:
            f.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
                    "5,ChatGPT,472,3,475,Conversation log\n5.2,GPT-4,20,0,20,API log\n5.3,ChatGPT,30,2,32,API log\n")
            f.flush()
            r = bench(self.url, "--trace", f.name, "--input-tokens-max", 100)
        self.assertEqual([(len(b["prompt"]), b["max_tokens"]) for _, _, b in Paced.bodies], [(100, 3), (30, 2)])
        self.assertEqual([q["due_ms"] for q in r["requests"]], [0, 300])

    def test_interrupt(self):
        """Ctrl-C: what was measured so far is told, and nothing is left open."""
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "r.json")
            p = subprocess.Popen([cluster.LONGSPAN, "bench", "--url", self.url, "--requests", "10000", "--concurrency", "3",
                                  "--output-tokens", "5", "--json", path, "--svg", path + ".svg"], stdout=subprocess.PIPE, text=True)
            cluster.wait_for("answers", lambda: len(Paced.bodies) > 20)
            p.send_signal(signal.SIGINT)
            out, _ = p.communicate(timeout=60)
            with open(path, encoding="utf-8") as f:
                r = json.load(f)
            xml.dom.minidom.parse(path + ".svg")
        self.assertEqual(p.returncode, 0)
        self.assertRegex(out, r"TTFT +\d")
        self.assertGreater(r["summary"]["ok"], 3)
        self.assertEqual(r["summary"]["cancelled"], 3)
        self.assertEqual(r["summary"]["failed"], 0)

    def test_many_streams(self):
        Paced.hold = 100
        r = bench(self.url, "--requests", 200, "--concurrency", 100, "--output-tokens", 5, "--input-tokens", 8)
        self.assertEqual(r["summary"]["ok"], 200)
        self.assertEqual(Paced.most_open, 100)


class Hostile(unittest.TestCase):
    """Servers that break off, lie or never stop: each request fails with its reason, and bench ends."""

    def serve(self, answer, hold_s=0):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def one(c):
            with c:
                c.recv(65536)
                try:
                    for piece in answer if isinstance(answer, list) else [answer]:
                        c.sendall(piece)
                    time.sleep(hold_s)
                except OSError:
                    pass

        def accept():
            while True:
                try:
                    c, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(c,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def faults(self, answer, *flags, hold_s=0):
        r = bench(self.serve(answer, hold_s), "--model", "m", "--requests", 2, "--concurrency", 2, *flags, check=1)
        self.assertEqual((r["summary"]["ok"], r["summary"]["failed"]), (0, 2))
        return r["requests"][0]["error"]

    def test_faults(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        cases = [
            (b"", "unanswered"),
            (b"garbage\r\n", "status line"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "closed inside"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no stream"),
            (b'HTTP/1.1 429 No\r\nContent-Length: 33\r\n\r\n{"error": {"message": "no room"}}', "HTTP 429: no room"),
            (head + b'data: {"choices": [{"text": "x"}]}\n\n', r"without [DONE]"),
            (head + b"data: [1, 2]\n\n", "no JSON object"),
            (head + b'data: {"error": {"message": "worker 1 was lost"}}\n\n', "worker 1 was lost"),
            ([head, *[b"data: " + b"x" * 1000000] * 10], "an event of over"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20000, "a line of over"),
        ]
        for answer, says in cases:
            with self.subTest(says=says):
                self.assertIn(says, self.faults(answer))

    def test_silent(self):
        start = time.monotonic()
        self.assertIn("longer than", self.faults([b"HTTP/1.1 200 OK\r\n"], "--timeout-s", 1, hold_s=20))
        self.assertLess(cluster.elapsed(start), 15)

    def test_nobody(self):
        """Refused connections end it soon, whatever the number of requests."""
        _, err = run("bench", "--url", "http://127.0.0.1:1", "--model", "m", "--requests", 100000, check=1, timeout_s=60)
        self.assertIn("in a row failed", err)
        self.assertIn("refused", err)

    def test_used_wrongly(self):
        for flags, says in ((["--input-tokens", "x"], "--input-tokens"), (["--rate", "-1"], "--rate"), (["--token-ids", "5"], "--token-ids"),
                            (["--url", "ftp://x"], "--url"), (["--tls-ca", "/nowhere"], "--tls-ca"), (["--url", "https://127.0.0.1:1", "--tls-ca", "/nowhere"], "tls-ca"), (["--url", "x"], "--url"), (["--extra-body", "[]"], "--extra-body"),
                            (["--trace", "/nowhere"], "/nowhere"), (["--prompts", "ids", "--api", "chat"], "--prompts"),
                            (["--concurrency", "9999"], "--concurrency"), (["positional"], "positional")):
            _, err = run("bench", *flags, check=None, timeout_s=60)
            self.assertIn(says, err)


def independent(port, prompts, new, concurrency):
    """The same load by the standard library: -> (TTFTs, TPOTs), seconds."""
    todo, lock, ttft, tpot = list(prompts), threading.Lock(), [], []

    def client():
        c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                if not todo:
                    return
                ids = todo.pop(0)
            start = time.monotonic()
            c.request("POST", "/v1/completions", json.dumps({"prompt": ids, "max_tokens": new, "temperature": 0, "ignore_eos": True, "stream": True,
                                                             "stream_options": {"include_usage": True}}), {"Content-Type": "application/json"})
            first = last = tokens = None
            for line in c.getresponse():
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if event["choices"] and event["choices"][0]["text"]:
                        last = time.monotonic()
                        first = first or last
                    if event.get("usage"):
                        tokens = event["usage"]["completion_tokens"]
            with lock:
                ttft.append((first - start) * 1000)
                tpot.append((last - first) * 1000 / (tokens - 1))

    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    start = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return ttft, tpot, time.monotonic() - start


class OurServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--threads", 1, workers=1)
        cls.url = f"http://127.0.0.1:{cls.cluster.port}/v1"

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def test_agrees(self):
        """
        With an independent client, interleaved. Half as much again is room for a busy machine; a wrong definition would be off by more, every time.
        """
        random.seed(5)
        for _ in range(3):
            off = self.disagreement()
            if max(off.values()) < 1.5:
                return
        self.fail(f"ours against the independent client's, three times: {off}")

    def disagreement(self):
        """-> by what factor either says more, of each figure"""
        ours, theirs = [], []
        for i in range(3):
            r = bench(self.url, "--requests", 8, "--concurrency", 2, "--input-tokens", 128, "--output-tokens", 24, "--seed", 10 + i)["summary"]
            self.assertEqual((r["ok"], r["output_tokens"], r["input_tokens"]), (8, 192, 1024))
            ours.append((r["ttft_ms"]["p50"], r["tpot_ms"]["p50"], r["output_tokens_per_s"]))
            prompts = [[random.randrange(1000, 30000) for _ in range(128)] for _ in range(8)]
            ttft, tpot, took = independent(self.cluster.port, prompts, 24, 2)
            theirs.append((statistics.median(ttft), statistics.median(tpot), 192 / took))
        off = {}
        for what, a, b in zip(("TTFT", "TPOT", "tok/s"), zip(*ours), zip(*theirs)):
            a, b = statistics.median(a), statistics.median(b)
            off[what] = max(a / b, b / a)
        return off

    def test_text(self):
        """Text sized by /tokenize has the length asked for."""
        r = bench(self.url, "--prompts", "text", "--requests", 3, "--input-tokens", "40-80", "--output-tokens", 2)
        for q in r["requests"]:
            self.assertEqual(q["prompt_tokens"], q["input_tokens"])

    def test_chat(self):
        r = bench(self.url, "--api", "chat", "--requests", 3, "--input-tokens", 40, "--output-tokens", 4)
        self.assertEqual((r["summary"]["ok"], r["summary"]["output_tokens"]), (3, 12))

    def test_prefix(self):
        r = bench(self.url, "--requests", 4, "--concurrency", 1, "--input-tokens", 300, "--prefix-tokens", 256, "--output-tokens", 2, "--seed", 99)
        self.assertEqual([q["cached_tokens"] for q in r["requests"]], [0, 256, 256, 256])

    def test_table(self):
        out, _ = run("bench", "--url", self.url, "--requests", 2, "--input-tokens", 8, "--output-tokens", 3, "--slo-ttft-ms", 10000)
        for word in ("2 answered", "TTFT", "TPOT", "ITL", "end to end", "p99", "goodput", "output tok/s"):
            self.assertIn(word, out)


class OwnCluster(unittest.TestCase):
    """--local: a cluster for one load, with what is said of it; and the density of each request."""

    LOAD = ("--local", "--model", "constructed:copy", "--workers", 1, "--requests", 3, "--concurrency", 1, "--input-tokens", 700,
            "--output-tokens", 2, "--token-ids", "97-122", "--json", "-")

    def test_configured(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings:
            settings.write("threads: 1\n")
            settings.flush()
            out, err = run("bench", *self.LOAD, "--kv-codec", "int8", "--selector", "quest@0.5", "--density", "0.25", "--settings",
                           settings.name)
        told = json.loads(out)
        self.assertEqual(told["summary"]["ok"], 3)
        self.assertEqual((told["options"]["kv-codec"], told["options"]["density"]), ("int8", "0.25"))
        self.assertIn("1 workers x", err)
        self.assertIn("of int8", err)

    def test_refused(self):
        r = json.loads(run("bench", *self.LOAD, "--density", "0.25", check=1)[0])
        self.assertIn("reads everything", r["requests"][0]["error"])  # no selector: the density was sent
        for flags, names in ((("--local", "--kv-codec", "int9"), "kv-codec"), (("--local", "--selector", "sparse"), "selector"),
                             (("--kv-codec", "int8"), "--local"), (("--workers", 2), "--local"), (("--density", 2), "--density"),
                             (("--local", "--settings", "/nowhere"), "/nowhere")):
            self.assertIn(names, run("bench", *flags, check=2)[1])


if __name__ == "__main__":
    cluster.main()
