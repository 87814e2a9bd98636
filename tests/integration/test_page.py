"""The live page: what it is made of, and that all it reads is there. browser_page.py, run by hand, looks at it in a browser."""

import html.parser
import os
import re
import unittest

import cluster
from cluster import ROOT, Cluster

PAGE = os.path.join(ROOT, "coordinator/gateway/page")


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.inline = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)


def source(name):
    with open(os.path.join(PAGE, name), encoding="utf-8") as f:
        return f.read()


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--threads", 1, workers=1)
        cls.cluster.complete("One two three", 4)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def get(self, path, kind):
        code, headers, data = self.cluster.http("GET", path)
        self.assertEqual((code, headers["Content-Type"]), (200, kind), path)
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        self.assertNotIn("unsafe", headers["Content-Security-Policy"])
        self.assertIn("frame-ancestors 'none'", headers["Content-Security-Policy"])
        self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
        return data.decode()

    def test_files(self):
        """Three plain files, nothing of elsewhere, and nothing that the policy would forbid."""
        text = self.get("/", "text/html; charset=utf-8")
        self.assertEqual(text, source("index.html"))
        self.assertEqual(self.get("/live.js", "text/javascript; charset=utf-8"), source("live.js"))
        self.assertEqual(self.get("/live.css", "text/css; charset=utf-8"), source("live.css"))
        page = Elements(text)
        self.assertEqual(page.inline, [])
        for tag, attrs in page.found:
            self.assertFalse([a for a in attrs if a.startswith("on") or a == "style"], (tag, attrs))
            for a in ("src", "href"):
                if a in attrs and tag != "a":
                    self.assertIn(attrs[a], ("live.js", "live.css"))
        for name in ("index.html", "live.js", "live.css"):
            self.assertFalse([u for u in re.findall(r"https?://[^\s\"']+", source(name)) if not u.startswith("http://www.w3.org/2000/svg")])
        self.assertNotRegex(source("live.js"), r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function")
        self.assertEqual(self.cluster.http("POST", "/", "x")[0], 405)
        self.assertEqual(self.cluster.http("GET", "/live.txt")[0], 404)

    def test_what_the_script_reads(self):
        script, page = source("live.js"), Elements(source("index.html"))
        ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
        used = set(re.findall(r"\bat\(\"([\w-]+)\"\)", script))
        self.assertGreaterEqual(len(used), 8)
        self.assertLessEqual(used, ids)
        for figure in re.search(r"const lines = \{(.*)\};", script)[1].split(","):
            self.assertLessEqual({figure.split(":")[0].strip(), figure.split(":")[0].strip() + "-line"}, ids)
        status = self.cluster.http("GET", "/status")[2]
        for name, pattern in (("status", r"\bstatus\.(\w+)"), ("scheduler", r"\bs\.(\w+)"), ("workers", r"\bw\.(\w+)")):
            of = status if name == "status" else status[name] if name == "scheduler" else status[name][0]
            others = {"status", "ok", "json", "name", "labels", "value"}  # of responses and samples
            read = set(re.findall(pattern, script)) - others
            self.assertGreater(len(read), 5, name)
            self.assertLessEqual(read, set(of), name)
        metrics = self.cluster.http("GET", "/metrics")[2].decode()
        for name in re.findall(r"\"(longspan_\w+)\"", script):
            self.assertIn(f"\n{name}", metrics, name)

    def test_status(self):
        """The same names as `longspan status --json`, and the same values where they do not move."""
        code, headers, page = self.cluster.http("GET", "/status")
        self.assertEqual((code, headers["Cache-Control"]), (200, "no-store"))
        told = self.cluster.status()
        self.assertEqual(set(told) - set(page), {"identity", "kv_bytes_per_token"})
        self.assertEqual(set(page["scheduler"]), set(told["scheduler"]))
        self.assertEqual(set(page["workers"][0]), set(told["workers"][0]))
        for name in ("version", "role", "model", "ready", "positions_max", "positions_fit", "precision", "kv_codec", "selector"):
            self.assertEqual(page[name], told[name], name)
        moves = {"resident_bytes", "step_age_ms", "load_fraction"}
        self.assertEqual({k: v for k, v in page["workers"][0].items() if k not in moves},
                         {k: v for k, v in told["workers"][0].items() if k not in moves})
        self.assertEqual(page["scheduler"]["completion_tokens"], told["scheduler"]["completion_tokens"])


if __name__ == "__main__":
    cluster.main()
