"""What we render with a folder's template is what plain Jinja renders, as `transformers` sets it up."""

import json
import random
from functools import cache

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.thinking import with_thinking
from tests.helpers.official_forms import FORMS, LING_2_0, LING_2_6

WORDS = (
    "Hi", " ", "\n", "naïve", "日本", "🙂", "<role>", "</role>", "<|role_end|>", "<|endoftext|>", "{{ x }}", "\\n",
    "\ue000", "a<b", '"', "'", "detailed thinking maybe", "\u2028",
)  # fmt: skip
THINKING = {"default": {}, "on": {"enable_thinking": True}, "off": {"enable_thinking": False}}


def conversation(rng: random.Random, *, reasoning: bool = True, tools: bool = True) -> tuple[list[dict], list[dict]]:
    """(messages, tools) with everything that a conversation may have, by chance."""

    def text(least=0):
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(least, 6)))

    def value(depth=0):
        kinds = [text, lambda: rng.randint(-9, 9), lambda: rng.random(), lambda: None, lambda: rng.random() < 0.5]
        kinds += [lambda: [value(1)], lambda: {text(): value(1)}] if not depth else []
        return rng.choice(kinds)()

    messages = [{"role": "system", "content": text()}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text()})
        while rng.random() < 0.7:
            message = {"role": "assistant", "content": text()}
            if reasoning and rng.random() < 0.4:
                message["reasoning"] = text(1)
            calls = rng.randint(0, 2)
            message |= {"tool_calls": [{"name": "f", "arguments": {text(1): value()}} for _ in range(calls)]}
            messages.append(message)
            messages += [{"role": "tool", "content": text()} for _ in range(calls)]
    described = [{"type": "function", "function": {"name": "f", "description": text()}}]
    return messages, described * (tools and rng.randint(0, 2))


@cache
def plain(source: str):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def to_json(value, ensure_ascii=False):
        return json.dumps(value, ensure_ascii=ensure_ascii)

    environment.filters["tojson"] = to_json
    return environment.from_string(source)


def openai(message: dict) -> dict:
    """As a client of an engine sends it."""
    message = dict(message)
    if "reasoning" in message:
        message["reasoning_content"] = message.pop("reasoning")
    if "tool_calls" in message:
        message["tool_calls"] = [{"type": "function", "function": call} for call in message["tool_calls"]]
    return message


def joined(template, messages, **options) -> str:
    return "".join(piece.text for piece in template.render(messages, **options))


@pytest.mark.parametrize("form", FORMS)
def test_a_folders_template_is_rendered_as_plain_jinja_renders_it(form):
    """200 conversations with tools, calls, results, reasoning, unicode and texts that spell special tokens."""
    template, rewritten = FolderTemplate(FORMS[form], form), 0
    for seed in range(200):
        rng = random.Random(seed)
        messages, tools = conversation(rng)
        thinking, prompt = rng.choice(list(THINKING)), rng.random() < 0.5
        values = THINKING[thinking] | {"tools": tools or None, "add_generation_prompt": prompt}
        wanted = plain(FORMS[form]).render(messages=[openai(message) for message in messages], **values)
        try:
            assert joined(with_thinking(template, thinking), messages, tools=tools, prompt=prompt) == wanted
        except ValueError as error:
            assert not prompt and "rewrites history" in str(error)
            assert form != "2.6" or thinking == "off", "history only grows, but for reasoning after an empty one"
            rewritten += 1
    assert rewritten < 60


def test_the_default_template_with_json_calls_is_the_2_0_form():
    for seed in range(200):
        rng = random.Random(seed)
        messages, _ = conversation(rng, reasoning=False, tools=False)
        prompt = rng.random() < 0.5
        values = {"add_generation_prompt": prompt, "messages": [openai(message) for message in messages]}
        ours = joined(ChatTemplate(tool_format="json"), messages, prompt=prompt)
        assert ours == plain(LING_2_0).render(**values)


def test_a_call_of_the_2_6_form_is_the_documented_one():
    calls = [{"name": "f", "arguments": {"k": "v", "k2": [1]}}, {"name": "g", "arguments": {}}]
    answer = {"role": "assistant", "content": "See", "tool_calls": calls}
    text = joined(FolderTemplate(LING_2_6, "2.6"), [{"role": "user", "content": "Hi"}, answer])
    assert text.partition("</think>")[2] == (
        "See\n<tool_call>f<arg_key>k</arg_key>\n<arg_value>v</arg_value><arg_key>k2</arg_key>\n<arg_value>[1]"
        "</arg_value>\n</tool_call>\n<tool_call>g</tool_call><|role_end|>"
    )


@pytest.mark.parametrize("form", FORMS)
def test_what_is_trained_is_the_answer_and_the_end_of_its_turn(form):
    messages = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4", "reasoning": "two"}]
    pieces = with_thinking(FolderTemplate(FORMS[form], form), "on").render(messages)
    opens = "" if form == "2.6" else "<think>"
    assert "".join(piece.text for piece in pieces if piece.trained) == f"{opens}two</think>4<|role_end|>"
