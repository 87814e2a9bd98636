"""A foreign client, the `openai` package, against the HTTP side; and what it says of requests that are not served."""

import math
import unittest

import cluster
from cluster import Cluster, prose

openai = cluster.need_module("openai")

QUESTION = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Why is the sky blue?"}]


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(workers=2)
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.cluster.port}/v1", api_key="none", max_retries=0, timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.cluster.check_quiet()
        cls.cluster.stop()

    def chat(self, messages=None, **more):
        more = {"max_tokens": 12, "temperature": 0, **more}
        return self.client.chat.completions.create(model="default", messages=messages or QUESTION, **more)

    def complete(self, prompt="One two three four", **more):
        more = {"max_tokens": 8, "temperature": 0, **more}
        return self.client.completions.create(model="default", prompt=prompt, **more)

    # ---- answers ----

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual(len(models), 1)
        name = models[0].id
        self.assertEqual(self.client.models.retrieve(name).id, name)
        a = self.client.completions.create(model=name, prompt="x", max_tokens=1)
        self.assertEqual(a.model, name)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")

    def test_chat(self):
        a = self.chat()
        self.assertEqual((a.object, len(a.choices), a.choices[0].index, a.choices[0].message.role),
                         ("chat.completion", 1, 0, "assistant"))
        self.assertEqual((a.choices[0].finish_reason, a.usage.completion_tokens), ("length", 12))
        self.assertEqual(a.usage.total_tokens, a.usage.prompt_tokens + 12)
        self.assertIn("sky", a.choices[0].message.content)
        self.assertIsNone(a.choices[0].logprobs)
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual({c.object for c in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({c.id for c in chunks}), 1)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), a.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason], ["length"])
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual((chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens), (a.usage.prompt_tokens, 12))
        self.assertTrue(all(c.usage is None for c in chunks[:-1]))
        self.assertGreater(len(chunks), 6)  # it streams

    def test_chat_parts(self):
        parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"][:5]}, {"type": "text", "text": m["content"][5:]}]}
                 for m in QUESTION]
        self.assertEqual(self.chat(parts).choices[0].message.content, self.chat().choices[0].message.content)

    def test_completions(self):
        a = self.complete()
        self.assertEqual((a.object, a.choices[0].finish_reason, a.usage.completion_tokens), ("text_completion", "length", 8))
        self.assertIsNone(a.choices[0].logprobs)
        chunks = list(self.complete(stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), a.choices[0].text)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        ids = self.cluster.post("/tokenize", {"prompt": "One two three four"})["tokens"]
        self.assertEqual(self.complete(ids).choices[0].text, a.choices[0].text)
        self.assertEqual(self.complete(["One two three four"]).choices[0].text, a.choices[0].text)
        self.assertEqual(self.client.completions.create(model="default", prompt="x", temperature=0).usage.completion_tokens, 16)

    def test_stop(self):
        whole = self.complete(max_tokens=24).choices[0].text
        stop = whole[7:11]
        a = self.complete(max_tokens=24, stop=stop)
        self.assertEqual((a.choices[0].text, a.choices[0].finish_reason), (whole[: whole.index(stop)], "stop"))
        a = self.complete(max_tokens=24, stop=["never", stop])
        self.assertEqual(a.choices[0].text, whole[: whole.index(stop)])
        text = "".join(c.choices[0].text for c in self.complete(max_tokens=24, stop=stop, stream=True))
        self.assertEqual(text, whole[: whole.index(stop)])
        a = self.chat([{"role": "user", "content": "Answer with one word: what is the capital of France?"}], max_tokens=80)
        self.assertEqual(a.choices[0].finish_reason, "stop")
        self.assertLess(a.usage.completion_tokens, 80)
        a = self.chat([{"role": "user", "content": "Answer with one word: what is the capital of France?"}], max_tokens=80,
                      extra_body={"ignore_eos": True})
        self.assertEqual((a.choices[0].finish_reason, a.usage.completion_tokens), ("length", 80))

    def test_sampling(self):
        def texts(**more):
            return [self.complete(max_tokens=10, **{"temperature": 1.0, "seed": 5, **more}).choices[0].text for _ in range(2)]

        a, b = texts()
        self.assertEqual(a, b)
        self.assertNotEqual(a, texts(seed=6)[0])
        greedy = self.complete(max_tokens=10).choices[0].text
        self.assertEqual(texts(extra_body={"top_k": 1}), [greedy, greedy])
        self.assertEqual(texts(top_p=1e-6), [greedy, greedy])
        unseeded = {self.complete(max_tokens=10, temperature=1.5).choices[0].text for _ in range(4)}
        self.assertGreater(len(unseeded), 1)

    def test_logprobs(self):
        a = self.complete(logprobs=3)
        lp = a.choices[0].logprobs
        self.assertEqual([len(x) for x in (lp.tokens, lp.token_logprobs, lp.top_logprobs, lp.text_offset)], [8] * 4)
        self.assertEqual("".join(lp.tokens), a.choices[0].text)
        for token, p, top, offset in zip(lp.tokens, lp.token_logprobs, lp.top_logprobs, lp.text_offset):
            self.assertEqual((len(top), top[token], max(top.values())), (3, p, p))
            self.assertLessEqual(sum(math.exp(x) for x in top.values()), 1.0001)
            self.assertTrue(a.choices[0].text[offset:].startswith(token))
        chunks = list(self.complete(logprobs=3, stream=True))
        self.assertEqual([t for c in chunks for t in (c.choices[0].logprobs.tokens if c.choices[0].logprobs else [])], lp.tokens)
        self.assertEqual([p for c in chunks for p in (c.choices[0].logprobs.token_logprobs if c.choices[0].logprobs else [])],
                         lp.token_logprobs)

        c = self.chat(logprobs=True, top_logprobs=2)
        content = c.choices[0].logprobs.content
        self.assertEqual(len(content), 12)
        self.assertEqual(b"".join(bytes(t.bytes) for t in content).decode(), c.choices[0].message.content)
        for t in content:
            self.assertEqual((len(t.top_logprobs), t.top_logprobs[0].token, t.top_logprobs[0].logprob), (2, t.token, t.logprob))
            self.assertGreaterEqual(t.top_logprobs[0].logprob, t.top_logprobs[1].logprob)
        plain = self.chat(logprobs=True).choices[0].logprobs.content
        self.assertEqual([t.logprob for t in plain], [t.logprob for t in content])
        self.assertEqual(plain[0].top_logprobs, [])

    def test_echo(self):
        """Scoring a prompt: echo with max_tokens 0."""
        prompt = "The capital of France is Paris."
        a = self.complete(prompt, echo=True, max_tokens=0, logprobs=1)
        lp = a.choices[0].logprobs
        ids = self.cluster.post("/tokenize", {"prompt": prompt})["tokens"]
        self.assertEqual((a.choices[0].text, "".join(lp.tokens), len(lp.tokens)), (prompt, prompt, len(ids)))
        self.assertEqual((lp.token_logprobs[0], lp.top_logprobs[0]), (None, None))
        self.assertTrue(all(p < 0 for p in lp.token_logprobs[1:]))
        self.assertEqual((a.usage.completion_tokens, a.usage.prompt_tokens), (0, len(ids)))
        both = self.complete(prompt, echo=True, max_tokens=4, logprobs=1)
        self.assertTrue(both.choices[0].text.startswith(prompt))
        self.assertEqual(both.choices[0].logprobs.token_logprobs[: len(ids)], lp.token_logprobs)
        self.assertEqual(len(both.choices[0].logprobs.tokens), len(ids) + 4)
        # the log-probability of a token is the same, generated or scored
        g = self.complete(prompt, max_tokens=3, logprobs=0)
        text = prompt + g.choices[0].text
        if len(self.cluster.post("/tokenize", {"prompt": text})["tokens"]) == len(ids) + 3:
            scored = self.complete(text, echo=True, max_tokens=0, logprobs=0).choices[0].logprobs.token_logprobs
            self.assertEqual(scored[len(ids) :], g.choices[0].logprobs.token_logprobs)

    def test_cached_tokens(self):
        document = prose(40, 11)
        first = self.complete(document + "Question one:", max_tokens=4)
        again = self.complete(document + "Question two:", max_tokens=4)
        self.assertEqual(first.usage.prompt_tokens_details.cached_tokens, 0)
        cached = again.usage.prompt_tokens_details.cached_tokens
        self.assertGreater(cached, first.usage.prompt_tokens - 64 - 8)
        self.assertEqual(cached % 64, 0)
        # the answer is part of the prefix of the next turn
        turn = [{"role": "user", "content": document + "What was crossed?"}]
        a = self.chat(turn, max_tokens=80, extra_body={"ignore_eos": True})
        b = self.chat(turn + [{"role": "assistant", "content": a.choices[0].message.content}, {"role": "user", "content": "And then?"}])
        self.assertGreater(b.usage.prompt_tokens_details.cached_tokens, a.usage.prompt_tokens)

    def test_characters_stay_whole(self):
        """Streamed or not, the text is the same, and only its end may lack a part of a character."""
        for prompt in ("日本語のテキスト: 東京は日本の首都です。", "🙂🙃🙂🙃🙂🙃", "Ünïcödé: äöüßäöüß"):
            whole = self.complete(prompt, max_tokens=10).choices[0].text
            self.assertEqual("".join(c.choices[0].text for c in self.complete(prompt, max_tokens=10, stream=True)), whole)

    # ---- beside the API ----

    def test_tokenize(self):
        for text in ("Hello world", "", " a  b\n\n\tc", "naïve 東京 🙂", "<|im_start|>user", prose(30, 3)):
            ids = self.cluster.post("/tokenize", {"prompt": text})["tokens"]
            self.assertEqual(self.cluster.post("/detokenize", {"tokens": ids})["prompt"], text)
        chat = self.cluster.post("/tokenize", {"messages": QUESTION})
        self.assertEqual(chat["count"], len(chat["tokens"]))
        self.assertEqual(chat["count"], self.chat(max_tokens=1).usage.prompt_tokens)
        shown = self.cluster.post("/detokenize", {"tokens": chat["tokens"]})["prompt"]
        self.assertTrue(shown.startswith("<|im_start|>system\nYou are a helpful"), shown)
        self.assertTrue(shown.endswith("<|im_start|>assistant\n"), shown)

    def test_health_and_metrics(self):
        for path in ("/health", "/ready"):
            self.assertEqual(self.cluster.http("GET", path)[0], 200)
        before = self.cluster.metrics()
        for _ in range(3):
            self.complete(max_tokens=5)
        list(self.chat(stream=True))
        after = self.cluster.metrics()

        def grown(name):
            return after[name] - before.get(name, 0)

        self.assertEqual(grown("longspan_time_to_first_token_seconds_count"), 4)
        self.assertEqual(grown('longspan_time_to_first_token_seconds_bucket{le="+Inf"}'), 4)
        self.assertGreater(grown("longspan_time_to_first_token_seconds_sum"), 0)
        self.assertEqual(grown('longspan_requests_total{outcome="ok"}'), 4)
        self.assertEqual(grown("longspan_completion_tokens_total"), 3 * 5 + 12)
        self.assertGreater(grown("longspan_steps_total"), 3)
        self.assertEqual(after["longspan_requests_running"], 0)
        _, headers, text = self.cluster.http("GET", "/metrics")
        self.assertTrue(headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        typed = set()
        for line in text.decode().splitlines():  # every sample belongs to the family declared last
            if line.startswith("# TYPE "):
                family = line.split()[2]
                self.assertNotIn(family, typed)
                typed.add(family)
            elif not line.startswith("#"):
                self.assertTrue(line.startswith(family), line)
        buckets = [v for k, v in after.items() if k.startswith("longspan_time_to_first_token_seconds_bucket")]
        self.assertEqual(buckets, sorted(buckets))

    # ---- what is not served ----

    def test_refused_by_client(self):
        for more, field in [({"n": 0}, "n"), ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
                            ({"response_format": {"type": "xml"}}, "response_format.type"), ({"presence_penalty": 3}, "presence_penalty"),
                            ({"frequency_penalty": -2.5}, "frequency_penalty"), ({"logit_bias": {"5": 101}}, "logit_bias"),
                            ({"extra_body": {"frobnicate": 1}}, "frobnicate"), ({"temperature": -1}, "temperature"),
                            ({"top_p": 0}, "top_p"), ({"max_tokens": 0}, "max_tokens"), ({"top_logprobs": 2}, "top_logprobs")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.chat(**more)
            self.assertEqual(e.exception.param, field)
            self.assertIn(field, e.exception.message)
        with self.assertRaises(openai.NotFoundError) as e:
            self.client.chat.completions.create(model="gpt-4", messages=QUESTION)
        self.assertIn("gpt-4", e.exception.message)
        for more, field in [({"n": 200}, "n"), ({"best_of": 3}, "best_of"), ({"suffix": "x"}, "suffix"), ({"logprobs": 1000}, "logprobs"),
                            ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": ""}, "prompt"), ({"max_tokens": -1}, "max_tokens"),
                            ({"stop": ["x"] * 50}, "stop"), ({"prompt": [1 << 30]}, "prompt")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.complete(**more)
            self.assertEqual(e.exception.param, field)
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])
        self.assertTrue(e.exception.param.startswith("messages"))
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat([{"role": "wizard", "content": "x"}])
        self.assertTrue(e.exception.param.startswith("messages"))

    def test_too_long(self):
        with self.assertRaises(openai.BadRequestError) as e:
            self.complete(prose(800, 2))
        self.assertEqual(e.exception.code, "context_length_exceeded")
        self.assertIn("8192", e.exception.message)
        with self.assertRaises(openai.BadRequestError) as e:
            self.complete("short", max_tokens=8192)
        self.assertEqual(e.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat([{"role": "user", "content": prose(800, 2)}])
        self.assertEqual((e.exception.code, e.exception.param), ("context_length_exceeded", "messages"))

    def test_paths_and_methods(self):
        self.assertEqual(self.cluster.http("GET", "/v1/chat/completions")[0], 405)
        self.assertEqual(self.cluster.http("POST", "/v1/models", {})[0], 405)
        self.assertEqual(self.cluster.http("GET", "/v1/embeddings")[0], 404)

    def test_sixteen_at_once(self):
        """Together they say what each says alone."""
        import concurrent.futures

        prompts = [prose(3 + i, 100 + i) for i in range(16)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda p: self.cluster.complete(p, 6)[:2], prompts))
        for i in (0, 5, 15):
            self.assertEqual(together[i], self.cluster.complete(prompts[i], 6)[:2])


if __name__ == "__main__":
    cluster.main()
