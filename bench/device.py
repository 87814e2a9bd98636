#!/usr/bin/env python3
"""
Checks and measures the CUDA backend on a host with a GPU, from a folder that scripts/device.sh packed. One JSON object on standard output, under the
flat names of bench/results/h100.json; what failed is named under "failed". Logs go to --logs.

    device.py [--only check,worker,sanitizer,cluster,memory,needles,links,spread,peer,kernels,codes,lossless,step,step-lossless,step-long,batch,needles-coded,peers] [--logs FOLDER]
"""
import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ENV = {**os.environ, "LD_LIBRARY_PATH": HERE + "/lib", "UCX_MODULE_DIR": HERE + "/lib/ucx"}
parser = argparse.ArgumentParser()
parser.add_argument("--only", default="check,worker,sanitizer,cluster,memory,needles,links,spread,peer,kernels,codes,lossless,step,step-lossless,step-long,batch,needles-coded,peers")
parser.add_argument("--logs", default=tempfile.gettempdir())
parser.add_argument("--links", default="1 peer,2 peer,2 nccl,2 ucx", help="GPUs and --exchange of links, the first one is what the others are compared with")
args = parser.parse_args()
result = {"failed": []}


def run(name, *command, seconds=120, env=ENV):
    """Standard output, or None; all of it goes to a log."""
    with open(f"{args.logs}/{name}.log", "w") as log:
        try:
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True, timeout=seconds)
            log.write(done.stdout)
            if done.returncode == 0:
                return done.stdout
            log.write(f"exit status {done.returncode}\n")
        except (subprocess.TimeoutExpired, OSError) as e:
            log.write(f"{e}\n")
    result["failed"].append(name)
    return None


def figures(name, *command, **more):
    text = run(name, *command, **more)
    if text:
        result.update(json.loads(text))


class Cluster:
    def __init__(self, model, workers, device, context, *flags, kv_bytes="4G"):
        self.state = tempfile.mkdtemp()
        self.log = open(f"{args.logs}/cluster-{device}-{workers}.log", "w")
        self.up = subprocess.Popen([f"{HERE}/longspan", "up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--model", model, "--workers", str(workers),
                                    "--device", device, "--threads", "4", "--kv-bytes", kv_bytes, "--state", self.state,
                                    "--positions-max", str(context), *flags],
                                   env=ENV, stderr=subprocess.PIPE, text=True)
        self.port = None
        for line in self.up.stderr:
            self.log.write(line)
            found = re.search(r"serving: http://127.0.0.1:(\d+)/v1", line)
            if found:
                self.port = int(found[1])
                break
        threading.Thread(target=lambda: [self.log.write(line) for line in self.up.stderr], daemon=True).start()
        if not self.port:
            raise RuntimeError("the cluster did not start")

    def complete(self, prompt, new):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        c.request("POST", "/v1/completions",
                  json.dumps({"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "logprobs": 1}),
                  {"Content-Type": "application/json"})
        answer = json.loads(c.getresponse().read())
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["choices"][0]["text"], answer["choices"][0]["logprobs"]["token_logprobs"]

    def close(self):
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(30)
        self.log.close()


class Apart(Cluster):
    """A coordinator and workers of their own, each on its own GPU, as on hosts of their own."""

    def __init__(self, model, gpus, context, *flags, exchange="peer", kv_bytes="12G"):
        self.state = tempfile.mkdtemp()
        self.log = open(f"{args.logs}/cluster-apart-{gpus}-{exchange}.log", "w")
        self.up = subprocess.Popen([f"{HERE}/longspan", "coordinator", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--control", "127.0.0.1:0", "--model",
                                    model, "--workers", str(gpus), "--state", self.state, "--positions-max", str(context), *flags],
                                   env=ENV, stdout=subprocess.PIPE, stderr=self.log, text=True)
        at = dict(self.up.stdout.readline().split() for _ in range(3))
        self.port = int(at["http"].split(":")[1])
        self.workers = [subprocess.Popen([f"{HERE}/longspan", "worker", "--control", at["control"], "--device", "cuda", "--threads", "4", "--kv-bytes", kv_bytes,
                                          "--bind", "127.0.0.1", "--exchange", exchange, "--log-level", "info"], env={**ENV, "CUDA_VISIBLE_DEVICES": str(i), "NCCL_DEBUG": "WARN"}, stdout=self.log, stderr=self.log) for i in range(gpus)]
        until = time.monotonic() + 60
        while True:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            c.request("GET", "/ready")
            if c.getresponse().status == 200:
                return
            if time.monotonic() > until:
                raise RuntimeError("the workers did not get ready")
            time.sleep(0.1)

    def metric(self, name):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        c.request("GET", "/metrics")
        return float(re.search(rf"^{name} (\S+)", c.getresponse().read().decode(), re.M)[1])

    def logged(self, text):
        self.log.flush()
        return open(self.log.name).read().count(text)

    def close(self):
        for p in [*self.workers, self.up]:
            p.send_signal(signal.SIGTERM)
        for p in [*self.workers, self.up]:
            try:
                p.wait(30)
            except subprocess.TimeoutExpired:
                result["failed"].append("end")
                p.kill()
        self.log.close()


def needles_coded(context=1 << 18, n=8):
    """Needles found over coded KV; and by quest, whose bounds tell blocks apart where their text has few letters (tests/integration/test_selectors.py)."""
    for name, fill, flags in (("int8", "abcdefghijklmnopqrstuvwxyz", ["--kv-codec", "int8"]),
                              ("int4rot", "abcdefghijklmnopqrstuvwxyz", ["--kv-codec", "int4-rot"]),
                              ("int4rot_quest5", "ab", ["--kv-codec", "int4-rot", "--selector", "quest@0.05"])):
        r = random.Random(6)
        wanted = [tuple("".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=8)) for _ in range(2)) for _ in range(n)]
        gap, pieces = (context - 4096) // n // 64 * 64, []
        for key, value in wanted:
            before = r.randrange(1, gap // 64 - 1) * 64
            pieces += ["".join(r.choices(fill, k=before)), key, value, "".join(r.choices(fill, k=gap - before - 16))]
        try:
            c = Apart(f"constructed:copy:{context}", 1, context, "--step-rows-max", "4096", "--step-deadline-ms", "30000", *flags)
            found = sum(c.complete("".join(pieces) + key, 8)[0] == value for key, value in wanted)
            result[f"needles_256k_{name}_found"] = found
            c.close()
            if found != n:
                result["failed"].append(f"needles-{name}")
        except Exception as e:
            print(f"needles {name}: {e}", file=sys.stderr)
            result["failed"].append(f"needles-{name}")


def needles(gpus_there, context=1 << 20, n=16):
    """A context of a million bytes, needles at many depths, the model that is made to copy: on one GPU and, spread, on two: all found, with the same bits."""
    r = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    wanted = [(f"NEEDLE{i:02d}", "".join(r.choices(letters.upper(), k=8))) for i in range(n)]
    between, pieces = (context - 4096) // n - 16, []
    for key, value in wanted:
        before = r.randrange(between)
        pieces += ["".join(r.choices(letters, k=before)), key, value, "".join(r.choices(letters, k=between - before))]
    text, answers = "".join(pieces), {}
    for gpus in range(1, min(gpus_there, 2) + 1):
        try:
            c = Apart(f"constructed:copy:{context}", gpus, context, "--step-rows-max", "4096", "--step-deadline-ms", "30000")
            start = time.monotonic()
            answers[gpus] = [c.complete(text + wanted[0][0], 8)]
            result[f"needles_1m_{gpus}gpu_prefill_s"] = round(time.monotonic() - start, 2)
            answers[gpus] += [c.complete(text + key, 8) for key, _ in wanted[1:]]
            result[f"needles_1m_{gpus}gpu_found"] = sum(a[0] == value for a, (_, value) in zip(answers[gpus], wanted))
            c.close()
        except Exception as e:
            print(f"needles on {gpus}: {e}", file=sys.stderr)
            result["failed"].append(f"needles-{gpus}")
            return
        if result[f"needles_1m_{gpus}gpu_found"] != n:
            result["failed"].append(f"needles-{gpus}")
    if 2 in answers:
        result["needles_1m_one_and_two_gpus_same_bits"] = answers[1] == answers[2]


def links():
    """
    A sequence over two GPUs, by each way between them: the same bits as on one GPU, and the time of a token. Then a worker is killed in the middle of an
    answer: the request ends with an error soon, since the other's waits do.
    """
    model, context = "random:llama-3.1-8b:8", 65536
    prompt, answers = [(i * 7919 + i // 13) % 128000 for i in range(49152)], {}
    ways = [(int(gpus), exchange) for gpus, exchange in (way.split() for way in args.links.split(","))]
    for gpus, exchange in ways:
        c = None
        try:
            c = Apart(model, gpus, context, "--step-rows-max", "2048", "--step-deadline-ms", "20000", exchange=exchange)
            c.complete(prompt, 4)
            start = time.monotonic()
            answers[gpus, exchange] = c.complete(prompt, 8)
            between = time.monotonic()
            more = c.complete(prompt, 208)
            # a prefix hit both times, so the difference is 200 tokens
            result[f"links_{gpus}gpu_{exchange}_token_ms"] = round(((time.monotonic() - between) - (between - start)) / 200 * 1000, 3)
            answers[gpus, exchange] += more
            if gpus > 1 and exchange != "ucx" and c.logged("go by peer memory" if exchange == "peer" else "go by NCCL") < 2:
                result["failed"].append(f"links-{exchange}-not-used")
            if gpus > 1 and exchange != "ucx":
                killed(c, prompt, exchange)
        except Exception as e:
            print(f"links on {gpus} by {exchange}: {e}", file=sys.stderr)
            result["failed"].append(f"links-{gpus}-{exchange}")
        if c:
            c.close()
    same = {f"{gpus} {exchange}": a == answers.get(ways[0]) for (gpus, exchange), a in answers.items()}
    print(f"the bits of one GPU: {same}", file=sys.stderr)
    result["links_same_bits"] = len(same) == len(ways) and all(same.values())
    if not result["links_same_bits"]:
        result["failed"].append("links")


def spread(gpus_there):
    """
    Milliseconds a token of Llama-3.1-8B's shape on one GPU and on two, as the context grows: from where on two are faster, and by how much. One layer of it to
    a million positions, since a prompt's attention grows with their square.
    """
    longest = 1024
    prompt = [(i * 7919 + i // 13) % 128000 for i in range(longest << 10)]
    for codec, layers, contexts, kv_bytes in (("bf16", "", (1, 4, 8, 16, 32, 64, 128), "20G"), ("int4-rot", ":1", (1, 128, longest), "12G")):
        model = f"random:llama-3.1-8b,positions=1052672{layers}"
        result[f"spread_{codec}_model"] = model
        for gpus in range(1, min(gpus_there, 2) + 1):
            c = None
            try:
                c = Apart(model, gpus, (contexts[-1] << 10) + 4096, "--step-rows-max", "4096", "--step-deadline-ms", "30000", "--kv-codec", codec, kv_bytes=kv_bytes)
                for k in contexts:
                    took = []
                    for new in (4, 8, 108):
                        start, before = time.monotonic(), c.metric("longspan_coordination_seconds_total")
                        c.complete(prompt[: k << 10], new)
                        took.append(time.monotonic() - start)
                    result[f"spread_{codec}_{k}k_{gpus}gpu_coordination_ms"] = round((c.metric("longspan_coordination_seconds_total") - before) * 10, 3)
                    result[f"spread_{codec}_{k}k_{gpus}gpu_token_ms"] = round((took[2] - took[1]) * 10, 3)
            except Exception as e:
                print(f"spread over {gpus}: {e}", file=sys.stderr)
                result["failed"].append(f"spread-{codec}-{gpus}")
            if c:
                c.close()
        for k in contexts[1:]: # what the context adds to a token is attention and, on two GPUs, their exchange
            times = [result.get(f"spread_{codec}_{at}k_{gpus}gpu_token_ms", 0) for gpus in (1, 2) for at in (1, k)]
            if all(times):
                result[f"spread_{codec}_{k}k_attention_1gpu_over_2gpu"] = round((times[1] - times[0]) / max(times[3] - times[2], 1e-3), 2)


def killed(c, prompt, exchange):
    """In the middle of an answer: it ends, or goes on at the other worker, which lives and answers the next one."""
    told = {}

    def ask():
        try:
            told["answer"] = c.complete(prompt, 1000)
        except Exception as e:
            told["error"] = str(e)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(1.5)
    c.workers[1].kill()
    start = time.monotonic()
    asking.join(60)
    result[f"links_{exchange}_killed_s"] = round(time.monotonic() - start, 2)
    result[f"links_{exchange}_killed"] = told.get("error", "goes on" if told else "hangs")
    if not told or c.workers[0].poll() is not None or c.logged("abandoned") == 0:
        result["failed"].append(f"links-killed-{exchange}")
    c.complete(prompt[:100], 4)


HOG = """
import sys, torch
left = int(sys.argv[1])
held = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def refused(c, prompt, name):
    """The request ends with an error, the next one does not."""
    try:
        c.complete(prompt, 4)
        result["failed"].append(name + "-taken")
    except RuntimeError as e:
        result[name] = str(e)
    c.complete(prompt[:100], 4)


def memory():
    """Out of memory is an error of the request that caused it: a pool that is too small; a GPU whose memory somebody else takes."""
    model = "random:layers=4,d=1024,heads=8,kv=2,head_dim=128,ff=4096,vocab=512,positions=65536,codec=bf16"
    prompt = [(i * 7919 + i // 13) % 512 for i in range(40000)]
    try:
        c = Cluster(model, 1, "cuda", 65536, kv_bytes="64M")
        refused(c, prompt, "memory_small_pool")
        c.close()
        c = Cluster(model, 1, "cuda", 65536)
        short = c.complete(prompt[:100], 4)
        hog = subprocess.Popen([sys.executable, "-c", HOG, str(8 << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        hog.stdout.readline()
        refused(c, prompt, "memory_full_gpu")
        if c.complete(prompt[:100], 4) != short:
            result["failed"].append("memory-bits")
        hog.stdin.close()
        hog.wait(30)
        c.complete(prompt, 4)
        c.close()
    except Exception as e:
        print(f"memory: {e}", file=sys.stderr)
        result["failed"].append("memory")


def cluster():
    """The same answers, bit for bit, from one worker and from two that share the GPU and the sequence; near those of the CPU."""
    model = "random:layers=4,d=256,heads=8,kv=2,head_dim=64,ff=512,vocab=512,positions=16384,codec=bf16"
    prompt = [(i * 7919 + i // 13) % 512 for i in range(9000)]
    answers = {}
    for device, workers in (("cuda", 1), ("cuda", 2), ("cpu", 1)):
        try:
            c = Cluster(model, workers, device, 16384)
            answers[device, workers] = c.complete(prompt, 32)
            c.close()
        except Exception as e:
            print(f"cluster {device} {workers}: {e}", file=sys.stderr)
            result["failed"].append(f"cluster-{device}-{workers}")
            return
    one, two, cpu = answers["cuda", 1], answers["cuda", 2], answers["cpu", 1]
    result["cluster_one_and_two_gpu_workers_same_bits"] = one == two
    result["cluster_first_logprob_difference_from_cpu"] = abs(one[1][0] - cpu[1][0])
    if one != two:
        result["failed"].append("cluster")


def cluster_coded():
    """The same of coded KV and selectors; what the processor's worker says of codecs is near, while selectors may choose otherwise where a last bit differs."""
    model = "random:layers=4,d=256,heads=8,kv=2,head_dim=64,ff=512,vocab=512,positions=8192,codec=bf16"
    prompt = [(i * 7919 + i // 13) % 512 for i in range(5000)]
    for name, flags in (("int8", ["--kv-codec", "int8"]), ("int4rot", ["--kv-codec", "int4-rot"]),
                        ("int8_quest", ["--kv-codec", "int8", "--selector", "quest@0.3"]), ("walk", ["--selector", "sketch-walk@0.3"])):
        answers = {}
        for device, workers in (("cuda", 1), ("cuda", 2), ("cpu", 1)):
            try:
                c = Cluster(model, workers, device, 8192, *flags)
                answers[device, workers] = c.complete(prompt, 32)
                c.close()
            except Exception as e:
                print(f"cluster {name} {device} {workers}: {e}", file=sys.stderr)
                result["failed"].append(f"cluster-{name}-{device}-{workers}")
                return
        one, two, cpu = answers["cuda", 1], answers["cuda", 2], answers["cpu", 1]
        result[f"cluster_{name}_one_and_two_gpu_workers_same_bits"] = one == two
        result[f"cluster_{name}_first_logprob_difference_from_cpu"] = abs(one[1][0] - cpu[1][0])
        if one != two:
            result["failed"].append(f"cluster-{name}")


def main():
    wanted = args.only.split(",")
    smi = run("nvidia-smi", "nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader")
    result["gpu"] = smi.strip() if smi else None
    result["commit"] = open(HERE + "/commit").read().strip()
    result["command"] = "scripts/device.sh BUILD FOLDER; python3 FOLDER/device.py --only " + args.only
    if "check" in wanted:
        for name in ("check_cuda", "check_cuda_peer", "check_cuda_codes", "check_cuda_lossless", "check_cuda_quest", "check_cuda_walk"):
            run(name, f"{HERE}/{name}")
    if "worker" in wanted:
        run("worker", HERE + "/worker_test_cuda")
        run("worker-select", HERE + "/worker_test_cuda_select", seconds=240)
    if "sanitizer" in wanted:
        for program in ("check_cuda", "check_cuda_lossless", "check_cuda_codes", "check_cuda_quest", "check_cuda_walk"):
            # racecheck does not follow __syncwarp() to the one lane that arrives at a barrier: linear_lossless.cu says what was done about that
            for tool in ("memcheck", "racecheck")[: 1 if program in ("check_cuda_codes", "check_cuda_lossless") else 2]:
                run(f"{tool}-{program}", "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", f"{HERE}/{program}", "--rounds", "2")
    if "cluster" in wanted:
        cluster()
        cluster_coded()
    gpus = len((run("gpus", "nvidia-smi", "-L") or "").splitlines())
    if "needles" in wanted:
        needles(gpus)
    if "needles-coded" in wanted:
        needles_coded()
    if "memory" in wanted:
        memory()
    if "links" in wanted and gpus > 1:
        links()
    if "spread" in wanted and gpus > 1:
        spread(gpus)
    if "peer" in wanted and gpus > 1: # two processes that wait for each other on one GPU would measure its time slices
        figures("peer", HERE + "/check_cuda_peer", "--bench")
        figures("nccl", sys.executable, HERE + "/cuda_nccl.py", env=os.environ)
    if "kernels" in wanted:
        figures("kernels", HERE + "/cuda_kernels")
    for name in ("codes", "lossless"):
        if name in wanted:
            figures(name, f"{HERE}/cuda_{name}")
    if "step" in wanted:
        figures("step", HERE + "/cuda_step", "random:llama-3.1-8b", "8b_bf16", "512", "8192", "32768")
        result["step_8b_bf16_short_ms"] = result.get("8b_bf16_step_512_ms")
    if "step-lossless" in wanted:
        figures("step-lossless", HERE + "/cuda_step", "random:llama-3.1-8b,codec=lossless-fast", "8b_lossless", "512", "8192", "32768")
        result["step_8b_lossless_short_ms"] = result.get("8b_lossless_step_512_ms")
    if "step-long" in wanted:
        figures("step-long", HERE + "/cuda_step", "random:llama-3.1-8b,codec=lossless-fast", "8b_lossless_int4rot_quest5", "--kv", "int4-rot", "--selector",
                "quest@0.05", "--filled", "131072", "1048576", seconds=240)
        result["step_8b_1m_int4_5pct_ms"] = result.get("8b_lossless_int4rot_quest5_step_1048576_ms")
    if "batch" in wanted:
        figures("batch-bf16", HERE + "/cuda_step", "random:llama-3.1-8b", "8b_bf16_batch48_8k", "--batch", "48", "8192")
        figures("batch-int4", HERE + "/cuda_step", "random:llama-3.1-8b", "8b_int4rot_batch64_8k", "--kv", "int4-rot", "--batch", "64", "8192")
    if "peers" in wanted:
        figures("peers", sys.executable, HERE + "/cuda_peers.py", env=os.environ)
    result["command_ok"] = not result["failed"]
    print(json.dumps(result, indent=1))
    return 1 if result["failed"] else 0


def cut_off(*_):
    """What was measured until then is told."""
    result["failed"].append("cut off")
    print(json.dumps(result, indent=1), flush=True)
    os._exit(1)


signal.signal(signal.SIGTERM, cut_off)
sys.exit(main())
