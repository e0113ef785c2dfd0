"""Calls of the Berkeley function calling leaderboard, through what parses, checks and compares those of our tools."""

import collections
import json

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.tools.call import argument_error
from ling_jax.rewards import process_reward

KINDS = {"dict": "object", "float": "number", "tuple": "array"}  # BFCL's names of JSON schema's types


def json_schema(schema):
    """A schema of BFCL in JSON schema's words; of values that may be anything, without a type."""
    schema = {key: value for key, value in schema.items() if key in ("type", "enum", "items", "properties", "required")}
    kind = schema.pop("type", "any")
    if kind != "any":
        schema["type"] = KINDS.get(kind, kind)
    if "items" in schema:
        schema["items"] = json_schema(schema["items"])
    if "properties" in schema:
        schema["properties"] = {name: json_schema(value) for name, value in schema["properties"].items()}
    return schema


def tasks(data):
    """(schema in OpenAI's form, right call) of each task.

    An argument whose first right value is "" is left out, unless the schema requires it, as one does.
    """
    folder = data / "bfcl"
    asked = (folder / "BFCL_v4_simple_python.jsonl").read_text().splitlines()
    answers = (folder / "BFCL_v4_simple_python_answers.jsonl").read_text().splitlines()
    for question, answer in zip(map(json.loads, asked), map(json.loads, answers), strict=True):
        assert question["id"] == answer["id"]
        (function,) = question["function"]
        ((name, values),) = answer["ground_truth"][0].items()
        parameters = {"required": [], **json_schema(function["parameters"])}
        needed = parameters["required"]
        arguments = {key: right[right[0] == ""] for key, right in values.items() if right[0] != "" or key in needed}
        schema = {"type": "function", "function": {"name": function["name"], "parameters": parameters}}
        yield schema, {"name": name, "arguments": arguments}


def verdict(schema, wanted, text):
    """ "right", or what refuses a turn: the parser, the schema, or the comparison with the right call."""
    action = parse_action(text, [schema])
    if action.errors or not action.tool_calls:
        return "unreadable"
    for call in action.tool_calls:
        if call["name"] != schema["function"]["name"]:
            return "unknown tool"
        if argument_error(schema["function"]["parameters"], call["arguments"]):
            return "schema"
    return "right" if process_reward(action.tool_calls, [wanted], format_ok=True).total == pytest.approx(4) else "other"


def other_value(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + " x"
    return [*value, *value, 0] if isinstance(value, list) else {**value, "more": 1}


def mutations(schema, call):
    name, arguments = call["name"], call["arguments"]
    yield "no call", ""
    yield "another tool", render_call({"name": name + "_", "arguments": arguments}, "xml")
    yield "twice", render_call(call, "xml") * 2
    yield "cut off", render_call(call, "xml")[:-3]
    yield "unknown argument", render_call({"name": name, "arguments": {**arguments, "verbose": True}}, "xml")
    for key, value in arguments.items():
        rest = {other: kept for other, kept in arguments.items() if other != key}
        yield "left out", render_call({"name": name, "arguments": rest}, "xml")
        yield "another value", render_call({"name": name, "arguments": {**rest, key: other_value(value)}}, "json")
        yield "in a list", render_call({"name": name, "arguments": {**rest, key: [value]}}, "json")
        if not isinstance(value, str):
            yield "as text", render_call({"name": name, "arguments": {**rest, key: str(value)}}, "json")


@pytest.mark.parametrize("tool_format", ["xml", "json"])
def test_every_right_call_is_accepted(data, tool_format):
    found = [verdict(schema, call, render_call(call, tool_format)) for schema, call in tasks(data)]
    assert collections.Counter(found) == {"right": 400}


def test_every_mutated_call_is_refused(data):
    found = collections.Counter(
        (what, verdict(schema, call, text)) for schema, call in tasks(data) for what, text in mutations(schema, call)
    )
    accepted = {what: count for (what, said), count in found.items() if said == "right"}
    print(f"{found.total()} mutated calls: {dict(found)}")
    assert not accepted and found.total() > 5000
    assert {said for _, said in found} == {"unreadable", "unknown tool", "schema", "other"}
