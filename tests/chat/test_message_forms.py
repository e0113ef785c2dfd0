"""Records as people have them become messages of one form, or are refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.chat.conversations import tokenize_conversations
from ling_jax.chat.records import normalise_conversation, normalise_messages, normalise_prompt, read_conversations
from ling_jax.chat.template import ChatTemplate, check_messages
from ling_jax.data import open_documents, train_bpe
from ling_jax.data.json_lines import read_objects

BYTES = train_bpe(["a"], 263)  # no merges: a token is a byte or a special one
RING = {"name": "ring", "arguments": {"who": "Ann"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "ring", "arguments": '{"who": "Ann"}'}}


def user(content="a", **more):
    return {"role": "user", "content": content, **more}


def assistant(content="b", **more):
    return {"role": "assistant", "content": content, **more}


CALLED = [user(), assistant("", tool_calls=[RING]), {"role": "tool", "content": "no answer"}]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            [
                user(),
                assistant(None, tool_calls=[CALL]),
                {"role": "tool", "tool_call_id": "c1", "content": "no answer"},
            ],
            CALLED,
        ),
        ([user(), {"role": "assistant", "tool_calls": [CALL]}, CALLED[2]], CALLED),
        ([user(), assistant("", tool_calls=[{**RING, "id": "c1", "type": "function", "index": 0}]), CALLED[2]], CALLED),
        ([user(), assistant("", tool_calls=[{"function": {**RING, "arguments": {"who": "Ann"}}}]), CALLED[2]], CALLED),
        (
            [
                user(),
                assistant(None, function_call={"name": "ring", "arguments": '{"who": "Ann"}'}),
                {"role": "function", "name": "ring", "content": "no answer"},
            ],
            CALLED,
        ),
        ([user([{"type": "text", "text": "ring "}, {"type": "text", "text": "Ann"}])], [user("ring Ann")]),
        ([user([])], [user("")]),
        ([user(), assistant([{"type": "text", "text": "b", "image_url": None}])], [user(), assistant()]),
        ([{"role": "developer", "content": "s"}, user()], [{"role": "system", "content": "s"}, user()]),
        ([user(), {"role": "system", "content": "s"}], [user(), {"role": "system", "content": "s"}]),
        ([user(), assistant(reasoning_content="r")], [user(), assistant(reasoning="r")]),
        ([user(), assistant(reasoning="r", reasoning_content="r")], [user(), assistant(reasoning="r")]),
        ([user(name="ann")], [user()]),
        (
            [
                user(tool_calls=None, reasoning=None, name=None),
                assistant(refusal=None, audio=None, annotations=[], id="m"),
            ],
            [user(), assistant()],
        ),
        ([user(), assistant("<think>r</think>b")], [user(), assistant("b", reasoning="r")]),
        ([user(), assistant("<think>r</think>b", reasoning_content="")], [user(), assistant("b", reasoning="r")]),
        ([user(), assistant("\n <think>\nr\n</think>\n\nb")], [user(), assistant("\n\nb", reasoning="\nr\n")]),
        ([user(), assistant("<think></think>b</think>")], [user(), assistant("b</think>", reasoning="")]),
        (
            [user("<think>r</think>b"), assistant("a <think>r</think>")],
            [user("<think>r</think>b"), assistant("a <think>r</think>")],
        ),
    ],
)
def test_openais_forms_become_ours(given, wanted):
    assert normalise_messages(given) == wanted
    assert normalise_messages(wanted) == wanted, "our own form is left as it is"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"^messages is \[\]; expected a list of messages, at least one"),
        ("a", "^messages is 'a'; expected a list"),
        (["a"], r"^messages\[0\] is a str; expected a dict"),
        ([{"role": "usr", "content": ""}], r"^messages\[0\].role is 'usr', did you mean 'user'"),
        ([user(None)], r"^messages\[0\].content is None; expected text"),
        ([user({"a": 1})], r"^messages\[0\].content is {'a': 1}; expected text"),
        ([user(), assistant(None)], r"^messages\[1\].content is None"),
        ([user(), {"role": "tool", "content": None}], r"^messages\[1\].content is None"),
        (
            [user([{"type": "image_url", "image_url": {"url": "x"}}])],
            r"messages\[0\].content\[0\] is of type 'image_url'.*text only",
        ),
        ([user([{"type": "text", "text": None}])], r"content\[0\] is of type 'text'"),
        (
            [user([{"type": "text", "text": "a", "cache_control": {}}])],
            r"content\[0\] is of type 'text'.*cache_control",
        ),
        ([user(["a"])], r"content\[0\] is of type 'str'"),
        ([user(weight=0)], r"^messages\[0\].weight is unknown"),
        ([user(tool_calls=[CALL])], r"^messages\[0\].tool_calls is unknown; a message of 'user' has role, content"),
        ([assistant(refusal="I will not")], r"^messages\[0\].refusal is unknown"),
        ([assistant(tool_calls={})], r"^messages\[0\].tool_calls is {}; expected a list"),
        ([assistant(tool_calls=["ring"])], r"^messages\[0\].tool_calls\[0\] is 'ring'"),
        (
            [assistant(tool_calls=[{**CALL, "type": "custom"}])],
            r"tool_calls\[0\].type is 'custom'; expected 'function'",
        ),
        (
            [assistant(tool_calls=[{"name": "f"}])],
            r"tool_calls\[0\] has the fields 'name'; expected name and arguments",
        ),
        ([assistant(tool_calls=[{"name": 3, "arguments": {}}])], r"^messages\[0\].tool_calls\[0\] is {'name': 3"),
        (
            [assistant(tool_calls=[{"function": {"name": "f", "parameters": {}}}])],
            r"tool_calls\[0\].function has the fields",
        ),
        (
            [assistant(tool_calls=[{"function": {"name": "f", "arguments": "{"}}])],
            r"^messages\[0\].tool_calls\[0\].function.arguments is '{'; expected JSON: ",
        ),
        ([assistant(tool_calls=[{"name": "f", "arguments": ""}])], r"arguments is ''; expected JSON"),
        ([assistant(tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}])], r"expected JSON: NaN"),
        (
            [assistant(tool_calls=[{"name": "f", "arguments": '{"a": 1, "a": 2}'}])],
            r"expected JSON: a name occurs twice",
        ),
        ([assistant(tool_calls=[{"name": "f", "arguments": "[1]"}])], r"arguments is '\[1\]'; expected an object"),
        ([assistant(tool_calls=[CALL], function_call=CALL["function"])], "has both function_call and tool_calls"),
        ([assistant(reasoning="r", reasoning_content="s")], r"^messages\[0\] has another reasoning"),
        (
            [assistant("<think>r</think>b", reasoning="s")],
            r"^messages\[0\] has reasoning, and content that begins with",
        ),
        ([assistant("<think>r")], r"^messages\[0\].content begins with <think> and has no </think>"),
        (
            [assistant("<think>r</think> <think>s</think>b")],
            r"^messages\[0\].content begins with <think>.*</think> twice",
        ),
        (
            [assistant(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c2", "content": ""}],
            r"^messages\[1\].tool_call_id is 'c2'; the calls before it are c1",
        ),
    ],
)
def test_what_has_no_one_reading_is_refused_by_name(messages, message):
    with pytest.raises(ValueError, match=message) as error:
        normalise_messages(messages)
    assert "\n" not in str(error.value)


def test_results_stand_in_the_order_of_their_calls():
    calls = [{**CALL, "id": id} for id in ("a", "b", "c")]
    results = [{"role": "tool", "tool_call_id": id, "content": f"of {id}"} for id in ("c", "a", "b")]
    again = [{"role": "tool", "tool_call_id": "a", "content": "of a"}]
    found = normalise_messages(
        [user(), assistant(None, tool_calls=calls), *results, assistant(None, tool_calls=calls[:1]), *again]
    )
    assert [message["content"] for message in found if message["role"] == "tool"] == ["of a", "of b", "of c", "of a"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}]},
            "'conversations' is ShareGPT's form: rename it to messages",
        ),
        ({"instruction": "a", "input": "", "output": "b"}, "'instruction' is Alpaca's form"),
        ({"text": "a"}, "expected an object with"),
    ],
)
def test_a_record_of_another_form_says_what_to_do(record, message):
    for normalise in (normalise_conversation, normalise_prompt):
        with pytest.raises(ValueError, match=f"^chats.jsonl, line 1: .*{message}"):
            normalise(record, "chats.jsonl, line 1")


def test_tools_may_be_null_and_must_be_objects():
    tools = [{"type": "function", "function": {"name": "ring"}}]
    for record in ({"messages": [user()]}, {"prompt": "a"}):
        assert normalise_prompt(record | {"tools": None, "id": 3}, "x") == record | {"id": 3}
        assert normalise_prompt(record | {"tools": tools}, "x") == record | {"tools": tools}
        with pytest.raises(ValueError, match=r"^x: tools is 'get'; expected a list of objects"):
            normalise_prompt(record | {"tools": "get"}, "x")
        with pytest.raises(ValueError, match=r"^x: functions is OpenAI's older form; give tools"):
            normalise_prompt(record | {"functions": [{"name": "ring"}]}, "x")
        with pytest.raises(ValueError, match=r"^x: tools has no exact JSON: JSON holds half a surrogate pair"):
            normalise_prompt(record | {"tools": [{"name": "\ud800"}]}, "x")
    with pytest.raises(ValueError, match=r"^x: messages\[0\] has no exact JSON: JSON holds half a surrogate pair"):
        normalise_prompt({"messages": [user("\ud800")]}, "x")
    for deep in ("[" * 200 + "]" * 200, "[" * 900 + "]" * 900, "NaN"):
        record = {"messages": [user(), assistant(tool_calls=[{"name": "f", "arguments": {"a": json.loads(deep)}}])]}
        with pytest.raises(ValueError, match=r"^x: messages\[1\] has no exact JSON: "):
            normalise_prompt(record, "x")
    with pytest.raises(ValueError, match=r"^x: expected an object with one of 'prompt' and 'messages'"):
        normalise_prompt({"prompt": "a", "messages": [user()]}, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "arguments", "function", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "function"]) | JSON,
        "content": st.sampled_from(["", "a", "<think>r</think>b", "<think>"]) | st.none() | JSON,
        "tool_calls": st.lists(st.sampled_from([CALL, RING]) | JSON, max_size=2) | JSON,
        "tool_call_id": st.sampled_from(["c1", "c2"]) | JSON,
        "function_call": st.none() | JSON,
        "reasoning_content": st.none() | st.text(max_size=3) | JSON,
        "reasoning": st.none() | JSON,
        "name": JSON,
    },
)


@settings(max_examples=60)
@given(st.lists(MESSAGE, max_size=4) | JSON)
def test_messages_of_any_form_are_read_or_refused_in_one_line(messages):
    try:
        found = normalise_messages(messages)
    except ValueError as error:
        assert str(error).startswith("messages") and "\n" not in str(error)
        return
    check_messages(found)
    assert normalise_messages(found) == found


def test_a_conversation_in_openais_form_is_learnt_as_ours_is(tmp_path):
    ours = [user(), assistant("", reasoning="r", tool_calls=[RING]), CALLED[2], assistant("sorry", reasoning="s")]
    theirs = [
        user([{"type": "text", "text": "a"}]),
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "no answer"},
        assistant("<think>s</think>sorry"),
    ]
    tokens = []
    for name, messages in (("ours", ours), ("theirs", theirs)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"messages": messages, "tools": None}) + "\n")
        tokenize_conversations(
            read_objects(path),
            BYTES,
            ChatTemplate(),
            tmp_path / name,
            source=name,
            digest="",
            longest=500,
            held_out_fraction=0.0,
        )
        documents = open_documents(tmp_path / name / "train")
        tokens.append((documents.doc(0).tolist(), documents.trained.tolist()))
    assert tokens[0] == tokens[1]
    assert tokens[0][0].count(BYTES.token_to_id("<think>")) == 2


def test_a_record_that_cannot_be_read_is_named_by_line_and_field(tmp_path):
    path = tmp_path / "chats.jsonl"
    for text, message in (
        ('{"messages": ' + "[" * 100_000, "line 3 is not JSON: maximum recursion depth"),
        (json.dumps({"messages": [{"role": "user"}]}), r"line 3: messages\[0\].content is None"),
    ):
        path.write_text(json.dumps({"messages": [user()]}) + "\n\n" + text)
        with pytest.raises(ValueError, match=message):
            list(read_conversations(path))
