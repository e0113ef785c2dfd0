"""Tool calls, JSON schemas and reasoning over the real socket; grammars force the tiny random model to them."""

import asyncio
import json

import jsonschema
import openai
import pytest

from benchmarks.server_bodies import SCHEMA, random_schemas
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.tool_calls import render_call
from ling_jax.engine import Event
from ling_jax.serve.asked import asked_chat
from ling_jax.serve.choice import ChatChoice
from ling_jax.serve.protocol import ChatBody
from ling_jax.serve.writers import ChatWriter
from tests.helpers.served import NAME, running, tokenizer

MESSAGES = [{"role": "user", "content": "some words"}]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("first", "mcp.second")]


def ask(server, **fields):
    fields = {"model": NAME, "messages": MESSAGES, "max_tokens": 200, "seed": 7} | fields
    return server.client().chat.completions.create(**fields)


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_its_schema(server, seed):
    choice = ask(server, seed=seed, response_format=schema_format(SCHEMA)).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_a_json_object_is_one_where_it_ends(server):
    choices = ask(server, n=6, max_tokens=60, response_format={"type": "json_object"}).choices
    ended = [choice for choice in choices if choice.finish_reason == "stop"]
    assert ended and all(isinstance(json.loads(choice.message.content), dict) for choice in ended)


def test_required_calls_have_arguments_of_the_schema(server):
    choice = ask(server, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None and call.id.startswith("call_")
    assert call.function.name in ("first", "mcp.second")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_a_named_function_is_the_one_that_is_called(server):
    choice = {"type": "function", "function": {"name": "mcp.second"}}
    calls = ask(server, tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"mcp.second"}


def test_parallel_calls_stream_one_after_the_other(server):
    # No end token is drawn before so many, and they are more than one call has.
    fields = dict(tools=TOOLS, tool_choice="required", max_tokens=250, extra_body={"min_tokens": 70})
    whole = ask(server, **fields).choices[0]
    found: dict[int, dict[str, str]] = {}
    for chunk in ask(server, **fields, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            if call.id:
                assert call.index == len(found) and call.type == "function"
                found[call.index] = {"name": call.function.name, "arguments": ""}
            found[call.index]["arguments"] += call.function.arguments
    wanted = [{"name": c.function.name, "arguments": c.function.arguments} for c in whole.message.tool_calls]
    assert list(found.values()) == wanted and len(wanted) > 1
    assert chunk.choices[0].finish_reason == "tool_calls"


def test_the_clients_own_accumulation_reads_the_stream(server):
    fields = dict(model=NAME, messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=1, max_tokens=200)
    with server.client().chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion().choices[0]
    for call in final.message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_results_of_calls_come_back_in_a_conversation(server):
    first = ask(server, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    call = first.choices[0].message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    message = first.choices[0].message.model_dump(exclude_none=True)
    again = ask(server, messages=[*MESSAGES, message, result], tools=TOOLS, max_tokens=5)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens and again.choices[0].finish_reason == "length"


def test_null_is_a_missing_field_at_every_depth(server):
    function = {"name": "first", "parameters": SCHEMA, "description": None, "strict": None}
    fields = {"tools": [{"type": "function", "function": function}], "stop": None, "response_format": None}
    plain = {"tools": [{"type": "function", "function": {"name": "first", "parameters": SCHEMA}}]}
    body = {"messages": MESSAGES, "max_tokens": 5, "seed": 1}
    with_nulls, without = (server.post("/v1/chat/completions", body | more).json() for more in (fields, plain))
    assert with_nulls["choices"] == without["choices"]


def test_tools_that_may_not_be_called_are_not_in_the_prompt(server):
    with_tools, without = (ask(server, tools=tools, tool_choice=choice, max_tokens=1) for tools, choice in
                           ((TOOLS, "none"), (openai.omit, openai.omit)))  # fmt: skip
    assert with_tools.usage.prompt_tokens == without.usage.prompt_tokens


BAD = {
    "tools": ({"tools": [*TOOLS, TOOLS[0]]}, "a name twice"),
    "tool_choice": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice is 'any'; expected none, auto, required"),
    "response_format.json_schema.schema": ({"response_format": schema_format({"type": "number", "not": {}})}, "not"),
    "response_format.json_schema": ({"response_format": {"type": "json_schema"}}, "goes with the type"),
    "tools[0].function.name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "'a b'"),
    "tools[0].function.parametres": (
        {"tools": [{"type": "function", "function": {"name": "a", "parametres": {}}}]},
        "did you mean 'parameters'?",
    ),
}


@pytest.mark.parametrize("param", BAD)
def test_what_is_asked_wrongly_is_named(server, param):
    fields, message = BAD[param]
    with pytest.raises(openai.BadRequestError) as raised:
        ask(server, extra_body=fields)
    assert raised.value.param == param and message in raised.value.message


def deltas(server, text: str, size: int, **fields) -> list[dict]:
    """The chunks of a stream in which the model draws this text, `size` tokens an event."""
    served = server.server.served
    asked = asked_chat(served, ChatBody(messages=MESSAGES, stream=True, **fields), "x")
    choice, writer = ChatChoice(served, asked, 0), ChatWriter(served, asked, "x")
    ids = [*tokenizer().encode(text, add_special_tokens=False).ids, min(served.end_ids)]
    chunks = []
    for at in range(0, len(ids), size):
        tokens, last = ids[at : at + size], at + size >= len(ids)
        logps = tuple(0.0 for _ in tokens)
        event = Event("x-0", at, tuple(tokens), logps, 0, "stop" if last else None)
        delta = choice.add(event)
        chunks += writer.chunks(choice, delta)
        if delta.finish:
            break
    return [chunk["choices"][0] for chunk in chunks]


def content(chunks, name: str) -> str:
    return "".join(chunk["delta"].get(name, "") for chunk in chunks)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("form", ["xml", "json"])
def test_what_a_model_writes_freely_is_split(server, size, form):
    calls = [{"name": "first", "arguments": {"count": i, "kind": "ß"}} for i in range(2)]
    text = "<think>so</think>Well.\n" + "\n".join(render_call(call, form) for call in calls)
    tools = [{"type": "function", "function": {"name": "first", "parameters": SCHEMA}}]
    chunks = deltas(server, text, size, tools=tools)
    assert content(chunks, "reasoning_content") == "so" and content(chunks, "content") == "Well."
    found = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    begun = [call["function"]["name"] for call in found if "id" in call]
    arguments = [call["function"]["arguments"] for call in found if "id" not in call]
    assert begun == ["first", "first"] and [json.loads(a) for a in arguments] == [c["arguments"] for c in calls]
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])


def test_without_parallel_calls_an_answer_ends_with_its_first(server):
    text = "\n".join(render_call({"name": "first", "arguments": {"count": i}}, "xml") for i in range(2))
    tools = [{"type": "function", "function": {"name": "first"}}]
    chunks = deltas(server, text, 4, tools=tools, parallel_tool_calls=False)
    assert sum("id" in call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())) == 1
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_markup_of_calls_is_text_where_there_are_no_tools(server):
    text = render_call({"name": "first", "arguments": {}}, "xml")
    chunks = deltas(server, text, 4)
    assert content(chunks, "content") == text and chunks[-1]["finish_reason"] == "stop"


OPENING = "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}{% endfor %}<role>ASSISTANT</role><think>"


@pytest.fixture(scope="module")
def thinker():
    with running(template=FolderTemplate(OPENING, "chat_template.jinja")) as found:
        yield found
        found.wait_until_idle()


def test_what_comes_before_the_mark_is_reasoning(thinker):
    choice = ask(thinker, max_tokens=20).choices[0]
    assert choice.message.reasoning_content and choice.message.content == ""
    chunks = list(ask(thinker, max_tokens=20, stream=True))
    streamed = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
    assert "".join(streamed) == choice.message.reasoning_content
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_a_schema_holds_behind_the_reasoning(thinker):
    ends = {str(tokenizer().token_to_id("</think>")): 100}
    choice = ask(thinker, response_format=schema_format(SCHEMA), logit_bias=ends).choices[0]
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


@pytest.mark.slow
def test_five_hundred_answers_follow_their_schemas(server):
    """Random schemas; those answers that end are JSON of them, and most do end."""
    schemas = random_schemas(500, seed=0)

    async def one(client, seed, schema):
        answer = await client.chat.completions.create(
            model=NAME, messages=MESSAGES, seed=seed, max_tokens=500, response_format=schema_format(schema)
        )
        return answer.choices[0]

    async def all_of_them():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600
        ) as client:
            return await asyncio.gather(*(one(client, i, schema) for i, schema in enumerate(schemas)))

    ended = 0
    for schema, choice in zip(schemas, asyncio.run(all_of_them()), strict=True):
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.message.content), schema)
            ended += 1
    assert ended > 400
