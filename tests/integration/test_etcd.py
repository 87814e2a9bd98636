"""A cluster whose registry is a real etcd, killed and started again while requests and jobs run; etcdctl sees small values."""

import json
import os
import signal
import threading
import unittest

import cluster
from cluster import Cluster, wait_for
from etcd import Etcd
from rpc import Rpc, grpc, pb


class OnEtcd(unittest.TestCase):
    def test_killed_under_load(self):
        etcd = Etcd()
        self.addCleanup(etcd.remove)
        with Cluster("--registry", f"etcd:{etcd.client}", workers=2) as c:
            rpc = Rpc(c.grpc)
            members = ["longspan/election/coordinator", "longspan/election/term", "longspan/worker/0", "longspan/worker/1"]
            wait_for("the members' entries", lambda: sorted(etcd.keys()) == members)
            leader = json.loads(etcd.ctl("get", "longspan/election/coordinator", "--print-value-only"))
            self.assertEqual(leader["grpc"], c.grpc)
            want = rpc.whole(text="One two three four", max_tokens=60, temperature=0, ignore_eos=True)[:3]

            # etcd dies: requests go on to the same answers, and new ones are served
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(
                rpc.whole(text="One two three four", max_tokens=60, temperature=0, ignore_eos=True)[:3])) for _ in range(4)]
            for t in threads:
                t.start()
            etcd.kill()
            for t in threads:
                t.join()
            self.assertEqual(answers, [want] * 4)
            self.assertEqual(rpc.whole(text="One two three four", max_tokens=60, temperature=0, ignore_eos=True)[:3], want)
            # a job cannot be acknowledged now, and says so
            with self.assertRaises(grpc.RpcError) as caught:
                rpc.inference.SubmitJob(pb.SubmitJobRequest(generate=pb.GenerateRequest(text="x", max_tokens=2)), timeout=20)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
            # the entries are there again when etcd is
            etcd.start()
            wait_for("the members' entries again", lambda: set(members) <= set(etcd.keys()))

            # jobs whose end falls into the time without etcd end all the same
            jobs = [rpc.inference.SubmitJob(pb.SubmitJobRequest(
                generate=pb.GenerateRequest(text="Count:", max_tokens=30, temperature=1, ignore_eos=True)), timeout=20)
                for _ in range(6)]
            values = etcd.ctl("get", "--prefix", "longspan/job/", "--print-value-only").split("\n")
            self.assertEqual(len([v for v in values if v]), 6)
            self.assertTrue(all(len(v) < 2048 for v in values))
            etcd.kill()
            wait_for("the jobs have run", lambda: len(rpc.inference.ListJobs(pb.ListJobsRequest(
                state=pb.JOB_STATE_QUEUED), timeout=60).jobs) <= 2)
            etcd.start()

            def all_done():
                states = [rpc.inference.GetJob(pb.GetJobRequest(id=j.id), timeout=60).state for j in jobs]
                return all(s == pb.JOB_STATE_DONE for s in states)

            wait_for("all jobs are done", all_done)
            # and so they are for the next coordinator
            old = c.coordinator()
            os.kill(old, signal.SIGKILL)
            wait_for("a new coordinator", lambda: c.coordinator() not in (None, old))

            def still_done():
                try:
                    return all_done()
                except grpc.RpcError as e:
                    self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE)
                    return False

            wait_for("the jobs are known again", still_done, 60)
            wait_for("ready", lambda: c.http("GET", "/ready")[0] == 200, 60)
            rpc.close()
        wait_for("nobody's entries", lambda: [k for k in etcd.keys() if "/job/" not in k] == ["longspan/election/term"], 20)


if __name__ == "__main__":
    cluster.main()
