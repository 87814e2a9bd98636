"""The disk tier of the KV store: what leaves the workers' memory is found on their disks again, also after a restart of all processes; files that are damaged, and disks that are full, cost time
and no token."""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import cluster
from cluster import Cluster, prose, wait_for

MOUNT = "LONGSPAN_KV_DISK"
FLAGS = ["--kv-bytes", "18M", "--kv-disk-bytes", "200M", "--log-level", "info"]  # 12 blocks of 1.4 MiB a worker
BLOCKS = 7  # of a prompt


def go_inside():
    """Starts this test again in a mount namespace of its own, with a disk of 7 MiB."""
    if os.environ.get(MOUNT):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", os.environ[MOUNT]], check=True)
        return
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        cluster.lacking("no right to make mount namespaces")
    directory = tempfile.mkdtemp(prefix="longspan-kv-disk-")
    os.environ[MOUNT] = directory
    status = subprocess.run([*unshare, sys.executable, *sys.argv]).returncode
    os.rmdir(directory)
    sys.exit(status)


def disk(c, name):
    """Of all workers."""
    return sum(value for key, value in c.metrics().items() if key.startswith(f"longspan_kv_disk_{name}{{"))


class Tier(unittest.TestCase):
    prompts = [prose(42, seed) for seed in range(2)]

    def setUp(self):
        self.want = {}  # what was computed first
        self.directory = tempfile.mkdtemp(prefix="longspan-test-kv-")
        self.addCleanup(shutil.rmtree, self.directory, True)

    def ask(self, c, i):
        """-> tokens of the prompt that were there"""
        tokens, logprobs, answer = c.complete(self.prompts[i], 6)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertTrue(i in self.want or not cached)
        self.assertEqual((tokens, logprobs), self.want.setdefault(i, (tokens, logprobs)))
        return cached

    def evict(self, c, n):
        """Others take all memory, until so many blocks are on the disks."""
        for turn in range(6):
            if turn and disk(c, "blocks") >= n:
                return
            c.complete(prose(42, 100 + turn), 1)
            time.sleep(0.3)  # a heartbeat
        wait_for(f"{n} blocks on disks", lambda: disk(c, "blocks") >= n, 30)

    def files(self):
        return sorted(glob.glob(os.path.join(self.directory, "*", "*.kv")))

    def test_found_again(self):
        flags = [*FLAGS, "--kv-disk", self.directory]
        with Cluster(*flags, workers=1) as c:
            self.assertEqual(self.ask(c, 0), 0)
            wait_for("blocks written ahead: half of the pool is used", lambda: disk(c, "blocks") >= BLOCKS, 30)
            self.evict(c, BLOCKS + 3)
            self.assertGreaterEqual(self.ask(c, 0), BLOCKS * 64)
            self.assertGreaterEqual(wait_for("heartbeat", lambda: disk(c, "read_total"), 10), 1)
            self.assertEqual((disk(c, "failed_total"), disk(c, "refused_total")), (0, 0))
            self.ask(c, 1)
            c.check_quiet()
        # All processes are new: what was on the disk is there, and what was in memory when they ended.
        with Cluster(*flags, workers=1) as c:
            self.assertGreaterEqual(self.ask(c, 0), BLOCKS * 64)
            self.assertGreaterEqual(self.ask(c, 1), BLOCKS * 64)
            c.check_quiet()
        damaged = self.files()
        for i, path in enumerate(damaged):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with open(path, "r+b") as f:
                if i % 2:
                    f.seek(1000 + 100 * i)
                    byte = f.read(1)
                    f.seek(-1, 1)
                    f.write(bytes([byte[0] ^ 4]))
                else:
                    f.truncate(os.path.getsize(path) - 1)
        with Cluster(*flags, workers=1) as c:  # flipped bits, and files that end early
            self.assertEqual(self.ask(c, 0), 0)
            self.assertEqual(self.ask(c, 1), 0)
            self.assertGreaterEqual(wait_for("heartbeat", lambda: disk(c, "refused_total"), 10), len(damaged) // 2)
            c.check_quiet()

    def test_workers(self):
        """Of two workers each has its own disk, and blocks their sketches; the sequence is spread over both."""
        flags = [*FLAGS, "--kv-disk", self.directory, "--spread-min-tokens", "300"]
        sparse = ["--kv-codec", "int8", "--selector", "quest@0.25", "--kv-bytes", "32M"]  # 13 blocks
        with Cluster(*flags, *sparse) as c:
            self.ask(c, 0)
            self.evict(c, BLOCKS)
            self.assertGreaterEqual(self.ask(c, 0), 4 * 64)
            c.check_quiet()
        self.assertEqual(sorted(os.listdir(self.directory)), ["0", "1"])
        with Cluster(*flags, *sparse) as c:
            self.assertGreaterEqual(self.ask(c, 0), 4 * 64)
            self.assertGreaterEqual(wait_for("heartbeat", lambda: disk(c, "read_total"), 10), 1)
            c.check_quiet()

    def test_full(self):
        """A disk with room for four blocks."""
        with Cluster(*FLAGS, "--kv-disk", os.environ[MOUNT], workers=1) as c:
            self.ask(c, 0)
            self.evict(c, 4)
            self.assertLessEqual(self.ask(c, 0), 5 * 64)
            self.assertGreaterEqual(wait_for("heartbeat", lambda: disk(c, "failed_total"), 10), 1)
            c.wait_log("kv-disk: writing a block failed.*No space left", 10)
            c.check_quiet()


if __name__ == "__main__":
    go_inside()
    cluster.main()
