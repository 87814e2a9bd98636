"""What readers that come back are put through, whether they read over HTTP (test_resume.py) or gRPC (test_resume_grpc.py)."""

import os
import signal
import threading
import time

from cluster import wait_for


def read_after_a_while(test, c, reader):
    """Whoever leaves finds an answer that went on without a client, until it did not: what was generated meanwhile is told, not generated again."""
    before = c.status()["scheduler"]["completion_tokens"]
    reader.open()
    reader.read(3)
    reader.leave()
    time.sleep(1)
    test.assertFalse(c.idle())
    c.check_quiet(60)
    at = c.status()["scheduler"]["completion_tokens"]
    reader.open()
    reader.read(20)
    test.assertEqual(len(reader.told), 23)  # it was not cut off
    test.assertLess(c.status()["scheduler"]["completion_tokens"] - at, max(60, (at - before) // 2))  # it goes on, while this is asked


def read_through_kills(test, c, readers, leasts):
    """All read at once, to the end, while the coordinator of c is killed: whenever each was told more than the next of leasts, or has done."""
    threads = [threading.Thread(target=r.finish) for r in readers]
    for t in threads:
        t.start()
    for least in leasts:
        wait_for("all have read some", lambda: all(len(r.told) > least or r.done for r in readers), 60)
        if least == leasts[0]:
            test.assertFalse(all(r.done for r in readers))
        old = c.coordinator()
        os.kill(old, signal.SIGKILL)
        wait_for("a new coordinator", lambda: c.coordinator() not in (None, old))
    for t in threads:
        t.join(180)
        test.assertFalse(t.is_alive())
    for r in readers:
        test.assertTrue(r.done)


def no_prompt_on_disk(test, c, word):
    """Of streams there are files, and in none of them is a word of their prompts."""
    streams = os.path.join(c.directory, "state", "streams")
    test.assertGreaterEqual(len(os.listdir(streams)), 4)
    for name in os.listdir(streams):
        with open(os.path.join(streams, name), "rb") as f:
            test.assertNotIn(word, f.read())
