"""What deploy/ holds is valid and is about this program: manifests against Kubernetes' schemas and against themselves, settings and flags against the program,
packages against what it links to; and the two settings files of the manifests make a cluster that answers."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

import cluster
from cluster import LONGSPAN, MODEL, ROOT, run, wait_for

validate = cluster.need_module("kubernetes_validate")
jsonschema = cluster.need_module("jsonschema")
yaml = cluster.need_module("yaml")
if not shutil.which("kubectl"):
    cluster.lacking("kubectl is not installed (scripts/install.sh)")

DEPLOY = os.path.join(ROOT, "deploy")
KUSTOMIZATIONS = ["base", "overlays/monitoring", "overlays/secure"]


def render(name):
    done = subprocess.run(["kubectl", "kustomize", os.path.join(DEPLOY, "kubernetes", name)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return list(yaml.safe_load_all(done.stdout))


def flags_of(command):
    return set(re.findall(r"(--[a-z0-9-]+)", run(command, "--help")[0]))


def pods(documents):
    return [d["spec"]["template"] for d in documents if d["kind"] == "StatefulSet"]


def chosen(documents, labels):
    return [p for p in pods(documents) if labels.items() <= p["metadata"]["labels"].items()]


def ports(pod):
    return {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", [])}


class Manifests(unittest.TestCase):
    def test_schemas(self):
        with open(os.path.join(ROOT, "tests/integration/schemas/servicemonitor.json"), encoding="utf-8") as f:
            monitor = json.load(f)
        for name in KUSTOMIZATIONS:
            for d in render(name):
                with self.subTest(f"{name}: {d['kind']} {d['metadata']['name']}"):
                    if d["kind"] == "ServiceMonitor":
                        jsonschema.validate(d, monitor)
                    else:
                        validate.validate(d, "1.32", strict=True)

    def test_a_slip_would_be_found(self):
        d = next(d for d in render("base") if d["kind"] == "StatefulSet")
        d["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
        with self.assertRaises(validate.ValidationError):
            validate.validate(d, "1.32", strict=True)

    def test_what_refers_to_what(self):
        for name in KUSTOMIZATIONS:
            documents = render(name)
            made = {(d["kind"], d["metadata"]["name"]) for d in documents}
            for d in documents:
                with self.subTest(f"{name}: {d['kind']} {d['metadata']['name']}"):
                    if d["kind"] != "Namespace":
                        self.assertEqual(d["metadata"]["namespace"], "longspan")
                    getattr(self, f"check_{d['kind']}", lambda *_: None)(d, documents, made)

    def check_Service(self, d, documents, _):
        found = chosen(documents, d["spec"]["selector"])
        self.assertEqual(len(found), 1)
        for p in d["spec"]["ports"]:
            if "targetPort" in p:
                self.assertIn(p["targetPort"], ports(found[0]))

    def check_PodDisruptionBudget(self, d, documents, _):
        self.assertTrue(chosen(documents, d["spec"]["selector"]["matchLabels"]))

    def check_NetworkPolicy(self, d, documents, _):
        found = chosen(documents, d["spec"]["podSelector"]["matchLabels"])
        self.assertEqual(len(found), 1)
        for rule in d["spec"]["ingress"]:
            for p in rule.get("ports", []):
                self.assertIn(p["port"], ports(found[0]))
            for peer in rule.get("from", []):
                self.assertTrue(chosen(documents, peer["podSelector"]["matchLabels"]))

    def check_ServiceMonitor(self, d, documents, _):
        services = [s for s in documents if s["kind"] == "Service" and d["spec"]["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()]
        self.assertEqual([s["metadata"]["name"] for s in services], ["longspan"])
        for e in d["spec"]["endpoints"]:
            self.assertIn(e["port"], [p["name"] for p in services[0]["spec"]["ports"]])

    def check_StatefulSet(self, d, _, made):
        pod = d["spec"]["template"]
        self.assertEqual(d["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        self.assertIn(("Service", d["spec"]["serviceName"]), made)
        volumes = {v["name"]: v for v in pod["spec"].get("volumes", [])}
        claims = {c["metadata"]["name"] for c in d["spec"].get("volumeClaimTemplates", [])}
        for c in pod["spec"]["containers"]:
            for m in c["volumeMounts"]:
                self.assertIn(m["name"], claims | set(volumes))
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                for how in ("httpGet", "tcpSocket"):
                    if how in c.get(probe, {}):
                        self.assertIn(c[probe][how]["port"], ports(pod))
            if c["image"].startswith("longspan"):
                self.check_arguments(c["args"], volumes, c["volumeMounts"])
        for v in volumes.values():
            if v.get("persistentVolumeClaim", {}).get("claimName") == "longspan-jobs":
                self.assertIn(("PersistentVolumeClaim", "longspan-jobs"), made)
            if "configMap" in v:
                self.assertIn(("ConfigMap", v["configMap"]["name"]), made)

    def check_arguments(self, args, volumes, mounts):
        known = flags_of(args[0])
        for a in args[1:]:
            if a.startswith("--"):
                self.assertIn(a.split("=")[0], known)
        for path in re.findall(r"(/(?:run/secrets|etc)/[^ ]+)", " ".join(a.split("=")[-1] for a in args)):
            under = [m for m in mounts if path.startswith(m["mountPath"] + "/")]
            self.assertEqual(len(under), 1, path)
            self.assertIn(under[0]["name"], volumes)

    def test_settings(self):
        documents = render("base")
        workers = next(d for d in documents if d["metadata"]["name"] == "longspan-worker" and d["kind"] == "StatefulSet")
        etcd = next(d for d in documents if d["metadata"]["name"] == "longspan-etcd" and d["kind"] == "StatefulSet")
        for d in documents:
            for name, text in d.get("data", {}).items() if d["kind"] == "ConfigMap" else []:
                with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                    f.write(text)
                    f.flush()
                    run("config", "--config", f.name)
                settings = yaml.safe_load(text)
                if name.startswith("coordinator"):
                    self.assertEqual(settings["workers"], workers["spec"]["replicas"])
                    self.assertEqual(settings["registry"].count(":2379"), etcd["spec"]["replicas"])
                else:
                    coordinators = next(d for d in documents if d["metadata"]["name"] == "longspan-coordinator" and d["kind"] == "StatefulSet")
                    addresses = settings["control"].split(",")
                    self.assertEqual(len(addresses), coordinators["spec"]["replicas"])
                    for i, address in enumerate(addresses):
                        pod, host = address.split(":")[0].split(".")
                        self.assertEqual((pod, host), (f"longspan-coordinator-{i}", coordinators["spec"]["serviceName"]))
                        service = next(s for s in documents if s["kind"] == "Service" and s["metadata"]["name"] == host)
                        self.assertEqual([p["port"] for p in service["spec"]["ports"]], [int(address.split(":")[1])])

    def test_they_make_a_cluster(self):
        """The settings of the manifests, but for addresses, the registry and the model."""
        state = tempfile.mkdtemp(prefix="longspan-test-")
        self.addCleanup(shutil.rmtree, state, True)
        base = os.path.join(DEPLOY, "kubernetes/base")
        coordinator = subprocess.Popen(
            [LONGSPAN, "coordinator", "--config", os.path.join(base, "coordinator.conf.yaml"), "--http=127.0.0.1:0", "--grpc=127.0.0.1:0", "--control=127.0.0.1:0",
             f"--registry=embedded:{state}/registry.db", f"--state={state}", f"--jobs-dir={state}/jobs", f"--model={MODEL}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        at = dict(coordinator.stdout.readline().split() for _ in range(3))
        workers = [subprocess.Popen([LONGSPAN, "worker", "--config", os.path.join(base, "worker.conf.yaml"), "--control", at["control"], "--kv-bytes=200M",
                                     "--bind=127.0.0.1:19200-19263", "--threads=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]

        def get(path, body=None):
            try:
                request = urllib.request.Request(f"http://{at['http']}{path}", body and json.dumps(body).encode(), {"Content-Type": "application/json"})
                return urllib.request.urlopen(request, timeout=60)
            except OSError:
                return None

        try:
            self.assertEqual(get("/health").status, 200)
            wait_for("the cluster ready", lambda: get("/ready"), 60)
            answer = json.load(get("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}))
            self.assertIn("Paris", answer["choices"][0]["text"])
        finally:
            for p in [*workers, coordinator]:
                p.terminate()
            for p in [*workers, coordinator]:
                p.wait(20)
            coordinator.stdout.close()
        self.assertEqual([p.returncode for p in [*workers, coordinator]], [0, 0, 0])


class Others(unittest.TestCase):
    def test_compose(self):
        with open(os.path.join(DEPLOY, "compose.yaml"), encoding="utf-8") as f:
            services = yaml.safe_load(f)["services"]
        addresses = {name: s["networks"]["cluster"]["ipv4_address"] for name, s in services.items()}
        self.assertEqual(len(set(addresses.values())), len(addresses))
        for name, s in services.items():
            if s["image"] != "longspan":
                continue
            command = s["command"]
            for a in command[1:]:
                if a.startswith("--"):
                    self.assertIn(a, flags_of(command[0]))
            if command[0] == "worker":
                self.assertEqual(command[command.index("--control") + 1], addresses["coordinator"] + ":9091")
                self.assertTrue(command[command.index("--bind") + 1].startswith(addresses[name] + ":"))
            else:
                self.assertEqual(command[command.index("--registry") + 1], f"etcd:{addresses['etcd']}:2379")
                self.assertEqual(int(command[command.index("--workers") + 1]), sum(s["command"][0] == "worker" for s in services.values()))

    def test_units(self):
        for name in os.listdir(os.path.join(DEPLOY, "systemd")):
            with open(os.path.join(DEPLOY, "systemd", name), encoding="utf-8") as f:
                text = f.read()
            command = re.search(r"^ExecStart=/usr/bin/longspan (.*)$", text, re.M)[1].split()
            for a in command[1:]:
                if a.startswith("--"):
                    self.assertIn(a, flags_of(command[0]))
            if shutil.which("systemd-analyze"):
                done = subprocess.run(["systemd-analyze", "verify", "--man=no", os.path.join(DEPLOY, "systemd", name)], capture_output=True, text=True, timeout=60,
                                      check=False)
                faults = [line for line in done.stderr.splitlines() if name in line and "not executable" not in line and "No such file" not in line]
                self.assertEqual(faults, [])

    def test_image_has_what_the_program_links_to(self):
        with open(os.path.join(DEPLOY, "Containerfile"), encoding="utf-8") as f:
            stage = f.read().split("FROM ")[-1]
        listed = set(re.findall(r"\b(lib[a-z0-9.+-]+)", stage)) | {"libc6", "libgcc-s1", "libstdc++6"}  # the last two come with libgrpc
        dynamic = subprocess.run(["objdump", "-p", LONGSPAN], capture_output=True, text=True, check=True).stdout
        linked = dict(re.findall(r"^\s+(\S+) => (/\S+)", subprocess.run(["ldd", LONGSPAN], capture_output=True, text=True, check=True).stdout, re.M))
        for soname in re.findall(r"NEEDED\s+(\S+)", dynamic):
            if soname not in linked:
                continue  # the loader itself
            owner = ""
            for path in (linked[soname], os.path.realpath(linked[soname]), "/usr" + linked[soname]):
                found = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True, check=False)
                owner = owner or found.stdout.split(":")[0]
            self.assertIn(owner, listed, f"{soname} ({linked[soname]})")


if __name__ == "__main__":
    cluster.main()
