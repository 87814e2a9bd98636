"""The live page in a browser, by hand: python3 tests/integration/browser_page.py [SCREENSHOT.png]

Needs Debian's chromium-headless-shell (220 MB, so no part of `make test`) and speaks its debugging protocol over a pipe. A cluster under load is shown, then
one whose worker is stopped, then one that is gone; what the page says is compared with what the cluster does.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import cluster
from cluster import Cluster, command_of, prose, wait_for

BROWSER = "chromium-headless-shell"


class Browser:
    """One page of a headless browser; messages are JSON, each ended by a zero byte, on descriptors 3 and 4."""

    def __init__(self, url):
        self.profile = tempfile.mkdtemp(prefix="longspan-browser-")
        read, theirs_out = os.pipe()
        theirs_in, write = os.pipe()

        def place():
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen([BROWSER, "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={self.profile}",
                                         "--window-size=1280,800", "about:blank"], preexec_fn=place, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.source, self.n, self.said, self.session = write, os.fdopen(read, "rb"), 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def receive(self):
        data = b""
        while not data.endswith(b"\0"):
            piece = self.source.read(1)
            if not piece:
                raise EOFError("the browser ended")
            data += piece
        return json.loads(data[:-1])

    def call(self, method, **params):
        self.n += 1
        message = {"id": self.n, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            m = self.receive()
            if m.get("id") == self.n:
                if "error" in m:
                    raise AssertionError(f"{method}: {m['error']}")
                return m["result"]
            if m.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(m["params"])

    def text(self, selector):
        """What is shown of an element."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})?.innerText", returnByValue=True)
        return found["result"].get("value", "")

    def shot(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        self.source.close()
        shutil.rmtree(self.profile, ignore_errors=True)


def main(picture):
    if not shutil.which(BROWSER):
        cluster.lacking(f"{BROWSER} (apt-get install {BROWSER})")
    stop = threading.Event()
    c = Cluster("--threads", 1, "--kv-bytes", "128M", "--silence-ms", 60000, "--step-deadline-ms", 60000, workers=2)

    def load(i):
        while not stop.is_set():
            try:
                c.http("POST", "/v1/completions", {"prompt": prose(20 + 20 * i, i % 3), "max_tokens": 40, "ignore_eos": True})
            except OSError:
                return

    threads = [threading.Thread(target=load, args=(i,)) for i in range(5)]
    browser = Browser(f"http://127.0.0.1:{c.port}/")
    try:
        wait_for("the page's first look", lambda: browser.text("#state").startswith("ready, coordinator leader"), 20)
        for t in threads:
            t.start()
        wait_for("rates", lambda: all(browser.text(f"#{id}") not in ("", "–", "0.0") for id in ("generated", "steps")), 20)
        time.sleep(12)
        status = c.status()
        shown = browser.text("#workers")
        for w in status["workers"]:
            for value in (w["pid"], w["address"], "cpu", "ready"):
                assert str(value) in shown, (value, shown)
        assert "requests in" in browser.text("#facts") and status["model"] in browser.text("h1")
        assert " ms" in browser.text("#ended") or " s" in browser.text("#ended"), browser.text("#ended")
        if picture:
            browser.shot(picture)
            print(picture)
        workers = [p for p in c.processes() if command_of(p)[1:2] == ["worker"]]
        for p in workers:
            os.kill(p, signal.SIGSTOP)
        wait_for("the page's alarm", lambda: browser.text("#state").startswith("no step for"), 15)
        for p in workers:
            os.kill(p, signal.SIGCONT)
        wait_for("the page's all-clear", lambda: browser.text("#state").startswith("ready"), 15)
        assert not browser.said, browser.said
        stop.set()
        for t in threads:
            t.join()
        c.stop()
        wait_for("the end", lambda: "does not answer" in browser.text("#state"), 15)
    finally:
        stop.set()
        browser.close()
        c.kill()
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
