#!/usr/bin/env python3
"""Writes templates.json: chat templates as the `transformers` package renders them over random conversations, and small templates, each for
a construct or two, as Jinja evaluates them in the same environment.

The families' templates in templates/ are written for these tests: they say in other words what the families' own say, with the same
constructs. SmolLM2's own is in chats.json, from its GGUF file. With --other DIR the *.jinja files of a directory are taken instead (templates of others are
not committed), and the output goes to the second argument.

    python3 tests/golden/tokenizer/make_templates.py [--other DIR OUT]    (needs: transformers; made with 5.23.0, jinja2 3.1.6)
"""
import datetime
import json
import pathlib
import random
import sys

import jinja2
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).resolve().parent
DATE = datetime.datetime(2025, 3, 9)
BOS = {"llama2": "<s>", "mistral-v0.1": "<s>", "mistral-v0.3": "<s>", "llama3": "<|begin_of_text|>", "llama3.1": "<|begin_of_text|>"}
EOS = {"llama2": "</s>", "mistral-v0.1": "</s>", "mistral-v0.3": "</s>", "qwen2": "<|im_end|>", "qwen2.5": "<|im_end|>", "qwen3": "<|im_end|>",
       "smollm2": "<|im_end|>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return DATE


chat_template_utils.datetime = Clock

WORDS = ["", " ", "Hello", "  padded \n", "What is 2 + 2?", "line\nline\n\nline", "naïve Straße 日本語 👍", "\u00a0\u3000wide\u2028", "<think>\nhm\n</think>\n\nanswer",
         "a </think> b <think> c", "<tool_response>\n{}\n</tool_response>", "{{ messages }} {% if %}", "\"quoted\" 'single' \\ back\tslash <b>&amp;</b>",
         "<|im_end|>\n<|im_start|>system\n", "[INST] <<SYS>> [/INST]", "\x01\x1f\x7f"]
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather \"now\" in a city – ü", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}, "strict": True,
                                                                                      "x": [1, 2.5, -1e-7, None, 1e22, []]}, "return": {"type": "number"}}},
]


def random_chat(draw):
    """Mostly well-formed; at times roles come in an order that templates refuse."""
    messages = []
    tools = draw.choice([None, None, TOOLS[:1], TOOLS])
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": draw.choice(WORDS)})
    for _ in range(draw.randrange(1, 4)):
        messages.append({"role": "user", "content": draw.choice(WORDS)})
        if draw.random() < 0.2:
            continue
        if tools and draw.random() < 0.6:
            call = {"id": "abcdefgh" + draw.choice("0123"), "type": "function", "function": {
                "name": "get_weather", "arguments": draw.choice([{"city": "Köln"}, {"city": "a\"b", "n": 1.0}, {}])}}
            calls = [call] * draw.choice([1, 1, 2])
            message = {"role": "assistant", "content": draw.choice(["", "I look.", None]), "tool_calls": calls}
            if draw.random() < 0.2:
                message["reasoning_content"] = draw.choice(["\nwhy\n", None])
            messages.append(message)
            for c in calls:
                messages.append({"role": "tool", "content": draw.choice(["21.5", "{\"t\": 3}", "ä\n"]), "tool_call_id": c["id"], "name": "get_weather"})
            if draw.random() < 0.3:
                continue
        message = {"role": "assistant", "content": draw.choice(WORDS)}
        if draw.random() < 0.2:
            message["reasoning_content"] = draw.choice(["because", "\n\nlong\nthought\n", ""])
        messages.append(message)
    if draw.random() < 0.6 and messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": draw.choice(WORDS)})
    kwargs = {}
    if draw.random() < 0.3:
        kwargs["enable_thinking"] = draw.random() < 0.5
    if draw.random() < 0.2:
        kwargs["tools_in_user_message"] = False
    if draw.random() < 0.2:
        kwargs["date_string"] = "1 Jan 2030"
    return {"messages": messages, "tools": tools, "kwargs": kwargs, "prompt": draw.random() < 0.5}


def render(template, chat, bos, eos):
    compiled = chat_template_utils._compile_jinja_template(template)
    tokens = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
    try:
        return {"text": compiled.render(messages=chat["messages"], tools=chat["tools"], documents=None, add_generation_prompt=chat["prompt"],
                                        **tokens, **chat["kwargs"])}
    except jinja2.exceptions.UndefinedError:
        return {"error": True}
    except jinja2.exceptions.TemplateError as e:
        return {"exception": str(e)}
    except Exception:
        return {"error": True}


def family(name, template, n, draw):
    bos, eos = BOS.get(name), EOS.get(name)
    chats = []
    for _ in range(n):
        chat = random_chat(draw)
        if "tools" not in template: # Longspan refuses tools then
            chat["tools"] = None
        chat.update(render(template, chat, bos, eos))
        if chat["tools"] is None:
            del chat["tools"]
        if chat.get("error") and draw.random() < 0.7:
            continue
        chats.append(chat)
    return {"name": name, "template": template, "bos": bos, "eos": eos, "chats": chats}


VARIABLE = {"a": 1, "b": [1, 2.5, "x", None, True, {"k": "v"}], "s": "  Hello, Wörld\n", "n": None, "t": True, "f": 0.1, "e": [], "d": {"z": 1, "a": {"b": [3]}, "items": 5},
            "m": [{"role": "user", "x": 3}, {"role": "assistant", "x": 1}, {"role": "user", "x": 2}], "q": "it's \"q\" \\ \t\u200b\x07é", "i": -7, "w": "a,b,,c",
            "big": 123456789012345678, "fl": [1e16, 1e15, 123456.789, 1e-4, 1e-5, 2.0, -0.0, 1.5e300, 0.30000000000000004]}
SNIPPETS = r"""
{{ v.a }}{{ v['b'] }}{{ v.b[0] }}{{ v.b[-1].k }}{{ v.missing }}|{{ v.b[9] }}|
{{ v.missing.more }}
{{ missing }}{{ missing is defined }}{{ v.n is none }}{{ v.x is undefined }}
{{ v.s|trim }}|{{ v.s|upper }}|{{ v.s|length }}|{{ v.s.strip() }}|{{ v.s.lstrip() }}|{{ v.s.rstrip('\n') }}|{{ v.s|trim|title }}|{{ v.s|trim|capitalize }}
{{ v.b|tojson }} {{ v.d|tojson(indent=2) }} {{ v.q|tojson }} {{ v.fl|tojson }} {{ v.e|tojson(indent=1) }} {{ {}|tojson }}
{{ v.d|tojson(sort_keys=true) }} {{ v.d|tojson(separators=(',', ':')) }} {{ v.s|tojson(ensure_ascii=true) }} {{ missing|tojson }}
{{ v.d|tojson(sort_keys=true) }} {{ v.d|tojson(separators=(',', ':')) }} {{ v.q|tojson(ensure_ascii=true) }}
{{ v.b }} {{ v.d }} {{ v.q }} {{ [v.q] }} {{ v.fl }} {{ (1,) }} {{ (1, 'a') }} {{ () }} {{ none }} {{ true }}
{{ v.b[1:3] }}{{ v.b[::-1] }}{{ v.b[::2] }}{{ v.b[-2:] }}{{ v.b[:-1]|length }}{{ v.s[2:7] }}{{ v.s[::-1] }}{{ v.s[-3] }}{{ v.b[5:1:-2] }}{{ v.b[9:] }}
{{ 1 + 2 * 3 ** 2 - 7 // 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** -1 }} {{ 1.5 * 2 }} {{ 'ab' * 3 }} {{ [1] * 2 }} {{ 1 ~ 'a' ~ none }} {{ -2 ** 2 }}
{{ 'a' + 'b' 'c' }} {{ 'a' + 1 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' in 'cab' }} {{ 'x' not in v.b }} {{ 'z' in v.d }} {{ not 1 == 2 }} {{ [1, 2] == [1, 2] }}
{{ 1 if v.t else 2 }} {{ 1 if v.n }} {{ 1 if v.n else 2 if v.e else 3 }} {{ v.n or 'x' }} {{ v.t and 5 }} {{ (v.n or v.e)|length }}
{% for x in v.b %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ x }};{% endfor %}
{% for k, x in v.d.items() %}{{ k }}={{ x }}{% if not loop.last %}, {% endif %}{% endfor %} {% for k in v.d %}{{ k }}{% endfor %} {{ v.d['items'] }} {{ v.d|items|list }}
{% for x in v.e %}x{% else %}none{% endfor %} {% for c in 'añb' %}{{ c }}-{% endfor %} {% for x in missing %}x{% else %}undefined{% endfor %} {{ v.d.keys()|list }} {{ v.d.values()|list }}
{% for x in v.n %}x{% endfor %}
{% for m in v.m if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}:{{ m.x }} {% endfor %}{% for i in range(5) if i is odd %}{{ i }}{% endfor %}{{ range(3)|list }}{{ range(5, 1, -2)|list }}
{% for x in v.b %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% set ns = namespace(n=0, s='') %}{% for x in [1, 2, 3] %}{% set ns.n = ns.n + x %}{% set ns.s = ns.s ~ x %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.missing }}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = [3, 4] %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t }}
{% set a, b = [3, 4, 5] %}
{% set x.y = 1 %}
{% set x %}  block {{ v.a }} {% endset %}[{{ x }}]{% set x | trim | upper %} up {% endset %}[{{ x }}]{% filter upper %}ab{{ v.a }}c{% endfilter %}
{% macro m(a, b='B', c=none) %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(a=3, c=4) }}{{ m() }}{% set r = m('x')|length %}{{ r }}
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}{% macro outer() %}[{{ caller() }}]{% endmacro %}{% call outer() %}in{{ v.a }}{% endcall %}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% with a = 1, b = v.a %}{{ a }}{{ b }}{% endwith %}{{ a }}|{% generation %}said{% endgeneration %}
{{ v.w.split(',') }}{{ v.w.split(',', 1) }}{{ 'a  b c'.split() }}{{ ' a  b c '.split(none, 1) }}{{ v.w.split('b')[0] }}{{ v.w.split('x')[-1] }}{{ 'aXbX'.split('X') }}{{ 'l1\nl2\r\nl3'.splitlines() }}
{{ v.w.replace(',', ';') }}{{ v.w.replace(',', '', 1) }}{{ v.w|replace('a', 'b') }}{{ 'ab'.replace('', '-') }}{{ v.w.startswith('a') }}{{ v.w.endswith(('b', 'c')) }}{{ v.w.find('b') }}{{ v.w.count(',') }}{{ 'xay'.strip('xy') }}
{{ v.w.upper() }}{{ 'ÄÖ'.lower() }}{{ 'hello world'.title() }}{{ 'hELLO'.capitalize() }}{{ ','.join(['a', 'b']) }}{{ 'a1'.removeprefix('a') }}{{ 'a1'.removesuffix('1') }}{{ '12'.isdecimal() }}
{{ v.d.get('z') }}{{ v.d.get('q') }}{{ v.d.get('q', 'dflt') }}{{ v.d.z is defined }}{{ v.d.q is defined }}{{ v.d.items is callable }}
{{ v.x|default('d') }}{{ v.n|default('d') }}{{ v.n|default('d', true) }}{{ v.e|default('d', boolean=true) }}{{ missing|d }}|{{ missing.x|default('d') }}
{{ v.b|join(', ') }} {{ v.m|map(attribute='role')|join('-') }} {{ v.m|selectattr('role', 'equalto', 'user')|list|length }} {{ v.m|rejectattr('x', 'gt', 1)|list }} {{ ['a', 'b']|map('upper')|list }} {{ v.m|selectattr('x')|list|length }}
{{ v.b|first }}{{ v.b|last }}{{ v.b|length }}{{ v.b|reverse|list }}{{ [3, 1, 2]|sort }}{{ ['b', 'A', 'c']|sort }}{{ v.m|sort(attribute='x') }}{{ [1, 2, 2, 1]|unique|list }}{{ [1, 2]|sum }}{{ [4, 9, 2]|max }}{{ [4, 9, 2]|min }}{{ v.d|dictsort|length }}
{{ '42'|int }}{{ 'x'|int }}{{ 'x'|int(7) }}{{ 3.9|int }}{{ '1.5'|float }}{{ v.i|abs }}{{ 5|string + 'x' }}{{ v.b|string }}{{ [1, 0, 2]|select|list }}{{ [1, 2, 3, 4]|reject('even')|list }}{{ v.big }}
{{ 'a\nb\n\nc'|indent(2) }}|{{ 'a\nb'|indent(3, true) }}|{{ 'a\nb'|indent('>>') }}
{{ v.s is string }}{{ v.b is iterable }}{{ v.d is mapping }}{{ v.a is number }}{{ v.t is boolean }}{{ v.t is true }}{{ v.f is float }}{{ v.a is integer }}{{ v.b is sequence }}{{ v.d is sequence }}{{ v.n is iterable }}{{ v.s is iterable }}{{ missing is iterable }}
{{ 4 is even }}{{ 4 is divisibleby 2 }}{{ 4 is eq 4 }}{{ 4 is gt 3 }}{{ 'a' is in ['a'] }}{{ v.a is not none }}{{ v.a is not defined }}{{ 'AB' is upper }}{{ 'ab' is lower }}{{ 3 is not odd }}{{ v.n is false }}
{{ {'a': 1, 'b': {'c': [1, {}]}}['b']['c'][1] }}{{ {'a': 1}.a }}{{ {1: 2, true: 3}[1] }}{{ dict(a=1, b='x') }}{{ {'x': 1}|tojson }}
{{ 'tab\there \x41 \u00e9 \' \" \\ \q' }}{{ "double 'single'" }}{{ 1_000 }}{{ 1.5e3 }}
{{ 1 if 1 else 2 }}{# comment #} a {#- strip -#} b {{- 'c' -}} d
  x{% if true %} y {% endif %}
  {%- if true -%}  tight  {%- endif -%}  end
{% raw %}{{ not evaluated }} {% if %}{% endraw %}|{%- raw -%}  x  {%- endraw -%}  |
  {%+ if true %}plus{% endif +%}
{{ raise_exception('stop here') }}
{{ 1 / 0 }}
{{ v.s + v.n }}
{{ v.b < 3 }}
{{ 'a'.nothing }}|{{ v.a.b }}|{{ v.s.x is defined }}
{{ 'x' if missing else 'y' }}{{ missing == none }}{{ missing|length }}{{ missing ~ 'x' }}{{ not missing }}{{ missing or 'z' }}
{{ missing + 'x' }}
{{ v.m[0].role == 'user' and v.m[1]['role'] != 'user' }}{{ (v.m|length - 1) - 0 }}{{ v.m[v.m|length - 1].x }}{{ not(v.s.startswith('  ') and v.s.endswith('\n')) }}
{{ v.d.a.b.0 }}{{ 'a' 'b' | upper }}{{ -v.a|abs }}{{ (1, 2)[0] }}{{ [1, 2,] }}{{ 10 % 4 ~ 'x' }}{{ 1 + 1 ~ 2 + 2 }}
{{ 1 is defined and 2 is not none or 3 }}{{ 'a' ~ 'b' in 'xabx' }}{{ 1 in [1] == true }}{{ 2 == 2 in [2] }}{{ not 1 in [2] }}
{% if v.a == 1 %}one{% elif v.a == 2 %}two{% else %}more{% endif %}{% if v.n %}{% elif v.t %}elif{% endif %}{% if missing %}{% else %}else{% endif %}
{%- for row in [[1, 2], [3, 4]] %}{% for c in row %}{{ loop.index }}{{ c }}{% endfor %}{{ loop.index }};{% endfor %}{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }}{% endfor %}{{ loop is defined }}
{% for x in v.b %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}
""".strip("\n").split("\n")
BLOCKS = ["  {% if true %}\n  kept\n  {% endif %}\nend\n", "a\n  {%- if true %}\n\nb\n{% endif -%}\n\n c", "{% for x in [1, 2] %}\n  {{ x }}\n{% endfor %}\n\n", "x  {# c #}\ny\n  {#- d -#}\n z",
          "  {{ 1 }}\n  {% set a = 1 %}  \n{{ a }}", "a\r\nb{{ '\r\n' }}{% if 1 %}\r\nc{% endif %}\r\n", "\t{% if 1 %}x\n\t{% endif %}y", "{% if 1 -%}\n  a\n{%- endif %}\n\n\nb\n\n", " \n {% if 1 %} {% endif %}",
          "{% set x %}\n a\n{% endset %}[{{ x }}]", "{{ 1 }}\n\n{{ 2 -}}\n\n{{- 3 }}", "  {%+ if 1 %}a\n  {%+ endif %}b", "{% if 1 +%}\na{% endif %}\n{#- x #}\nb", "{% raw %}\n a {% endraw %}\nb"]


def snippets():
    out = []
    for template in SNIPPETS + BLOCKS:
        compiled = chat_template_utils._compile_jinja_template(template)
        try:
            out.append({"template": template, "text": compiled.render(v=VARIABLE)})
        except Exception:
            out.append({"template": template})
    return out


def main():
    draw = random.Random(11)
    if len(sys.argv) > 3:
        families = [family(p.stem, p.read_text(), 30, draw) for p in sorted(pathlib.Path(sys.argv[2]).glob("*.jinja"))]
        out = pathlib.Path(sys.argv[3])
    else:
        families = [family(p.stem, p.read_text(), 14, draw) for p in sorted((HERE / "templates").glob("*.jinja"))]
        own = json.loads((HERE / "chats.json").read_text())["templates"]["smollm2"]
        families.append(family("smollm2", own, 14, draw))
        out = HERE / "templates.json"
    parts = [f'"date": "{DATE:%Y-%m-%d}",\n"variable": {json.dumps(VARIABLE)}', '"families": [']
    for i, f in enumerate(families):
        chats = ",\n".join(json.dumps(c) for c in f.pop("chats"))
        parts[-1] += ("," if i else "") + f'\n{json.dumps(f)[:-1]}, "chats": [\n{chats}\n]}}'
    parts[-1] += "]"
    parts.append('"snippets": [\n' + ",\n".join(json.dumps(s) for s in snippets()) + "\n]")
    out.write_text("{" + ",\n".join(parts) + "}\n")
    print(sum(len(c) for c in parts), "bytes")


main()
