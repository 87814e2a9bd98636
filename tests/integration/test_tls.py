"""TLS: clients over HTTPS and gRPC, with certificates of their own where they are asked for; workers and etcd likewise; what is not trusted gets nothing."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

import cluster
from cluster import Cluster, free_port, run, wait_for
from rpc import Rpc, grpc

openai, httpx = cluster.need_module("openai"), cluster.need_module("httpx")
for program in ("openssl", "etcd"):
    if not shutil.which(program):
        cluster.lacking(f"{program} is not installed (scripts/install.sh)")

FILES = tempfile.mkdtemp(prefix="longspan-tls-")
unittest.addModuleCleanup(shutil.rmtree, FILES, True)


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=FILES)


def authority(name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.crt")


def certificate(name, by, san="IP:127.0.0.1,DNS:localhost"):
    with open(os.path.join(FILES, f"{name}.ext"), "w", encoding="utf-8") as f:
        f.write(f"subjectAltName={san}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext",
            "-out", f"{name}.crt")


def path(name):
    return os.path.join(FILES, name)


def text(name):
    with open(path(name), "rb") as f:
        return f.read()


def setUpModule():
    for name in ("root", "stranger"):
        authority(name)
    certificate("server", "root")
    certificate("client", "root")
    certificate("other", "stranger")
    certificate("elsewhere", "root", "DNS:elsewhere.example")


SERVED = ["--tls-cert", path("server.crt"), "--tls-key", path("server.key"), "--tls-ca", path("root.crt")]
MUTUAL = [*SERVED, "--tls-client-ca", path("root.crt")]
CONTROL = ["--control-cert", path("server.crt"), "--control-key", path("server.key"), "--control-ca", path("root.crt")]


def context(cert=None, ca="root.crt"):
    c = ssl.create_default_context(cafile=path(ca))
    if cert:
        c.load_cert_chain(path(f"{cert}.crt"), path(f"{cert}.key"))
    return c


def models(c, **kw):
    connection = http.client.HTTPSConnection(c.host, c.port, timeout=60, context=context(**kw))
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status
    finally:
        connection.close()


def secure(c, cert=None, ca="root.crt"):
    keys = {"private_key": text(f"{cert}.key"), "certificate_chain": text(f"{cert}.crt")} if cert else {}
    return Rpc(c.grpc, grpc.ssl_channel_credentials(root_certificates=text(ca), **keys))


class Tls(unittest.TestCase):
    def test_clients(self):
        with Cluster(*SERVED, *CONTROL) as c:
            with httpx.Client(verify=context()) as h:
                client = openai.OpenAI(base_url=f"https://127.0.0.1:{c.port}/v1", api_key="-", http_client=h, max_retries=0)
                ask = {"model": "default", "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
                whole = client.completions.create(**ask).choices[0].text
                pieces = "".join(e.choices[0].text for e in client.completions.create(stream=True, **ask))
            self.assertEqual(whole, pieces)
            rpc = secure(c)
            self.assertEqual(rpc.whole(text="The capital of France is", max_tokens=12, temperature=0)[0], whole)
            rpc.close()
            out = run("generate", "--grpc", c.grpc, "--tls-ca", path("root.crt"), "--raw", "--max-tokens", "12", "--temperature", "0", "--prompt",
                      "The capital of France is")[0]
            self.assertIn(whole.strip(), out)
            # bench, which must know the signer, and finds its name or address in the certificate
            load = ["--token-ids", "1000-2000", "--input-tokens", 20, "--output-tokens", 4, "--requests", 6, "--concurrency", 2, "--json", "-"]
            for host in ("127.0.0.1", "localhost"):
                out, _ = run("bench", "--url", f"https://{host}:{c.port}", "--tls-ca", path("root.crt"), *load)
                self.assertEqual([r["ok"] for r in json.loads(out)["requests"]], [True] * 6)
            for host, ca in (("127.0.0.1", "stranger.crt"), ("127.1", "root.crt")):
                _, err = run("bench", "--url", f"https://{host}:{c.port}", "--tls-ca", path(ca), *load, check=1)
                self.assertIn("certificate", err)
            # a body of megabytes
            with httpx.Client(verify=context()) as h:
                answer = h.post(f"https://127.0.0.1:{c.port}/tokenize", json={"prompt": "word " * 1000, "unknown": "x" * 4000000}, timeout=60)
                self.assertEqual((answer.status_code, answer.json()["error"]["param"]), (400, "unknown"))
            # in clear, with a stranger's root, under another name
            plain = http.client.HTTPConnection(c.host, c.port, timeout=10)
            with self.assertRaises((http.client.HTTPException, OSError)):
                plain.request("GET", "/v1/models")
                plain.getresponse()
            plain.close()
            with self.assertRaises(ssl.SSLError):
                models(c, ca="stranger.crt")
            for wrong in (Rpc(c.grpc), secure(c, ca="stranger.crt")):
                with self.assertRaises(grpc.RpcError) as e:
                    wrong.whole(timeout=5, text="x", max_tokens=1)
                self.assertIn(e.exception.code(), (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
                wrong.close()
            _, err = run("status", "--grpc", c.grpc, "--tls-ca", path("stranger.crt"), check=1, timeout_s=60)
            self.assertIn("certificate verify failed", err)
            self.assertEqual(models(c), 200)

    def test_another_name(self):
        """A certificate that its root signed for another host."""
        flags = ["--tls-cert", path("elsewhere.crt"), "--tls-key", path("elsewhere.key"), "--tls-ca", path("root.crt")]
        _, err = run("up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", "1", "--model", cluster.MODEL, "--state",
                     path("state"), "--prompt", "x", "--once", *flags, check=1, timeout_s=60)
        self.assertIn("certificate", err)

    def test_mutual(self):
        with Cluster(*MUTUAL, *CONTROL, workers=1) as c:
            self.assertEqual(models(c, cert="client"), 200)
            for cert in (None, "other"):
                with self.assertRaises((ssl.SSLError, http.client.HTTPException, OSError)):
                    models(c, cert=cert)
                wrong = secure(c, cert)
                with self.assertRaises(grpc.RpcError):
                    wrong.whole(timeout=5, text="x", max_tokens=1)
                wrong.close()
            right = secure(c, "client")
            self.assertTrue(right.whole(text="x", max_tokens=2)[1])
            right.close()

    def test_rotation(self):
        """New certificates are used by connections from then on; those that are there go on; a broken one changes nothing and is named."""
        certificate("second", "root")
        live = {ext: path(f"live.{ext}") for ext in ("crt", "key")}

        def put(name, *kinds):
            for ext in kinds or live:
                shutil.copyfile(path(f"{name}.{ext}"), path("live.new"))
                os.replace(path("live.new"), live[ext])

        def shown(port):
            """The certificate that a new connection gets."""
            alpn = context()
            alpn.set_alpn_protocols(["h2"] if port != c.port else ["http/1.1"])
            with socket.create_connection((c.host, port), 10) as s, alpn.wrap_socket(s, server_hostname="127.0.0.1") as t:
                return ssl.DER_cert_to_PEM_cert(t.getpeercert(True)).strip()

        def shows(name):
            return {shown(port) for port in ports} == {text(f"{name}.crt").decode().strip()}

        put("server")
        served = ["--tls-cert", live["crt"], "--tls-key", live["key"], "--tls-ca", path("root.crt")]
        control = ["--control-cert", live["crt"], "--control-key", live["key"], "--control-ca", path("root.crt")]
        with Cluster(*served, *control, "--log-level", "info", workers=1) as c:
            ports = [c.port, int(c.grpc.rsplit(":", 1)[1])]
            self.assertTrue(shows("server"))
            old = http.client.HTTPSConnection(c.host, c.port, timeout=30, context=context())
            old.request("POST", "/v1/completions", json.dumps({"prompt": "Count", "max_tokens": 4000, "ignore_eos": True, "stream": True}),
                        {"Content-Type": "application/json"})
            events = old.getresponse()
            rpc = secure(c)
            answers = iter(rpc.generate(text="Count", max_tokens=4000, ignore_eos=True))
            for _ in range(3):
                events.readline()
                next(answers)
            put("second")
            wait_for("the second certificate", lambda: shows("second"), 60)
            # a file that is none, and a key that is another's
            at = len(c.log_lines)
            with open(live["crt"], "w", encoding="utf-8") as f:
                f.write("no certificate\n")
            c.wait_log(r"tls-cert: .* holds no certificate in PEM; the certificate from before stays", 60, at)
            c.wait_log(r"control-cert: .* stays", 60, at)
            self.assertTrue(shows("second"))
            put("server", "crt")
            c.wait_log(r"tls-key: .* is not the key of .* stays", 60, at)
            self.assertTrue(shows("second"))
            put("server", "key")
            wait_for("the first again", lambda: shows("server"), 60)
            at = len(c.log_lines)
            os.kill(c.coordinator(), signal.SIGHUP)
            c.wait_log(r"certificates of HTTP and gRPC were read again", 60, at)
            # what was open has gone on all the while, and workers come with what the files hold
            for _ in range(3):
                self.assertTrue(events.readline())
                next(answers)
            old.close()
            rpc.close()
            put("second")

            def worker():
                found = json.loads(run("status", "--grpc", c.grpc, "--tls-ca", path("root.crt"), "--json")[0])["workers"]
                return [w["pid"] for w in found if w["state"] == "ready"]

            first = worker()
            os.kill(first[0], signal.SIGKILL)
            wait_for("another worker", lambda: worker() not in ([], first), 60)
            self.assertEqual(models(c), 200)

    def test_handshakes_that_never_end(self):
        """Connections that say nothing, or nonsense, hold nobody up."""
        with Cluster(*SERVED, workers=1) as c:
            silent = [socket.create_connection((c.host, c.port)) for _ in range(50)]
            for i in range(50):
                s = socket.create_connection((c.host, c.port))
                s.sendall(os.urandom(200) if i % 2 else b"\x16\x03\x01\x02\x00\x01")
                silent.append(s)
            start = time.monotonic()
            self.assertEqual(models(c), 200)
            self.assertLess(cluster.elapsed(start), 10)
            for s in silent:
                s.close()

    def test_workers_need_a_certificate(self):
        state = tempfile.mkdtemp(prefix="longspan-test-")
        self.addCleanup(shutil.rmtree, state, True)
        coordinator = subprocess.Popen(
            [cluster.LONGSPAN, "coordinator", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--control", "127.0.0.1:0", "--workers", "1", "--model",
             cluster.MODEL, "--state", state, *CONTROL], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        addresses = dict(coordinator.stdout.readline().split() for _ in range(3))
        workers = []

        def worker(*flags):
            workers.append(subprocess.Popen([cluster.LONGSPAN, "worker", "--control", addresses["control"], *flags], stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL))

        def states():
            return [w["state"] for w in json.loads(run("status", "--grpc", addresses["grpc"], "--json")[0])["workers"]]

        try:
            worker()
            worker("--control-cert", path("other.crt"), "--control-key", path("other.key"), "--control-ca", path("root.crt"))
            worker("--control-cert", path("client.crt"), "--control-key", path("client.key"), "--control-ca", path("stranger.crt"))
            time.sleep(3)
            self.assertEqual(states(), [])
            worker("--control-cert", path("client.crt"), "--control-key", path("client.key"), "--control-ca", path("root.crt"))
            wait_for("the worker with a certificate", lambda: states() == ["ready"], 60)
        finally:
            for p in [*workers, coordinator]:
                p.kill()
                p.wait()
            coordinator.stdout.close()

    def test_etcd(self):
        client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        data = tempfile.mkdtemp(prefix="longspan-etcd-")
        self.addCleanup(shutil.rmtree, data, True)
        etcd = subprocess.Popen(
            ["etcd", "--name", "n", "--data-dir", os.path.join(data, "data"), "--listen-client-urls", f"https://{client}", "--advertise-client-urls",
             f"https://{client}", "--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}", "--initial-cluster",
             f"n=http://{peer}", "--cert-file", path("server.crt"), "--key-file", path("server.key"), "--trusted-ca-file", path("root.crt"),
             "--client-cert-auth", "--logger", "zap", "--log-level", "error"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with Cluster("--registry", f"etcd:{client}", "--etcd-ca", path("root.crt"), "--etcd-cert", path("client.crt"), "--etcd-key",
                         path("client.key"), workers=1) as c:
                self.assertTrue(c.complete("The", 4)[0])
                done = subprocess.run(["etcdctl", f"--endpoints=https://{client}", "--cacert", path("root.crt"), "--cert", path("client.crt"), "--key",
                                       path("client.key"), "get", "--prefix", "longspan/", "--keys-only"], capture_output=True, timeout=60,
                                      env={**os.environ, "ETCDCTL_API": "3"})
                self.assertIn(b"longspan/election/coordinator", done.stdout)
        finally:
            etcd.kill()
            etcd.wait()

    def test_settings_are_checked(self):
        with open(path("nonsense.pem"), "w", encoding="utf-8") as f:
            f.write("no certificate\n")
        subprocess.run(["openssl", "ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"], check=True, capture_output=True,
                       cwd=FILES)
        cases = [
            (["--tls-cert", path("server.crt"), "--tls-ca", path("root.crt")], "tls-key"),
            (["--tls-cert", path("server.crt"), "--tls-key", path("client.key"), "--tls-ca", path("root.crt")], "is not the key of"),
            (["--tls-cert", path("nonsense.pem"), "--tls-key", path("server.key"), "--tls-ca", path("root.crt")], "tls-cert"),
            (["--tls-cert", path("server.crt"), "--tls-key", path("locked.key"), "--tls-ca", path("root.crt")], "passphrase"),
            (["--tls-cert", path("nowhere.crt"), "--tls-key", path("server.key"), "--tls-ca", path("root.crt")], "nowhere.crt"),
            (["--tls-client-ca", path("root.crt")], "tls-cert"),
            (["--tls-cert", path("server.crt"), "--tls-key", path("server.key")], "tls-ca"),
            (["--control-ca", path("root.crt")], "go together"),
            (["--etcd-cert", path("client.crt")], "etcd-key"),
        ]
        for flags, says in cases:
            _, err = run("up", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--once", *flags, check=1, timeout_s=60)
            self.assertIn(says, err, flags)


if __name__ == "__main__":
    cluster.main()
