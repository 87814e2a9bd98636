#!/usr/bin/env python3
"""Writes chats.json: chats as Jinja renders them with the model's own template and with Llama 3's, and their ids.

The environment is the one that chat templates are written for: trim_blocks, lstrip_blocks, no strftime_now (the date stays the template's
default). Llama's control tokens take the places of four control tokens that SmolLM2 does not use in chats; LLAMA_NAMES says which. Llama's
templates are laid out anew here; their branches for tools, which Longspan never takes, hold words of ours.

    python3 tests/golden/tokenizer/make_chats.py MODEL.gguf     (needs: tokenizers, jinja2; made with tokenizers 0.23.3, jinja2 3.1.6)
"""
import json
import pathlib
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import gguf_vocab

HERE = pathlib.Path(__file__).resolve().parent
LLAMA_NAMES = {
    "<repo_name>": "<|begin_of_text|>",
    "<reponame>": "<|start_header_id|>",
    "<file_sep>": "<|end_header_id|>",
    "<filename>": "<|eot_id|>",
}

LLAMA3 = r"""{# one message after the other #}
{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = "<|start_header_id|>" + message["role"] + "<|end_header_id|>\n\n"+ message["content"] | trim + "<|eot_id|>" %}
    {% if loop.index0 == 0 %}
        {% set content = bos_token + content %}
    {% endif %}
    {{- content -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{% endif %}
"""

LLAMA3_ALWAYS = (
    r"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    r"'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    r"{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

LLAMA31 = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
DATE
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- the system message has its own place #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "tools may be called\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "tools: " + builtin_tools | join(", ") + "\n\n"}}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {%- if t %}{{- t | tojson(indent=4) }}{%- endif %}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
    {%- else %}
        {{- raise_exception("no user message") }}
    {%- endif %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {{- call | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
DATE31 = r"""    {%- set date_string = "26 Jul 2024" %}"""
DATE32 = r"""    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}"""

U, A, S = "user", "assistant", "system"
CHATS = [
    [(U, "Hello")],
    [(S, "You are brief."), (U, "What is 12 + 34?")],
    [(U, "Hi"), (A, "Hello! How can I help?"), (U, "Tell me about the river Nile.\n\nIn two paragraphs.")],
    [(S, ""), (U, "")],
    [(U, "  leading and trailing spaces \n\n")],
    [(U, "\n\nlines before"), (A, "\tand after\t"), (U, "\u00a0\u3000\x1c wide spaces\u2028")],
    [(U, "   "), (A, " \n ")],
    [(U, "It's 3.14159, isn't it? naïve Straße 日本語 👨‍👩‍👧 e\u0301")],
    [(A, "I begin."), (S, "Late system."), (U, "ok"), (U, "twice")],
    [(S, "  padded system  "), (U, "x" * 200), (A, "1234567890" * 5)],
    [(U, "{{ messages }} {% if %} \\n \"quoted\" 'single' <b>&amp;</b>")],
    [(U, "a" + "\n" * 30 + "b" + " " * 40)],
]


def tokenizer_of(vocab, merges, controls):
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    return t


def main():
    vocab, merges, controls, meta = gguf_vocab.vocab_of(sys.argv[1])
    rename = lambda s: LLAMA_NAMES.get(s, s)
    smollm2 = tokenizer_of(vocab, merges, controls)
    llama = tokenizer_of({rename(k): i for k, i in vocab.items()}, merges, [rename(c) for c in controls])
    templates = {
        "smollm2": meta["tokenizer.chat_template"],
        "llama3": LLAMA3,
        "llama3-always": LLAMA3_ALWAYS,
        "llama3.1": LLAMA31.replace("DATE", DATE31, 1),
        "llama3.2": LLAMA31.replace("DATE", DATE32, 1),
    }
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    chats = []
    for name, template in templates.items():
        for chat in CHATS:
            for prompt in (False, True):
                messages = [{"role": r, "content": c} for r, c in chat]
                text = env.from_string(template).render(messages=messages, add_generation_prompt=prompt, bos_token="<|begin_of_text|>")
                ids = (smollm2 if name == "smollm2" else llama).encode(text, add_special_tokens=False).ids
                chats.append({"template": name, "messages": chat, "prompt": prompt, "text": text, "ids": ids})
    lines = ",\n".join(json.dumps(c) for c in chats)
    names = json.dumps(LLAMA_NAMES)
    (HERE / "chats.json").write_text(f'{{"templates": {json.dumps(templates, indent=1)},\n"llama_names": {names},\n"chats": [\n{lines}\n]}}\n')
    print(len(chats), "chats")


main()
