"""The Jinja source that exports carry renders what `ChatTemplate` renders."""

import json

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ling_jax.chat.default_source import default_source
from ling_jax.chat.template import ChatTemplate

WORDS = [
    "a",
    "é",
    "日本",
    "\n",
    " ",
    "<b>",
    "&'\"",
    "{{ x }}",
    "</think>",
    "<|role_end|>",
    "detailed thinking on",
    "🦊",
]
TEXT = st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
ARGUMENT = st.lists(st.sampled_from(["a", "é", "日本 語", "<b>", "&'\"", "{{ x }}", "🦊"]), min_size=1, max_size=4).map(
    "".join
)
VALUE = st.one_of(ARGUMENT, st.none(), st.booleans(), st.integers(-5, 5), st.lists(ARGUMENT), st.just({"k": ["é"]}))
ARGUMENTS = st.dictionaries(ARGUMENT, VALUE, max_size=3)
CALL = st.builds(dict, name=st.sampled_from(["f", "get_weather"]), arguments=ARGUMENTS)
SPOKEN = st.builds(
    dict, role=st.just("assistant"), content=TEXT, reasoning=st.none() | TEXT, tool_calls=st.lists(CALL, max_size=3)
)
HEARD = st.builds(dict, role=st.sampled_from(["user", "tool"]), content=TEXT)
SYSTEM = st.builds(dict, role=st.just("system"), content=TEXT)
MESSAGES = st.tuples(st.lists(SYSTEM, max_size=1), st.lists(HEARD | SPOKEN, min_size=1, max_size=6)).map(
    lambda parts: parts[0] + parts[1]
)
TOOLS = st.lists(st.just({"type": "function", "function": {"name": "f", "description": "é <b>"}}), max_size=2)


def compiled():
    """As `transformers` sets Jinja up."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def refuse(text):
        raise jinja2.TemplateError(text)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(default_source())


TEMPLATE = compiled()


def wanted(messages, tools=(), *, prompt=False, **options):
    return "".join(piece.text for piece in ChatTemplate(**options).render(messages, tools=tools, prompt=prompt))


def as_transformers(message, *, wrap):
    """The names that people use there; calls as OpenAI writes them where `wrap`."""
    message = {{"reasoning": "reasoning_content"}.get(key, key): value for key, value in message.items()}
    if wrap and message.get("tool_calls"):
        message["tool_calls"] = [{"type": "function", "function": call} for call in message["tool_calls"]]
    return message


@settings(max_examples=200)
@given(MESSAGES, TOOLS, st.booleans(), st.booleans(), st.sampled_from([None, "xhigh"]), st.booleans())
def test_the_source_renders_what_the_template_does(messages, tools, prompt, thinking, effort, wrap):
    found = TEMPLATE.render(
        messages=[as_transformers(message, wrap=wrap) for message in messages],
        tools=tools or None,
        add_generation_prompt=prompt,
        enable_thinking=thinking,
        reasoning_effort=effort,
    )
    assert found == wanted(messages, tools, prompt=prompt, thinking=thinking, effort=effort)


def test_options_may_be_left_undefined():
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert TEMPLATE.render(messages=messages) == wanted(messages)


def test_a_later_system_message_is_refused():
    with pytest.raises(jinja2.TemplateError, match="only the first message may be of the system"):
        TEMPLATE.render(messages=[{"role": "user", "content": "Hi"}, {"role": "system", "content": "no"}])
