"""Durable jobs over gRPC: acknowledged means kept, whatever is killed; one key is one job; an interrupted job runs again to the same end."""

import json
import os
import signal
import threading
import time
import unittest

import cluster
from cluster import Cluster, wait_for
from rpc import Rpc, grpc, pb

Code = grpc.StatusCode
ENDED = (pb.JOB_STATE_DONE, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)


def chat(text, **more):
    body = {"messages": [{"role": "user", "content": text}], **more}
    return pb.HttpRequest(url="/v1/chat/completions", body=json.dumps(body).encode())


class Jobs(unittest.TestCase):
    def setUp(self):
        self.cluster = Cluster("--jobs-max", 60, workers=2)
        self.rpc = Rpc(self.cluster.grpc)
        self.jobs = self.rpc.inference

    def tearDown(self):
        self.rpc.close()
        self.cluster.kill()

    def call(self, method, request, timeout=60):
        """Until the coordinator is there (again)."""

        def probe():
            try:
                return getattr(self.jobs, method)(request, timeout=20)
            except grpc.RpcError as e:
                if e.code() not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
                return None

        return wait_for(method, probe, timeout)

    def submit(self, **fields):
        return self.call("SubmitJob", pb.SubmitJobRequest(**fields))

    def ended(self, job_id, output=True):
        """Watches, and watches again when the coordinator dies."""
        seen = 0
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                for job in self.jobs.WatchJob(pb.WatchJobRequest(id=job_id, after_revision=seen, output=output), timeout=60):
                    seen = job.revision
                if job.state in ENDED:
                    return job
            except grpc.RpcError as e:
                if e.code() not in (Code.UNAVAILABLE, Code.CANCELLED):
                    raise
                time.sleep(0.1)
        raise TimeoutError(job_id)

    def refused(self, code, says, method="SubmitJob", request=None, **fields):
        with self.assertRaises(grpc.RpcError) as caught:
            getattr(self.jobs, method)(request or pb.SubmitJobRequest(**fields), timeout=60)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        self.assertIn(says, caught.exception.details())

    def test_one(self):
        want = self.rpc.whole(text="One two three four", max_tokens=10, temperature=0)
        job = self.submit(generate=pb.GenerateRequest(text="One two three four", max_tokens=10, temperature=0), name="count")
        self.assertTrue(job.id)
        done = self.ended(job.id)
        self.assertEqual((done.state, done.name, done.completion_tokens), (pb.JOB_STATE_DONE, "count", 10))
        self.assertEqual((done.generate.text, list(done.generate.token_ids), list(done.generate.logprobs)), want[:3])
        self.assertEqual(done.generate.done.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertFalse(self.call("GetJob", pb.GetJobRequest(id=job.id)).HasField("generate"))
        again = self.call("GetJob", pb.GetJobRequest(id=job.id, output=True))
        self.assertEqual(again.generate.text, done.generate.text)

        job = self.submit(http=chat("Name a colour.", max_tokens=8, temperature=1, n=2))
        done = self.ended(job.id)
        self.assertEqual((done.state, done.http.status), (pb.JOB_STATE_DONE, 200))
        answer = json.loads(done.http.body)
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1])
        # the seed of the job says what it said
        same = self.cluster.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Name a colour."}],
                                                          "max_tokens": 8, "temperature": 1, "n": 2, "seed": done.seed % 2**63})
        if done.seed < 2**63:
            self.assertEqual([c["message"] for c in answer["choices"]], [c["message"] for c in same["choices"]])

    def test_keys_and_refusals(self):
        work = pb.GenerateRequest(text="One two", max_tokens=4)
        a = self.submit(generate=work, idempotency_key="k1")
        self.assertEqual(self.submit(generate=work, idempotency_key="k1").id, a.id)
        self.ended(a.id)
        self.assertEqual(self.submit(generate=work, idempotency_key="k1").id, a.id)
        self.assertNotEqual(self.submit(generate=work, idempotency_key="k2").id, a.id)
        self.assertNotEqual(self.submit(generate=work).id, self.submit(generate=work).id)
        self.refused(Code.ALREADY_EXISTS, "idempotency_key", generate=pb.GenerateRequest(text="Other", max_tokens=4),
                     idempotency_key="k1")
        self.refused(Code.INVALID_ARGUMENT, "work is missing")
        self.refused(Code.INVALID_ARGUMENT, "http.url", http=pb.HttpRequest(url="/v1/embeddings", body=b"{}"))
        self.refused(Code.INVALID_ARGUMENT, "stream", http=chat("x", stream=True))
        self.refused(Code.INVALID_ARGUMENT, "temperature", http=chat("x", temperature=-1))
        self.refused(Code.INVALID_ARGUMENT, "prompt", generate=pb.GenerateRequest())
        self.refused(Code.INVALID_ARGUMENT, "logits", generate=pb.GenerateRequest(text="x", logits=True))
        self.refused(Code.INVALID_ARGUMENT, "name", generate=work, name="n" * 129)
        self.refused(Code.NOT_FOUND, "no such job", "GetJob", pb.GetJobRequest(id="job-none"))
        # what only the run can see ends the job, with the answer that HTTP would have given
        bad = self.ended(self.submit(http=chat("x", model="gpt-9")).id)
        self.assertEqual((bad.state, bad.http.status), (pb.JOB_STATE_FAILED, 404))
        self.assertEqual(json.loads(bad.http.body)["error"]["code"], "model_not_found")
        self.assertIn("gpt-9", bad.error)

    def test_list_cancel_limits(self):
        long = pb.GenerateRequest(text="Once upon a time", max_tokens=8000, ignore_eos=True)  # none ends by itself
        jobs = [self.submit(generate=long, name=f"j{i}").id for i in range(10)]
        first = self.call("ListJobs", pb.ListJobsRequest(limit=4))
        self.assertEqual([j.id for j in first.jobs], jobs[:4])
        self.assertTrue(first.more)
        rest = self.call("ListJobs", pb.ListJobsRequest(after_id=jobs[3]))
        self.assertEqual([j.id for j in rest.jobs], jobs[4:])
        wait_for("four run", lambda: len(self.jobs.ListJobs(pb.ListJobsRequest(state=pb.JOB_STATE_RUNNING)).jobs) == 4)
        # requests do not wait for jobs
        self.assertEqual(len(self.rpc.whole(text="One two", max_tokens=4, temperature=0)[1]), 4)
        for i in (9, 0, 1):  # queued, running
            self.assertEqual(self.call("CancelJob", pb.CancelJobRequest(id=jobs[i])).state, pb.JOB_STATE_CANCELLED)
        self.assertEqual(self.call("GetJob", pb.GetJobRequest(id=jobs[0])).state, pb.JOB_STATE_CANCELLED)
        # 60 are kept: those that ended go, the oldest first; with none of these left, no more are taken
        more = [self.submit(generate=long).id for _ in range(53)]
        self.refused(Code.NOT_FOUND, "no such job", "GetJob", pb.GetJobRequest(id=jobs[0]))
        self.refused(Code.RESOURCE_EXHAUSTED, "60 jobs are kept", generate=long)
        for i in more + jobs[2:9]:
            self.call("CancelJob", pb.CancelJobRequest(id=i))
        self.cluster.check_quiet()

    def test_generated_tokens_are_kept(self):
        """A job killed in mid-generation, with an answer of several sampled choices: its tokens and log-probabilities are those of one that was not,
        and what was generated is not generated again."""
        body = {"messages": [{"role": "user", "content": "Tell me about rivers."}], "max_tokens": 320, "temperature": 1, "n": 2,
                "seed": 11, "logprobs": True, "top_logprobs": 2, "min_tokens": 320}
        work = pb.HttpRequest(url="/v1/chat/completions", body=json.dumps(body).encode())
        job = self.submit(http=work)
        directory = os.path.join(self.cluster.directory, "state", "jobs")
        journal = os.path.join(directory, f"{job.id}-journal")
        row = 9 + 2 * 8
        for least in (60, 140):
            wait_for("tokens are journaled", lambda: os.path.exists(journal) and os.path.getsize(journal) > 2 * least * row, 60)
            old = self.cluster.coordinator()
            os.kill(old, signal.SIGKILL)
            wait_for("a new coordinator", lambda: self.cluster.coordinator() not in (None, old), 60)
        with open(journal, "ab") as f:  # as a write that was cut
            f.write(b"\x20\0\0\0torn")
        done = self.ended(job.id)
        self.assertEqual(done.state, pb.JOB_STATE_DONE)
        # what is in the journal was not generated again (a tenth of its bytes are not rows)
        self.assertLess(self.cluster.status()["scheduler"]["completion_tokens"], 2 * (320 - 110))
        answer = json.loads(done.http.body)
        want = self.cluster.post("/v1/chat/completions", body)
        self.assertEqual(answer["choices"], want["choices"])
        self.assertEqual(answer["usage"]["completion_tokens"], 2 * 320)
        wait_for("the journal is gone", lambda: not os.path.exists(journal))
        self.cluster.check_quiet()

    def test_kill_the_coordinator(self):
        """20 jobs, and the coordinator killed in their midst, twice: none is lost, none doubled, and each says what it says without."""
        prompts = [f"Count from {i} to {i + 5}:" for i in range(20)]
        acknowledged = {}
        lock = threading.Lock()

        def submit_some(which):
            for i in which:
                job = self.submit(generate=pb.GenerateRequest(text=prompts[i], max_tokens=40, temperature=1, ignore_eos=True),
                                  idempotency_key=f"line {i}", name=f"job {i}")
                with lock:
                    acknowledged[i] = job

        threads = [threading.Thread(target=submit_some, args=(range(k, 20, 4),)) for k in range(4)]
        for t in threads:
            t.start()
        for least in (5, 12):
            wait_for("some are acknowledged", lambda: len(acknowledged) >= least, 60)
            old = self.cluster.coordinator()
            os.kill(old, signal.SIGKILL)
            wait_for("a new coordinator", lambda: self.cluster.coordinator() not in (None, old), 60)
        for t in threads:
            t.join()
        self.assertEqual(len({j.id for j in acknowledged.values()}), 20)
        ends = {i: self.ended(j.id) for i, j in acknowledged.items()}
        self.assertEqual({j.state for j in ends.values()}, {pb.JOB_STATE_DONE})
        listed = self.call("ListJobs", pb.ListJobsRequest()).jobs
        self.assertEqual(sorted(j.id for j in listed), sorted(j.id for j in acknowledged.values()))
        for i, job in ends.items():
            self.assertEqual(job.seed, acknowledged[i].seed)
            want = self.rpc.whole(text=prompts[i], max_tokens=40, temperature=1, ignore_eos=True, seed=job.seed)
            self.assertEqual((job.generate.text, list(job.generate.token_ids)), want[:2])
        # the files of jobs that ended are their outputs, and no more
        directory = os.path.join(self.cluster.directory, "state", "jobs")
        wait_for("bodies are gone", lambda: len(os.listdir(directory)) == 21)


if __name__ == "__main__":
    cluster.main()
