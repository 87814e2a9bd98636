"""Tools through the `openai` client: the whole round trip with the default model, which never saw a tool, so that only the grammar makes its calls."""

import json
import os
import tempfile
import typing
import unittest

import cluster
from cluster import Cluster

openai = cluster.need_module("openai")
pydantic = cluster.need_module("pydantic")

TEMPLATE = os.path.join(cluster.ROOT, "tests/golden/tokenizer/templates/qwen2.5.jinja")
WEATHER = {"type": "function",
           "function": {"name": "get_weather", "description": "The weather of a city.",
                        "parameters": {"type": "object", "additionalProperties": False, "required": ["city", "days"],
                                       "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"},
                                                      "note": {"type": "string", "maxLength": 12}}}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds two numbers.",
                                        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                                                       "required": ["a", "b"], "additionalProperties": False}}}
ASK = [{"role": "user", "content": "What will the weather be in Paris for the next 3 days?"}]


class Add(pydantic.BaseModel):
    a: int
    b: typing.Literal[2, 3]


class Tools(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--chat-template", TEMPLATE)
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.cluster.port}/v1", api_key="none", max_retries=0, timeout=120)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.cluster.check_quiet()
        cls.cluster.stop()

    def chat(self, messages=ASK, **more):
        more = {"max_tokens": 120, "temperature": 0, "tools": [WEATHER, ADD], **more}
        return self.client.chat.completions.create(model="default", messages=messages, **more)

    def check_calls(self, choice, names=("get_weather", "add")):
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertIsNone(choice.message.content)
        self.assertGreater(len(choice.message.tool_calls), 0)
        self.assertEqual(len({c.id for c in choice.message.tool_calls}), len(choice.message.tool_calls))
        for call in choice.message.tool_calls:
            self.assertEqual(call.type, "function")
            self.assertIn(call.function.name, names)
            arguments = json.loads(call.function.arguments)
            if call.function.name == "add":
                self.assertEqual(set(arguments), {"a", "b"})
                self.assertTrue(all(type(v) is int for v in arguments.values()), arguments)
            else:
                self.assertIn(arguments["city"], ["Paris", "Rome"])
                self.assertIs(type(arguments["days"]), int)
                self.assertLessEqual(set(arguments), {"city", "days", "note"})

    def test_round_trip(self):
        messages = list(ASK)
        first = self.chat(messages, tool_choice={"type": "function", "function": {"name": "get_weather"}})
        self.check_calls(first.choices[0], ["get_weather"])
        self.assertEqual(len(first.choices[0].message.tool_calls), 1)
        messages.append(first.choices[0].message)  # as the client's own examples do
        for call in first.choices[0].message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "clear", "degrees": 21})})
        second = self.chat(messages, max_tokens=30)
        self.assertIn(second.choices[0].finish_reason, ["stop", "length"])
        self.assertTrue(second.choices[0].message.content)
        self.assertIsNone(second.choices[0].message.tool_calls)
        self.assertGreater(second.usage.prompt_tokens, first.usage.prompt_tokens + 20)
        # the prompt of the second begins as the first's: tools and the question are not computed again
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, first.usage.prompt_tokens - 128)
        # the same as plain dictionaries
        again = self.chat([m if isinstance(m, dict) else m.model_dump() for m in messages], max_tokens=30)
        self.assertEqual(again.choices[0].message.content, second.choices[0].message.content)

    def test_required(self):
        for i in range(4):
            a = self.chat(tool_choice="required", temperature=1, seed=i, max_tokens=900, n=2)
            for choice in a.choices:
                if choice.finish_reason != "length":
                    self.check_calls(choice)
        a = self.chat(tool_choice="required", parallel_tool_calls=False)
        self.check_calls(a.choices[0])
        self.assertEqual(len(a.choices[0].message.tool_calls), 1)

    def test_streamed(self):
        how = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 5, "temperature": 1}
        whole = self.chat(**how).choices[0]
        self.check_calls(whole)
        name, arguments, ids, pieces, finish = "", "", set(), 0, None
        for chunk in self.chat(stream=True, **how):
            for choice in chunk.choices:
                self.assertFalse(choice.delta.content)
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or []:
                    self.assertEqual(call.index, 0)
                    if call.id:
                        self.assertEqual((name, arguments), ("", ""))
                        ids.add(call.id)
                        name = call.function.name
                    pieces += bool(call.function.arguments)
                    arguments += call.function.arguments or ""
        self.assertEqual((name, arguments, finish, len(ids)), (whole.message.tool_calls[0].function.name,
                                                               whole.message.tool_calls[0].function.arguments, "tool_calls", 1))
        self.assertGreater(pieces, 2)  # as they are generated

    def test_stream_helper(self):
        """The client's own helper puts a stream together, and parses arguments by a pydantic model whose schema is strict."""
        tool = openai.pydantic_function_tool(Add, name="add")
        self.assertTrue(tool["function"]["strict"])
        with self.client.chat.completions.stream(model="default", messages=[{"role": "user", "content": "What is 2 plus 3?"}], tools=[tool],
                                                 tool_choice="required", parallel_tool_calls=False, max_tokens=80, temperature=0) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.delta", kinds)
        self.assertEqual(kinds.count("tool_calls.function.arguments.done"), 1)
        self.assertEqual(final.choices[0].finish_reason, "tool_calls")
        parsed = final.choices[0].message.tool_calls[0].function.parsed_arguments
        self.assertIsInstance(parsed, Add)
        self.assertIn(parsed.b, [2, 3])

    def test_auto(self):
        """Text stays text, held by strict tools or not, streamed or not."""
        strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
        for tools in ([ADD], [strict]):
            a = self.chat([{"role": "user", "content": "Say hello."}], tools=tools, max_tokens=12)
            chunks = list(self.chat([{"role": "user", "content": "Say hello."}], tools=tools, max_tokens=12, stream=True))
            message = a.choices[0].message
            for call in message.tool_calls or []:
                json.loads(call.function.arguments)
            self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), message.content or "")
        # beside a format of the answer: an object of it, or a call
        shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}},
                                                                                "required": ["ok"]}}}
        a = self.chat(response_format=shape, max_tokens=100)
        if not a.choices[0].message.tool_calls:
            self.assertIsInstance(json.loads(a.choices[0].message.content)["ok"], bool)

    def test_none(self):
        without = self.client.chat.completions.create(model="default", messages=ASK, max_tokens=8, temperature=0)
        a = self.chat(tool_choice="none", max_tokens=8)
        self.assertEqual(a.choices[0].message.content, without.choices[0].message.content)
        self.assertEqual(a.usage.prompt_tokens, without.usage.prompt_tokens)

    def test_refused(self):
        bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}}
        for more, field, word in [({"tools": [bad], "tool_choice": "required"}, "tools", "tools[0].function.parameters.properties.x.not"),
                                  ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice", "sub"),
                                  ({"tools": [{**ADD, "extra": 1}]}, "tools[0].extra", "extra")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.chat(**more)
            self.assertEqual(e.exception.param, field)
            self.assertIn(word, e.exception.message)


class Template(unittest.TestCase):
    def test_bad_file(self):
        path = os.path.join(tempfile.mkdtemp(prefix="longspan-test-"), "bad.jinja")
        with open(path, "w") as f:
            f.write("{% if %}")
        out, err = cluster.run("generate", "--local", "--model", "random:tiny", "--chat-template", path, "--max-tokens", 1, "--prompt", "x", check=None)
        self.assertIn("chat-template", out + err)
        os.remove(path)
        os.rmdir(os.path.dirname(path))


if __name__ == "__main__":
    cluster.main()
