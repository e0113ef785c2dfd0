"""A model folder whose chat template opens the reasoning."""

import json

import jsonschema
import openai
import pytest

from benchmarks.server_bodies import SCHEMA
from ling_jax.chat.folder_template import FolderTemplate
from tests.helpers.served import NAME, running, tokenizer

OPENING = "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}{% endfor %}<role>ASSISTANT</role><think>"
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def thinker():
    with running(template=FolderTemplate(OPENING, "chat_template.jinja")) as found:
        yield found
        found.wait_until_idle()


def ask(server, **fields):
    fields = {"model": NAME, "messages": [{"role": "user", "content": "some"}], "max_tokens": 200, "seed": 3} | fields
    return server.client().chat.completions.create(**fields)


def test_what_comes_before_the_mark_is_reasoning(thinker):
    choice = ask(thinker, max_tokens=20).choices[0]
    assert choice.message.reasoning_content and choice.message.content == ""
    chunks = list(ask(thinker, max_tokens=20, stream=True))
    streamed = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
    assert "".join(streamed) == choice.message.reasoning_content
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_a_schema_holds_behind_the_reasoning(thinker):
    ends = {str(tokenizer().token_to_id("</think>")): 100}
    choice = ask(thinker, response_format=FORM, logit_bias=ends).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_an_option_that_the_template_does_not_read_is_refused(thinker):
    for fields, param in (
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ):
        with pytest.raises(openai.BadRequestError, match="it would change nothing") as raised:
            ask(thinker, extra_body=fields)
        assert raised.value.param == param


def test_tools_that_the_template_does_not_read_are_refused(thinker):
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(openai.BadRequestError, match="reads no tools; leave them out"):
        ask(thinker, tools=tools)
