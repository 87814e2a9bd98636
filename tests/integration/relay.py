"""A network switch in user space, for hosts that are network namespaces: every packet between them passes through here, late, or not at all.

    relay.py NAME=PID=ADDRESS/BITS ...

makes a tap device `ls0` in the network namespace of each process, with the address, and forwards frames between them. Commands come on standard input,
a line each, and are answered by a line. It ends with its standard input.

    delay MS     on every packet's way; `jitter MS`: up to so much more, drawn for each packet, so that packets overtake each other
    loss SHARE   of all packets, drawn for each; `seed N`: of what is drawn
    down NAME    a cable is pulled; `up NAME`: put back
    cut A B      what A sends to B vanishes, what B sends to A arrives; `mend A B`
    reset        all of that is over
    stats        frames, bytes and frames dropped, by port
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
MTU = 9000
QUEUE_BYTES_MAX = 32 << 20  # as a switch does, it drops what does not fit

libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace):
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def ip(*args):
    subprocess.run(["ip", *args], check=True)


class Port:
    def __init__(self, name, pid, address):
        self.name, self.is_up, self.frames, self.bytes, self.dropped = name, True, 0, 0, 0
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        enter(there)
        try:
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", b"ls0", IFF_TAP | IFF_NO_PI))
            ip("link", "set", "lo", "up")
            ip("link", "set", "ls0", "addrgenmode", "none", "mtu", str(MTU))
            ip("addr", "add", address, "dev", "ls0")
            ip("link", "set", "ls0", "up")
        finally:
            enter(home)
            os.close(there)
            os.close(home)


class Switch:
    def __init__(self, ports):
        self.ports = ports
        self.by_fd = {p.fd: p for p in ports}
        self.by_name = {p.name: p for p in ports}
        self.by_address = {}  # of Ethernet: where it was heard
        self.random = random.Random(1)
        self.queue = []  # a heap of (when, number, frame, from): without jitter in the order in which they came
        self.queued = self.number = 0
        self.reset()

    def reset(self):
        self.delay_s = self.jitter_s = self.loss = 0
        self.cuts = set()  # (from, to), by name
        for p in self.ports:
            p.is_up = True

    def take(self, port):
        now = time.monotonic()
        for _ in range(256):
            try:
                frame = os.read(port.fd, MTU + 64)
            except BlockingIOError:
                return
            if not port.is_up or self.queued > QUEUE_BYTES_MAX or (self.loss and self.random.random() < self.loss):
                port.dropped += 1
                continue
            port.frames += 1
            port.bytes += len(frame)
            self.by_address[frame[6:12]] = port
            self.queued += len(frame)
            self.number += 1
            late_s = self.jitter_s and self.random.uniform(0, self.jitter_s)
            heapq.heappush(self.queue, (now + self.delay_s + late_s, self.number, frame, port))

    def give(self, now):
        while self.queue and self.queue[0][0] <= now:
            _, _, frame, source = heapq.heappop(self.queue)
            self.queued -= len(frame)
            known = None if frame[0] & 1 else self.by_address.get(frame[:6])
            for port in [known] if known else self.ports:
                if port is source:
                    continue
                if not port.is_up or (source.name, port.name) in self.cuts:
                    port.dropped += 1
                    continue
                try:
                    os.write(port.fd, frame)
                except (BlockingIOError, OSError):
                    port.dropped += 1

    def command(self, line):
        word, *args = line.split()
        if word in ("delay", "jitter"):
            setattr(self, word + "_s", float(args[0]) / 1000)
        elif word == "loss":
            self.loss = float(args[0])
        elif word == "seed":
            self.random.seed(args[0])
        elif word in ("down", "up"):
            self.by_name[args[0]].is_up = word == "up"
        elif word == "cut":
            self.cuts.add((self.by_name[args[0]].name, self.by_name[args[1]].name))
        elif word == "mend":
            self.cuts.discard(tuple(args))
        elif word == "reset":
            self.reset()
        elif word == "stats":
            return json.dumps({p.name: {"frames": p.frames, "bytes": p.bytes, "dropped": p.dropped} for p in self.ports})
        else:
            return f"no command {word}"
        return "ok"

    def run(self):
        while True:
            wait_s = max(0, self.queue[0][0] - time.monotonic()) if self.queue else None
            ready, _, _ = select.select([0, *self.by_fd], [], [], wait_s)
            for fd in ready:
                if fd:
                    self.take(self.by_fd[fd])
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                print(self.command(line), flush=True)
            self.give(time.monotonic())


if __name__ == "__main__":
    switch = Switch([Port(*p.split("=")) for p in sys.argv[1:]])
    print("ok", flush=True)
    switch.run()
