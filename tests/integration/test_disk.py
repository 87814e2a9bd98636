"""A disk that is full: requests go on, answers that can be taken up again are answered all the same, no job is acknowledged that could not be kept, and none that was is lost."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import cluster
from cluster import Cluster, wait_for
from rpc import Rpc, grpc, pb
from test_resume import Reader

STREAM = {"prompt": "One two three", "max_tokens": 40, "temperature": 1, "seed": 3, "logprobs": 1, "ignore_eos": True}
MOUNT = "LONGSPAN_DISK"


def go_inside():
    """Starts this test again in a mount namespace of its own, its temporary files on a disk of 3 MiB."""
    if os.environ.get(MOUNT):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", os.environ[MOUNT]], check=True)
        tempfile.tempdir = os.environ[MOUNT]
        return
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        cluster.lacking("no right to make mount namespaces")
    directory = tempfile.mkdtemp(prefix="longspan-disk-")
    os.environ[MOUNT] = directory
    status = subprocess.run([*unshare, sys.executable, *sys.argv]).returncode
    os.rmdir(directory)
    sys.exit(status)


class Full(unittest.TestCase):
    def fill(self, c):
        """-> the file that takes all room"""
        path = os.path.join(c.directory, "filler")
        with open(path, "wb", buffering=0) as f:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        f.write(b"x" * size)
                except OSError:
                    pass
        return path

    def test_full(self):
        with Cluster("--log-level", "info", workers=1) as c:
            rpc = Rpc(c.grpc)
            want = Reader(c, "/v1/completions", STREAM, "undisturbed").finish().answer()
            work = pb.GenerateRequest(text="Count:", max_tokens=200, temperature=1, seed=7, ignore_eos=True)
            undisturbed = rpc.whole(text="Count:", max_tokens=200, temperature=1, seed=7, ignore_eos=True)[:3]
            job = rpc.inference.SubmitJob(pb.SubmitJobRequest(generate=work), timeout=20)
            filler = self.fill(c)
            self.assertEqual(Reader(c, "/v1/completions", STREAM, "on a full disk").finish().answer(), want)
            with self.assertRaises(grpc.RpcError) as caught:
                rpc.inference.SubmitJob(pb.SubmitJobRequest(generate=work, idempotency_key="k"), timeout=20)
            self.assertIn("could not be kept", caught.exception.details())
            c.wait_log(rf"job {job.id} runs again: its output could not be kept: .*[Nn]o space", 60)
            self.assertEqual(Reader(c, "/v1/completions", STREAM, "still full").finish().answer(), want)
            os.unlink(filler)

            def done(job_id):
                got = rpc.inference.GetJob(pb.GetJobRequest(id=job_id, output=True), timeout=10)
                return got if got.state not in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING) else None

            def check(job_id):
                got = wait_for("the job's end", lambda: done(job_id), 60)
                self.assertEqual(got.state, pb.JOB_STATE_DONE, got.error)
                self.assertEqual((got.generate.text, list(got.generate.token_ids), list(got.generate.logprobs)), undisturbed)

            check(job.id)
            check(rpc.inference.SubmitJob(pb.SubmitJobRequest(generate=work, idempotency_key="k"), timeout=20).id)
            rpc.close()
            c.check_quiet()


if __name__ == "__main__":
    go_inside()
    cluster.main()
