"""What a model answers becomes reasoning, content and calls, and nothing of it is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.tool_calls import TOOL_FORMATS, as_message, parse_either, render_call
from tests.helpers.answer_texts import BITS, MARKS, SETTINGS, WHOLE, check_laws, every_cut, repeated, seconds

RING = {"name": "ring", "arguments": {"who": "Ann"}}
RING_TEXT = "<tool_call>ring<arg_key>who</arg_key>\n<arg_value>Ann</arg_value>\n</tool_call>"


def typed(schema, name="f", key="k", **more):
    return [{"type": "function", "function": {"name": name, "parameters": {"properties": {key: schema}, **more}}}]


def value_of(text, schema=None, **more):
    """The argument that `text` becomes under a schema, in the XML form."""
    call = f"<tool_call>f<arg_key>k</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    parsed = parse_either(call, () if schema is None else typed(schema, **more))
    assert (parsed.content, parsed.errors) == ("", ())
    return parsed.tool_calls[0]["arguments"]["k"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>ring<arg_key>who</arg_key>\n<arg_value>Ann</arg_value></tool_call>",
        RING_TEXT,
        "<tool_call>ring\n<arg_key>who</arg_key>\n<arg_value>Ann</arg_value>\n</tool_call>",
        "<tool_call>\nring\n<arg_key>who</arg_key>\n<arg_value>Ann</arg_value>\n</tool_call>",
        "\n<tool_call> \r\n\tring \n\n<arg_key>who</arg_key><arg_value>Ann</arg_value>  \n </tool_call>",
        "<tool_call>ring<arg_key>who</arg_key> \r\n\t<arg_value>Ann</arg_value></tool_call>",
        '<tool_call>\n{"name": "ring", "arguments": {"who": "Ann"}}\n</tool_call>',
        '<tool_call>{"arguments":{"who":"Ann"},"name":"ring"}</tool_call>',
        '<tool_call>{"name": "ring", "arguments": "{\\"who\\": \\"Ann\\"}"}</tool_call>',
    ],
)
def test_a_call_is_read_in_every_form_that_templates_and_engines_write(text):
    parsed = parse_either(text)
    assert parsed.tool_calls == (RING,) and (parsed.content, parsed.reasoning, parsed.errors) == ("", None, ())


@pytest.mark.parametrize("text", ["<tool_call>ring</tool_call>", "<tool_call>\nring\n</tool_call>"])
def test_a_call_may_have_no_arguments(text):
    assert parse_either(text).tool_calls == ({"name": "ring", "arguments": {}},)
    assert parse_either('<tool_call>{"name": "ring"}</tool_call>').tool_calls == ({"name": "ring", "arguments": {}},)


def test_each_call_of_a_text_may_have_its_own_form():
    text = f'a\n{RING_TEXT}b\n<tool_call>{{"name": "g", "arguments": {{}}}}</tool_call>\n<tool_call>h</tool_call>\nc'
    parsed = parse_either(text)
    assert [call["name"] for call in parsed.tool_calls] == ["ring", "g", "h"]
    assert (parsed.content, parsed.errors) == ("ab\nc", ())


CALL_OF_THINK = "<tool_call>f<arg_key>k</arg_key>\n<arg_value>a</think>b</arg_value>\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        ("4", None, "4", 0),
        ("<think>2+2</think>4", "2+2", "4", 0),
        ("\n <think>2+2</think>\n4", "2+2", "\n4", 0),
        ("2+2</think>4", None, "2+2</think>4", 0),
        ("The mark </think> ends it.", None, "The mark </think> ends it.", 0),
        ("It is <think>a</think>.", None, "It is <think>a</think>.", 0),
        ("<think>a</think>b</think>c", "a", "b</think>c", 0),
        ("<think></think>4", "", "4", 0),
        (f"See\n{CALL_OF_THINK}", None, "See", 1),
        (f"<think>a</think>{CALL_OF_THINK}", "a", "", 1),
        (f"<think>a\n{CALL_OF_THINK}", "a", "", 1),
        (f"<think>a\n{CALL_OF_THINK}b</think>c", "a", "b</think>c", 1),
    ],
)
def test_think_is_reasoning_only_where_it_opens_the_text(text, reasoning, content, calls):
    parsed = parse_either(text)
    assert (parsed.reasoning, parsed.content, parsed.errors) == (reasoning, content, ())
    assert len(parsed.tool_calls) == calls
    assert all(call["arguments"] == {"k": "a</think>b"} for call in parsed.tool_calls)


@pytest.mark.parametrize(
    ("text", "errors", "reasoning", "content"),
    [
        ("<think>on and on", ("unclosed_think",), "on and on", ""),
        ("<think>use <tool_call> for it</think>4", ("malformed_tool_call",), "use <tool_call> for it", "4"),
        ('<think>a <tool_call>{"name": "</think>4', ("unclosed_tool_call",), 'a <tool_call>{"name": "', "4"),
        ("<think>a <tool_call>f", ("unclosed_tool_call", "unclosed_think"), "a <tool_call>f", ""),
    ],
)
def test_a_call_in_reasoning_that_cannot_be_read_is_named_and_stays_reasoning(text, errors, reasoning, content):
    parsed = parse_either(text)
    assert (parsed.errors, parsed.reasoning, parsed.content, parsed.tool_calls) == (errors, reasoning, content, ())


MALFORMED = [
    "<tool_call></tool_call>",
    "<tool_call> \n </tool_call>",
    "<tool_call>f\nnonsense</tool_call>",
    "<tool_call><arg_key>k</arg_key><arg_value>v</arg_value></tool_call>",
    "<tool_call>f<arg_value>v</arg_value></tool_call>",
    "<tool_call>f<arg_key>k</arg_key></tool_call>",
    "<tool_call>f<arg_key>k</arg_key>v</tool_call>",
    "<tool_call>f<arg_key>k</arg_key>:<arg_value>v</arg_value></tool_call>",
    "<tool_call>f<arg_key>k<arg_value>v</arg_value></tool_call>",
    "<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value>and</tool_call>",
    "<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value><arg_key>k</arg_key><arg_value>w</arg_value></tool_call>",
    "<tool_call>f<arg_key>k</arg_key><arg_value>v<arg_value>w</arg_value></tool_call>",
    "<tool_call>f</think></tool_call>",
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name": ""}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "parameters": {"k": 1}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "k"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": null}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {}}{"name": "g"}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {}} yes</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": 1, "k": 2}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": NaN}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": 1e999}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": "\\ud800"}}</tool_call>',
    f'<tool_call>{{"name": "f", "arguments": {{"k": {"9" * 5000}}}}}</tool_call>',
    f'<tool_call>{{"name": "f", "arguments": {"[" * 100_000}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": ' + "[" * 1000 + "]" * 1000 + "}}</tool_call>",
    '<tool_call>{"name": "f", "arguments": {"k": 1}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"k": "a\nb"}}</tool_call>',
    "<tool_call>{'name': 'f'}</tool_call>",
    '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
    "<tool_call>\n[]\n</tool_call>",
]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_call_is_text_and_a_named_error_and_the_next_call_is_read(text):
    parsed = parse_either(f"a{text}b{RING_TEXT}")
    assert (parsed.content, parsed.errors) == (f"a{text}b", ("malformed_tool_call",))
    assert parsed.tool_calls == (RING,)


@pytest.mark.parametrize(
    "text",
    [
        "before<tool_call>f\n<arg_key>k</arg_key>",
        "<tool_call>f",
        "<tool_call>",
        "<tool_call>f<arg_key>k</arg_key><arg_value>quotes <tool_call>g</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"k": "quotes <tool_call>g</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"k": "\\',
        '<tool_call>{"name": "f", "arguments": {"k": 1',
    ],
)
def test_a_call_that_does_not_end_is_text_and_what_it_quotes_is_not_called(text):
    parsed = parse_either(text)
    assert (parsed.errors, parsed.content, parsed.tool_calls) == (("unclosed_tool_call",), text, ())


def test_a_sentence_about_calls_does_not_hide_the_call_behind_it():
    parsed = parse_either(f"I write <tool_call> and then:\n{RING_TEXT}")
    assert parsed.tool_calls == (RING,) and parsed.errors == ("unclosed_tool_call",)
    assert parsed.content == "I write <tool_call> and then:"


STRING = {"type": "string"}
UNIONS = [
    STRING,
    {"type": ["string", "null"]},
    {"type": ["integer", "string"]},
    {"anyOf": [{"type": "integer"}, STRING]},
    {"oneOf": [{"type": "null"}, {"anyOf": [STRING]}]},
    {"allOf": [STRING, {"minLength": 1}]},
    {"enum": ["12345", "a"]},
    {"const": "12345"},
    {"$ref": "#/$defs/Word"},
    {"anyOf": [{"$ref": "#/$defs/Word"}, {"type": "null"}]},
]


@pytest.mark.parametrize("schema", UNIONS, ids=json.dumps)
@pytest.mark.parametrize("text", ["12345", "null", "true", '{"a": 1}', ' "a"\n', "", "\n"])
def test_what_may_be_a_string_stays_the_text_that_it_is(schema, text):
    assert value_of(text, schema, **{"$defs": {"Word": STRING}}) == text


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"type": "integer"},
        {"type": ["integer", "null"]},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"enum": [1, 2]},
        {"$ref": "#/$defs/Circle"},
        {"$ref": "#/nowhere/at/all"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": 3},
        {"anyOf": "string"},
        {"enum": "string"},
        {"type": {"string": 1}},
        {"type": [["string"]]},
        True,
        "string",
    ],
    ids=json.dumps,
)
def test_what_is_no_string_by_its_schema_is_read_as_json(schema):
    circle = {"$defs": {"Circle": {"anyOf": [{"$ref": "#/$defs/Circle"}] * 20}}}
    assert value_of("12345", schema, **circle) == 12345
    assert value_of(" [1, null]\n", schema, **circle) == [1, None]
    assert value_of("twelve", schema, **circle) == "twelve"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "-Infinity",
        "1e999",
        "[1e999]",
        '{"a": 1, "a": 2}',
        '"\\ud800"',
        "9" * 5000,
        "[" * 100_000,
        "01",
        "'a'",
        "[1",
    ],
)
def test_what_has_no_exact_json_value_stays_text(text):
    assert value_of(text) == text


@pytest.mark.parametrize(
    "tool",
    [
        3,
        None,
        {"function": "f"},
        {"name": "f", "parameters": None},
        {"name": "f", "parameters": True},
        {"name": ["f"], "parameters": {}},
        {"name": "f", "parameters": {"properties": ["k"]}},
        {"name": "f", "parameters": {"properties": {"k": True}}},
    ],
)
def test_a_schema_of_another_form_tells_no_types(tool):
    call = "<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
    assert parse_either(call, [tool]).tool_calls == ({"name": "f", "arguments": {"k": 3}},)


def test_history_is_written_as_the_official_template_writes_it():
    call = {"name": "f", "arguments": {"a": "x y", "b": [1, {"é": None}], "c": True}}
    assert render_call(call, "xml") == (
        "<tool_call>f<arg_key>a</arg_key>\n<arg_value>x y</arg_value><arg_key>b</arg_key>\n"
        '<arg_value>[1, {"é": null}]</arg_value><arg_key>c</arg_key>\n<arg_value>true</arg_value>\n</tool_call>'
    )
    assert render_call(call, "xml_lines") == (
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x y</arg_value>\n<arg_key>b</arg_key>\n"
        '<arg_value>[1, {"é": null}]</arg_value>\n<arg_key>c</arg_key>\n<arg_value>true</arg_value>\n</tool_call>'
    )
    assert render_call({"name": "f", "arguments": {}}, "xml") == "<tool_call>f</tool_call>"
    assert render_call({"name": "f", "arguments": {}}, "xml_lines") == "<tool_call>f\n</tool_call>"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("", {}, "name is ''; expected the name of a function"),
        (" f", {}, "name is ' f'; expected one line"),
        ("f\ng", {}, "expected one line"),
        ("{f", {}, "expected one line"),
        ("f<arg_key>", {}, "expected one line"),
        ("f", {"</arg_key>": 1}, "argument '</arg_key>' of 'f' spells </arg_key>"),
        ("f", {"k": "a</arg_value>"}, "argument 'k' of 'f' spells </arg_value>"),
        ("f", {"k": ["<arg_value>"]}, "argument 'k' of 'f' spells <arg_value>"),
        ("f", {"k": float("nan")}, "arguments of 'f' have no JSON"),
    ],
)
def test_a_call_that_would_be_read_back_as_another_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        render_call({"name": name, "arguments": arguments}, "xml")


TEXT = st.lists(st.sampled_from([*MARKS, *BITS, "<tool_response>"]) | st.text(max_size=8), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": TEXT | st.just("f"), "arguments": st.dictionaries(TEXT, JSON | TEXT, max_size=3)},
    ),
    max_size=3,
    unique_by=lambda call: call["name"],  # a name has one schema
)
PLAIN = TEXT.filter(lambda text: not any(mark in text for mark in ("<think>", "<tool_call>")))


def tools_of(calls):
    """Schemas that say which arguments are strings."""
    for call in calls:
        types = {key: STRING if isinstance(value, str) else {} for key, value in call["arguments"].items()}
        yield {"function": {"name": call["name"], "parameters": {"properties": types}}}


@given(
    PLAIN,
    st.none() | TEXT.filter(lambda text: "</think>" not in text and "<tool_call>" not in text),
    CALLS,
    st.sampled_from(TOOL_FORMATS),
)
def test_what_is_rendered_is_parsed_back_or_refused(content, reasoning, calls, tool_format):
    message = {"role": "assistant", "content": content, "reasoning": reasoning, "tool_calls": calls or None}
    try:
        pieces = ChatTemplate(tool_format=tool_format).render([message])
    except ValueError:
        return
    text = "".join(piece.text for piece in pieces if piece.trained).removesuffix("<|role_end|>")
    parsed = parse_either(text, tools_of(calls))
    assert (as_message(parsed), parsed.errors) == (message, ())


WORD = st.text(st.characters(codec="utf-8", exclude_characters="<>{["), min_size=1, max_size=8)


@given(WORD.filter(lambda name: name == name.strip() and "\n" not in name), st.dictionaries(WORD, JSON, max_size=3))
def test_a_call_without_markup_is_never_refused(name, arguments):
    if not any("arg_value>" in json.dumps(value) for value in arguments.values()):
        for tool_format in TOOL_FORMATS:
            render_call({"name": name, "arguments": arguments}, tool_format)


@given(st.lists(st.sampled_from([*MARKS, *WHOLE, *BITS]) | st.text(max_size=5), max_size=30).map("".join))
def test_no_character_is_lost_and_nothing_raises(text):
    check_laws(text)
    check_laws("<think>" + text)


def test_a_text_may_be_cut_anywhere():
    for cut in every_cut("<think>r</think>a\n" + "\n".join(WHOLE)):
        check_laws(cut)


@pytest.mark.parametrize("setting", SETTINGS[:4])
@pytest.mark.parametrize(
    "unit", [*MARKS[::3], "{", '<tool_call>{"', "<tool_", "<tool_call>f<arg_key>a</arg_key><arg_value>"]
)
def test_the_time_of_parsing_is_linear_in_the_text(unit, setting):
    short, long = (seconds(repeated(unit, setting, size)) for size in (250_000, 1_000_000))
    assert long < 1 and long <= 5 * max(short, 0.012), "below 12 ms a machine that others use decides"
