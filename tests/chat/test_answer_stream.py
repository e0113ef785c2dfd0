"""An answer that comes in pieces is read as the whole one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.answer_stream import AnswerStream
from ling_jax.chat.tool_calls import parse_either, render_call

CALL = {"name": "f", "arguments": {"a": 1, "b": "x < y"}}
FORMS = [render_call(CALL, form) for form in ("xml", "xml_lines", "json")]
NESTED = '<tool_call>\n{"name": "f", "arguments": {"a": "x</tool_call>\\n"}}\n</tool_call>'
WORDS = [
    *FORMS, NESTED, "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
    "</arg_value>", "f", "\n", "\n\n", " ", "{", "}", "[", "]", '"', "\\", "<", "</", "<t", "a<b>", '{"name": "f"}',
]  # fmt: skip


def parts_of(text: str, sizes: list[int], **options):
    stream, parts, at = AnswerStream(**options), [], 0
    for number in range(len(text)):
        size = sizes[number % len(sizes)]
        parts += stream.add(text[at : at + size])
        at += size
        if at >= len(text):
            break
    return parts + stream.add("", last=True)


def texts(parts, kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


@given(
    st.lists(st.sampled_from(WORDS), max_size=14).map("".join), st.lists(st.integers(1, 12), min_size=1, max_size=20)
)
def test_pieces_are_the_parsed_answer(text, sizes):
    parts, whole = parts_of(text, sizes), parse_either(text)
    assert texts(parts, "content") == whole.content
    assert texts(parts, "reasoning") == (whole.reasoning or "")
    assert [part.call for part in parts if part.call] == list(whole.tool_calls)


@given(st.lists(st.sampled_from(WORDS), max_size=14).map("".join), st.integers(1, 12))
def test_without_calls_they_are_text(text, size):
    parts = parts_of("x" + text, [size], calls=False)
    assert {part.kind for part in parts} == {"content"} and texts(parts, "content") == "x" + text


@pytest.mark.parametrize("form", FORMS)
def test_text_is_given_out_at_once_and_a_call_when_it_is_whole(form):
    stream = AnswerStream()
    assert texts(stream.add("Some words"), "content") == "Some words"
    assert stream.add("\n") == []  # it may belong to a call
    assert stream.add(form[:-1]) == []
    (part,) = stream.add(form[-1])
    assert part.call == CALL
    assert texts(stream.add("more"), "content") == "more"


def test_a_prompt_that_opens_reasoning_begins_with_it():
    stream = AnswerStream(opened="<think>")
    assert texts(stream.add("so"), "reasoning") == "so"
    parts = stream.add("</think>yes")
    assert texts(parts, "content") == "yes" and texts(parts, "reasoning") == ""


def test_a_schema_says_what_is_a_string():
    tools = [{"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
    text = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    ((string,), (number,)) = (AnswerStream(given).add(text) for given in (tools, []))
    assert string.call["arguments"] == {"a": "1"} and number.call["arguments"] == {"a": 1}
