"""Answers of an assistant: reasoning, content and tool calls, rendered and parsed (docs/chat.md)."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ling_jax.chat.json_text import bracketed_end, read_json

TOOL_FORMATS = ("xml", "xml_lines", "json")  # forms in which calls are written; all are read
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"
MARKUP = (CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE, "<tool_response>", "</tool_response>")
MARK = re.compile("</?(?:tool_call|arg_key|arg_value|think)>")
VALUE_MARK = re.compile("</?arg_value>")
END_OF_TEXT = re.compile(r"\Z")
OPENING = re.compile(rf"\s*+{THINK}")
ENDS = {"content": re.compile(CALL), "reasoning": re.compile(f"{CALL}|{END_THINK}")}  # of a span
BLANKS = re.compile(r"\s*+")

Call = dict[str, Any]  # {"name": text, "arguments": dict}
Parameters = dict[str, dict[str, bool]]  # {function: {parameter: whether it may be a string}}


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A parsed answer.

    `errors` are names, each once: "unclosed_tool_call", "malformed_tool_call", "unclosed_think". Text that could not be
    parsed stays in `content` or `reasoning`.
    """

    content: str
    reasoning: str | None
    tool_calls: tuple[Call, ...]
    errors: tuple[str, ...]


class Span(NamedTuple):
    """A part of an answer."""

    kind: str  # "content", "reasoning", "call", or "mark": <think> with the blanks before it, </think>
    start: int
    stop: int
    call: Call | None = None


def parse_either(text: str, tools: Iterable[Any] = ()) -> Parsed:
    """Reasoning, content and calls of a model's text after the generation prompt; no text raises an error.

    Each call may be in the XML or in the JSON form. `tools` are OpenAI schemas; they decide whether an argument that
    looks like JSON is a string. Without a schema it is a JSON value. If the prompt ends with <think>
    (`template.opens_reasoning`), put that before the text. It takes linear time.
    """
    parts: dict[str, list[str]] = {"content": [], "reasoning": [], "call": [], "mark": []}
    calls, errors = [], []
    for span in split_answer(text, errors, tools):
        parts[span.kind].append(text[span.start : span.stop])
        if span.call is not None:
            calls.append(span.call)
    reasoning = "".join(parts["reasoning"]) if parts["reasoning"] else None
    return Parsed("".join(parts["content"]), reasoning, tuple(calls), tuple(dict.fromkeys(errors)))


def as_message(parsed: Parsed) -> dict[str, Any]:
    """The assistant's message that `chat.template` renders as the parsed answer."""
    calls = list(parsed.tool_calls) or None
    return {"role": "assistant", "content": parsed.content, "reasoning": parsed.reasoning, "tool_calls": calls}


def split_answer(text: str, errors: list[str], tools: Iterable[Any] = ()) -> Iterator[Span]:
    """Consecutive spans that cover the text; the names of errors are appended to `errors`.

    </think> ends reasoning only if <think> opened the text; a readable call ends it too. The span of a call includes
    the newline before it. After an unreadable call, scanning continues at the mark where it stopped or, in reasoning,
    at an earlier </think>. So no character is read more than a few times.
    """
    properties = text_parameters(tools)
    kind, start = "content", 0
    if opening := OPENING.match(text):
        yield Span("mark", 0, opening.end())
        kind, start = "reasoning", opening.end()
    at = start
    while mark := ENDS[kind].search(text, at):
        at = mark.end()
        if mark[0] == END_THINK:
            yield Span(kind, start, mark.start())
            yield Span("mark", mark.start(), at)
            kind, start = "content", at
            continue
        call, at = read_call(text, at, properties)
        if call is not None:
            before = mark.start() - (mark.start() > start and text[mark.start() - 1] == "\n")
            yield Span(kind, start, before)
            yield Span("call", before, at, call)
            kind, start = "content", at
        else:
            errors.append("unclosed_tool_call" if _is_unclosed(text, at) else "malformed_tool_call")
            ended = text.find(END_THINK, mark.end(), at) if kind == "reasoning" else -1
            at = at if ended < 0 else ended
    yield Span(kind, start, len(text))
    if kind == "reasoning":
        errors.append("unclosed_think")


def _next_mark(text: str, start: int) -> re.Match:
    """The first mark from `start` on; an empty match at the end of the text if there is none."""
    return MARK.search(text, start) or END_OF_TEXT.search(text, len(text))


def _is_unclosed(text: str, stopped: int) -> bool:
    return stopped == len(text) or text.startswith(CALL, stopped)


def read_call(text: str, start: int, properties: Parameters) -> tuple[Call | None, int]:
    """(call, its end) after a <tool_call>, or (None, the mark or the end of the text at which reading stopped)."""
    start = BLANKS.match(text, start).end()
    return (
        _read_json_call(text, start) if text.startswith(("{", "["), start) else _read_xml_call(text, start, properties)
    )


def _read_json_call(text: str, start: int) -> tuple[Call | None, int]:
    end, whole = bracketed_end(text, start)
    mark = _next_mark(text, end)
    if not whole or mark[0] != END_CALL or text[end : mark.start()].strip():
        return None, mark.start()
    try:
        call = _json_call(read_json(text[start:end]))
    except ValueError:
        call = None
    return (None, mark.start()) if call is None else (call, mark.end())


def _json_call(value: Any) -> Call | None:
    """The call of an object with only name and arguments, which may be the JSON text of an object; else None."""
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", {})
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict) or not value.keys() <= {"name", "arguments"}:
        return None
    return {"name": name, "arguments": arguments} if name.strip() else None


def _read_xml_call(text: str, start: int, properties) -> tuple[Call | None, int]:
    mark = _next_mark(text, start)
    name, arguments = text[start : mark.start()].strip(), {}
    if not name or "\n" in name:
        return None, mark.start()
    schemas = properties.get(name, {})
    while mark[0] == KEY:
        end_key = _next_mark(text, mark.end())
        if end_key[0] != END_KEY:
            return None, end_key.start()
        value = _next_mark(text, end_key.end())
        if value[0] != VALUE or text[end_key.end() : value.start()].strip():
            return None, value.start()
        end_value = VALUE_MARK.search(text, value.end())  # other marks in a value are text
        key = text[mark.end() : end_key.start()]
        if end_value is None or end_value[0] != END_VALUE or key in arguments:
            return None, end_value.start() if end_value else len(text)
        arguments[key] = _value(text[value.end() : end_value.start()], schemas.get(key, False))
        mark = _next_mark(text, end_value.end())
        if text[end_value.end() : mark.start()].strip():
            return None, mark.start()
    return ({"name": name, "arguments": arguments}, mark.end()) if mark[0] == END_CALL else (None, mark.start())


def _value(text: str, is_text: bool) -> Any:
    if is_text:
        return text
    try:
        return read_json(text)
    except ValueError:
        return text


def text_parameters(tools: Iterable[Any]) -> Parameters:
    """{function: {parameter: whether it may be a string}} of OpenAI schemas; malformed ones are ignored."""
    found: dict[str, dict[str, bool]] = {}
    for tool in tools or ():
        function = _object(_object(tool).get("function", tool))
        parameters = _object(function.get("parameters"))
        if isinstance(function.get("name"), str):
            schemas = _object(parameters.get("properties")).items()
            found.setdefault(function["name"], {key: _may_be_text(schema, parameters) for key, schema in schemas})
    return found


def _may_be_text(schema: Any, root: dict[str, Any]) -> bool:
    """Whether a schema, or a part of its unions, allows strings; each part is visited once, also in cycles."""
    parts, seen = [schema], set()
    while parts:
        part = _object(parts.pop())
        kinds, allowed = part.get("type"), part.get("enum", [part.get("const")])
        if kinds == "string" or (isinstance(kinds, list) and "string" in kinds):
            return True
        if kinds is not None or id(part) in seen:
            continue
        if isinstance(allowed, list) and any(isinstance(value, str) for value in allowed):
            return True
        seen.add(id(part))
        for union in (part.get("anyOf"), part.get("oneOf"), part.get("allOf")):
            parts += union if isinstance(union, list) else []
        if isinstance(part.get("$ref"), str):
            parts.append(_referred(part["$ref"], root))
    return False


def _referred(reference: str, root: dict[str, Any]) -> Any:
    """The target of a reference within the parameters, such as #/$defs/Unit."""
    value: Any = root
    for name in reference.removeprefix("#/").split("/"):
        value = _object(value).get(name)
    return value


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def render_call(call: Call, tool_format: str) -> str:
    """A call as text: in "xml" and "xml_lines" strings are unchanged and other values are JSON.

    "xml" is byte-equal to the history in the template of the 2.6 models; "xml_lines" has each part on a line. Raises
    ValueError where the call would be parsed differently.
    """
    name, arguments = call["name"], call["arguments"]
    if not name.strip():
        raise ValueError(f"name is {name!r}; expected the name of a function")
    if tool_format == "json":
        return f"{CALL}\n{_dumps({'name': name, 'arguments': arguments}, name)}\n{END_CALL}"
    if name != name.strip() or "\n" in name or name.startswith(("{", "[")) or MARK.search(name):
        raise ValueError(
            f"name is {name!r}; expected one line without blanks around it, a leading {{ or [, or <tool_call> tags"
        )
    newline = "\n" if tool_format == "xml_lines" else ""
    parts = [
        f"{newline}{KEY}{_checked(key, MARK, name, key)}{END_KEY}\n{VALUE}{_argument(value, name, key)}{END_VALUE}"
        for key, value in arguments.items()
    ]
    end = "\n" if parts or newline else ""
    return CALL + name + "".join(parts) + end + END_CALL


def _argument(value: Any, name: str, key: str) -> str:
    return _checked(value if isinstance(value, str) else _dumps(value, name), VALUE_MARK, name, key)


def _checked(text: str, marks: re.Pattern, name: str, key: str) -> str:
    if found := marks.search(text):
        raise ValueError(f"argument {key!r} of {name!r} spells {found[0]}, which the format cannot hold as text")
    return text


def _dumps(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"arguments of {name!r} have no JSON: {error}") from None
