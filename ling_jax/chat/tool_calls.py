"""What an assistant writes: reasoning, text and tool calls, as text and back (docs/chat.md)."""

import dataclasses
import json
import re
from typing import Any

TOOL_FORMATS = ("xml", "json")
THINK, END_THINK = "<think>", "</think>"
JSON_CALL = re.compile(r"<tool_call>\s*\{")
MARKUP = tuple(f"<{end}{name}>" for name in ("tool_call", "arg_key", "arg_value", "tool_response") for end in ("", "/"))
CALL = re.compile(r"\n?<tool_call>(.*?)</tool_call>", re.DOTALL)
ARGUMENT = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Parsed:
    """`errors` are names such as "unclosed_tool_call"; what could not be read is still in `content`."""

    content: str
    reasoning: str | None
    tool_calls: tuple[dict[str, Any], ...]  # {"name", "arguments"}
    errors: tuple[str, ...]


def render_call(call: dict[str, Any], tool_format: str) -> str:
    """One call {"name", "arguments"}; in "xml" strings stand as they are and all else as JSON."""
    if tool_format == "json":
        body = json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"
    lines = [call["name"]]
    for key, value in call["arguments"].items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines += [f"<arg_key>{key}</arg_key>", f"<arg_value>{text}</arg_value>"]
    return "<tool_call>" + "\n".join(lines) + "\n</tool_call>"


def parse(text: str, *, tool_format: str = "xml", tools=()) -> Parsed:
    """Reasoning, content and calls of what a model wrote after the generation prompt; it never raises on text.

    `tools` are OpenAI schemas: they tell strings that look like JSON from values. Without one, what reads as JSON is
    a value.
    """
    errors: list[str] = []
    reasoning, text = _split_reasoning(text, errors)
    calls: list[dict[str, Any]] = []

    def take(match: re.Match) -> str:
        call = _parse_json(match[1]) if tool_format == "json" else _parse_xml(match[1], tools)
        if call is None:
            errors.append("malformed_tool_call")
            return match[0]
        calls.append(call)
        return ""

    content = CALL.sub(take, text)
    if "<tool_call>" in CALL.sub("", text):
        errors.append("unclosed_tool_call")
    return Parsed(content, reasoning, tuple(calls), tuple(errors))


def parse_either(text: str, tools=()) -> Parsed:
    """`parse` in "json" where the text has a call in it, else in "xml"."""
    return parse(text, tool_format="json" if JSON_CALL.search(text) else "xml", tools=tools)


def as_message(parsed: Parsed) -> dict[str, Any]:
    """The assistant's message that `chat.template` renders as what was parsed."""
    calls = list(parsed.tool_calls) or None
    return {"role": "assistant", "content": parsed.content, "reasoning": parsed.reasoning, "tool_calls": calls}


def _split_reasoning(text: str, errors: list[str]) -> tuple[str | None, str]:
    """The reasoning may be open already: some templates end their prompt with <think>."""
    body = text.removeprefix("\n")
    if END_THINK in text:
        reasoning, rest = body.split(END_THINK, 1)
        return reasoning.removeprefix(THINK), rest
    if body.startswith(THINK):
        errors.append("unclosed_think")
        return body.removeprefix(THINK), ""
    return None, text


def _parse_json(body: str) -> dict[str, Any] | None:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):  # brackets nested by the thousand
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _parse_xml(body: str, tools) -> dict[str, Any] | None:
    name, newline, rest = body.partition("\n")
    if not newline or not name.strip() or "<" in name or ARGUMENT.sub("", rest).strip():
        return None
    types = _parameter_types(name.strip(), tools)
    return {
        "name": name.strip(),
        "arguments": {key: _value(text, types.get(key)) for key, text in ARGUMENT.findall(rest)},
    }


def _parameter_types(name: str, tools) -> dict[str, str]:
    """Of what the schemas say in the usual form; a schema may be anything."""
    for tool in tools:
        function = _object(tool).get("function", tool)
        if _object(function).get("name") == name:
            properties = _object(_object(function.get("parameters")).get("properties"))
            return {key: _object(schema).get("type") for key, schema in properties.items()}
    return {}


def _object(value) -> dict:
    return value if isinstance(value, dict) else {}


def _value(text: str, kind: str | None):
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
