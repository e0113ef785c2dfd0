"""Records with a prompt or a conversation, normalised to one form; errors name file, line and field.

Messages may have the form of OpenAI's clients (`normalise_messages`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ling_jax.chat.json_text import check_json, read_json
from ling_jax.chat.template import check_messages
from ling_jax.chat.tool_calls import END_THINK, THINK
from ling_jax.data.json_lines import check_whole_characters, read_objects
from ling_jax.messages import shown

EXPECTED = "an object with a field 'messages'"
ROLES = {"developer": "system", "function": "tool"}  # OpenAI's other names
IDENTIFIERS = ("id", "name", "tool_call_id")  # names of messages, which no template needs
OTHER_FORMS = {  # field -> how to convert its form to messages
    "conversations": "ShareGPT's form: rename it to messages, 'from' to role (human: user, gpt: assistant), 'value' to "
    "content",
    "instruction": "Alpaca's form: write instruction and input as a user's message and output as an assistant's",
}


def normalise_prompt(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with its `prompt` or `messages`, and its tools, in our form.

    Raises ValueError that names a malformed field.
    """
    if "prompt" in record and "messages" not in record:
        check_text(record["prompt"], f"{where}: prompt")
        return _with_tools(record, where)
    if "prompt" in record or "messages" not in record:
        raise ValueError(f"{where}: expected an object with one of 'prompt' and 'messages'{_other_form(record)}")
    return normalise_conversation(record, where)


def normalise_conversation(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with `messages` and `tools` in our form; raises ValueError that names a malformed field."""
    if "messages" not in record:
        raise ValueError(f"{where}: expected {EXPECTED}{_other_form(record)}")
    messages = normalise_messages(record["messages"], f"{where}: messages")
    for i, message in enumerate(messages):
        check_json(message, f"{where}: messages[{i}]")
    return _with_tools(record | {"messages": messages}, where)


def normalise_messages(messages: Any, where: str = "messages") -> list[dict[str, Any]]:
    """Messages in the form of `chat.template`, from that form or from OpenAI's.

    - A field that is null or an empty list counts as missing; beside tool calls content may be missing.
    - Content that is a list of parts {"type": "text", "text"} becomes their joined texts.
    - `tool_calls[].function` and `function_call` are calls; their arguments may be the JSON text of an object.
    - `reasoning_content` is reasoning, and so is `<think>…</think>` where an assistant's content begins with it.
    - Roles developer and function are system and tool. Names and ids are dropped once the results of an assistant's
      calls are in the order of the calls.

    Raises ValueError that names the message and the field of anything else. The template decides where a system message
    may be.
    """
    if not isinstance(messages, list | tuple):
        raise ValueError(f"{where} is {shown(messages)}; expected a list of messages, at least one")
    found = [_normalise_message(message, f"{where}[{i}]") for i, message in enumerate(messages)]
    check_messages(found, where)
    return _in_order_of_calls(messages, found, where)


def read_conversations(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records with "messages" and "tools" of JSON lines. Raises ValueError that names file, line and field."""
    for where, record in read_objects(path, EXPECTED):
        yield {"tools": []} | normalise_conversation(record, where)


def check_text(text: Any, where: str) -> None:
    """Raises ValueError unless a value is a text of whole characters that is not empty."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where} is {shown(text)}; expected text")
    check_whole_characters(text, where)


def _other_form(record: Mapping[str, Any]) -> str:
    return next((f"; {field!r} is {form}" for field, form in OTHER_FORMS.items() if field in record), "")


def _with_tools(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with its tools as a list, or without the field where it has none."""
    if record.get("functions"):
        raise ValueError(
            f"{where}: functions is OpenAI's older form; give tools: [{{'type': 'function', 'function': …}}]"
        )
    if (tools := record.get("tools")) is None:
        return {key: value for key, value in record.items() if key != "tools"}
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: tools is {shown(tools)}; expected a list of objects")
    check_json(tools, f"{where}: tools")
    return record


def _normalise_message(message: Any, where: str) -> Any:
    if not isinstance(message, dict):
        return message  # check_messages names it
    found = _present(message, but=IDENTIFIERS)
    if isinstance(role := found.get("role"), str):
        found["role"] = ROLES.get(role, role)
    if isinstance(found.get("content"), list):
        found["content"] = _join_parts(found["content"], f"{where}.content")
    if found.get("role") == "assistant":
        _normalise_calls(found, where)
        _normalise_reasoning(found, where)
    found.setdefault("content", "" if "tool_calls" in found else None)
    return found


def _present(fields: Mapping[str, Any], *, but: Sequence[str] = ()) -> dict[str, Any]:
    """The fields that are neither null nor empty lists (except content), without those of `but`."""
    kept = {key: value for key, value in fields.items() if value is not None and key not in but}
    return {key: value for key, value in kept.items() if value != [] or key == "content"}


def _join_parts(parts: Sequence[Any], where: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        fields = _present(part) if isinstance(part, dict) else {}
        if fields.get("type") != "text" or not isinstance(fields.get("text"), str) or len(fields) != 2:
            kind = fields.get("type", type(part).__name__)
            raise ValueError(
                f"{where}[{i}] is of type {kind!r}: {shown(part)}; expected {{'type': 'text', 'text': …}}, text only"
            )
        texts.append(fields["text"])
    return "".join(texts)


def _normalise_calls(message: dict[str, Any], where: str) -> None:
    if "function_call" in message:
        if "tool_calls" in message:
            raise ValueError(f"{where} has both function_call and tool_calls; expected one")
        message["tool_calls"] = [_normalise_call(message.pop("function_call"), f"{where}.function_call")]
    elif isinstance(calls := message.get("tool_calls"), list | tuple):
        message["tool_calls"] = [_normalise_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _normalise_call(call: Any, where: str) -> Any:
    if not isinstance(call, dict):
        return call  # check_messages names it
    fields = _present(call, but=("id", "index"))
    if (kind := fields.pop("type", "function")) != "function":
        raise ValueError(f"{where}.type is {shown(kind)}; expected 'function'")
    if isinstance(fields.get("function"), dict) and len(fields) == 1:
        fields, where = _present(fields["function"]), f"{where}.function"
    if fields.keys() != {"name", "arguments"}:
        raise ValueError(
            f"{where} has the fields {', '.join(map(repr, fields)) or 'none'}; expected name and arguments"
        )
    arguments = fields["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = read_json(arguments)
        except ValueError as error:
            raise ValueError(f"{where}.arguments is {shown(fields['arguments'])}; expected JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}.arguments is {shown(fields['arguments'])}; expected an object, or its JSON")
    return {"name": fields["name"], "arguments": arguments}


def _normalise_reasoning(message: dict[str, Any], where: str) -> None:
    if "reasoning_content" in message:
        reasoning = message.pop("reasoning_content")
        if message.setdefault("reasoning", reasoning) != reasoning:
            raise ValueError(f"{where} has another reasoning than reasoning_content; expected one")
    content = message.get("content")
    if not isinstance(content, str) or not content.lstrip().startswith(THINK):
        return
    if message.get("reasoning"):
        raise ValueError(f"{where} has reasoning, and content that begins with {THINK}; expected one of them")
    reasoning, end, content = content.lstrip().removeprefix(THINK).partition(END_THINK)
    if not end:
        raise ValueError(f"{where}.content begins with {THINK} and has no {END_THINK}; end the reasoning")
    if content.lstrip().startswith(THINK):
        raise ValueError(f"{where}.content begins with {THINK}…{END_THINK} twice; expected it once")
    message |= {"reasoning": reasoning, "content": content}


def _in_order_of_calls(given: Sequence[dict], messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The messages with the results of an assistant's calls in the order of the calls, if both have ids."""
    found, i = list(messages), 0
    while i < len(given):
        ids = [call.get("id") for call in given[i].get("tool_calls") or ()]
        i += 1
        if not ids or not all(isinstance(id, str) for id in ids):
            continue
        start = i
        while i < len(given) and messages[i]["role"] == "tool" and given[i].get("tool_call_id") is not None:
            if given[i]["tool_call_id"] not in ids:
                found_id = f"{where}[{i}].tool_call_id is {shown(given[i]['tool_call_id'])}"
                raise ValueError(f"{found_id}; the calls before it are {', '.join(ids)}")
            i += 1
        order = sorted(range(start, i), key=lambda at: ids.index(given[at]["tool_call_id"]))
        found[start:i] = [messages[at] for at in order]
    return found
