"""Clients that are slow on purpose: half a request, a byte at a time, streams that nobody reads. Others are answered in time, and what is held is bounded."""

import json
import resource
import socket
import struct
import threading
import time
import unittest

import cluster
from cluster import Cluster, elapsed
from rpc import Rpc

IN_TIME_S = 10
NOTHING_READ = {"max_tokens": 20000, "ignore_eos": True, "logprobs": 20, "temperature": 0}


class Slow(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2, model="random:tiny")
        cls.pids = cls.cluster.processes()
        cls.coordinator = cls.cluster.coordinator()
        cls.reference = cls.cluster.complete("One two three four", 4)[:2]
        cls.descriptors = cluster.descriptors(cls.coordinator)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def setUp(self):
        self.held = []
        self.before = cluster.resident_bytes(self.coordinator)

    def tearDown(self):
        for s in self.held:
            s.close()
        self.cluster.check_quiet()
        cluster.wait_for("descriptors as before", lambda: cluster.descriptors(self.coordinator) <= self.descriptors + 4, 60)
        self.assertEqual(self.cluster.processes(), self.pids)

    def connect(self, port=None, data=b"", small=False):
        s = socket.socket()
        if small:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(10)
        s.connect(("127.0.0.1", port or self.cluster.port))
        self.held.append(s)
        s.sendall(data)
        return s

    def honest(self):
        """Over both doors, on new connections, within the time."""
        start = time.monotonic()
        self.assertEqual(self.cluster.complete("One two three four", 4)[:2], self.reference)
        rpc = Rpc(self.cluster.grpc)
        self.assertEqual(rpc.whole(timeout=20, text="One", max_tokens=2, temperature=0)[3].usage.completion_tokens, 2)
        rpc.close()
        self.assertLess(elapsed(start), IN_TIME_S)

    def grown(self):
        return cluster.resident_bytes(self.coordinator) - self.before

    def test_byte_by_byte(self):
        """Six hundred requests of which a byte comes now and then, with heads, bodies and chunks: all are ended within half a minute, though none is ever silent."""
        starts = [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX: ", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
                  b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"]
        alive = [self.connect(data=starts[i % 4]) for i in range(600)]
        begun = last = time.monotonic()
        while alive and elapsed(begun) < 60:
            left = []
            for s in alive:
                try:
                    s.send(b"a")
                    s.setblocking(False)
                    try:
                        if not s.recv(4096):
                            continue
                    except BlockingIOError:
                        pass
                    left.append(s)
                except OSError:
                    pass
            alive = left
            if time.monotonic() - last > 5:
                self.honest()
                last = time.monotonic()
            time.sleep(0.5)
        self.assertEqual(len(alive), 0)
        self.assertGreater(time.monotonic() - begun, 10)
        self.honest()
        self.assertLess(self.grown(), 64 << 20)

    def test_descriptors(self):
        """More silent connections than the coordinator has descriptors: who asks is answered all the same, over gRPC too."""
        soft, hard = resource.prlimit(self.coordinator, resource.RLIMIT_NOFILE)
        resource.prlimit(self.coordinator, resource.RLIMIT_NOFILE, (self.descriptors + 160, hard))
        try:
            for i in range(400):
                self.connect(data=[b"", b"POST /v1/completions HTTP/1.1\r\nContent-Le"][i % 2])
            time.sleep(2)
            for _ in range(4):
                self.honest()
                for _ in range(20):
                    self.connect()
        finally:
            resource.prlimit(self.coordinator, resource.RLIMIT_NOFILE, (soft, hard))

    def test_streams_nobody_reads(self):
        """Answers of which nothing is read, over HTTP: at most 8 MiB wait for each, then it is dropped, and its request ends."""
        body = json.dumps({**NOTHING_READ, "prompt": "x", "stream": True, "n": 4}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for _ in range(8):
            self.connect(data=request, small=True)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            self.honest()
            self.assertLess(self.grown(), 8 * (8 << 20) + (64 << 20))
            time.sleep(0.5)

    def test_calls_nobody_reads(self):
        """The same over gRPC, where windows fill; and clients of HTTP/2 that open none, or never end what they began."""
        rpcs = [Rpc(self.cluster.grpc) for _ in range(4)]
        calls = [rpc.generate(text="x", max_tokens=20000, ignore_eos=True, top_logprobs=20) for rpc in rpcs for _ in range(4)]
        for call in calls:
            next(call)
        port = int(self.cluster.grpc.rsplit(":", 1)[1])
        start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

        def frame(kind, flags, stream, payload=b""):
            return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

        shut = frame(4, 0, 0, struct.pack(">HI", 4, 0))  # a window of nothing
        for i in range(200):
            self.connect(port, [start[:10], start, start + shut, start + shut + frame(1, 0, 1, b"\x83"), start + frame(1, 4, 1, b"\x83") + frame(0, 0, 1, b"\0\xff\xff\xff\xff")][i % 5])
        until = time.monotonic() + 8
        while time.monotonic() < until:
            self.honest()
            self.assertLess(self.grown(), 16 * (8 << 20) + (64 << 20))
            time.sleep(0.5)
        for call in calls:
            call.cancel()
        for rpc in rpcs:
            rpc.close()

    def test_answers_taken_byte_by_byte(self):
        """Readers that take a byte now and then, beside one that reads: what it hears comes in time and is whole."""
        body = json.dumps({**NOTHING_READ, "prompt": "y", "stream": True, "max_tokens": 3000}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        slow = [self.connect(data=request, small=True) for _ in range(8)]
        over = threading.Event()

        def trickle():
            while not over.wait(0.05):
                for s in slow:
                    try:
                        s.recv(1)
                    except OSError:
                        pass

        t = threading.Thread(target=trickle)
        t.start()
        try:
            for _ in range(5):
                self.honest()
            stream = self.cluster.stream("/v1/completions", {"prompt": "y", "max_tokens": 50, "ignore_eos": True, "temperature": 0})
            begun = time.monotonic()
            self.assertGreater(len(list(stream)), 5)
            self.assertTrue(stream.done)
            self.assertLess(elapsed(begun), 2 * IN_TIME_S)
        finally:
            over.set()
            t.join()


if __name__ == "__main__":
    cluster.main(needs_model=False)
