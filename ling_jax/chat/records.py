"""Records with a prompt or a conversation: checked, errors name file, line and field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ling_jax.chat.template import check_messages
from ling_jax.data.json_lines import check_whole_characters, read_objects


def check_prompt(record: dict[str, Any], where: str) -> None:
    """Raises ValueError unless the record has one of `prompt` and `messages` (with `tools` or not), well formed."""
    if ("prompt" in record) == ("messages" in record):
        raise ValueError(f"{where}: expected an object with one of 'prompt' and 'messages'")
    if "prompt" in record:
        check_text(record["prompt"], f"{where}: prompt")
        _check_tools(record, where)
    else:
        check_conversation(record, where)


def check_conversation(record: dict[str, Any], where: str) -> None:
    """Raises ValueError unless the record has `messages` (with `tools` or not), well formed."""
    if "messages" not in record:
        raise ValueError(f"{where}: expected an object with a field 'messages'")
    check_messages(record["messages"], f"{where}: messages")
    _check_tools(record, where)


def _check_tools(record: dict[str, Any], where: str) -> None:
    tools = record.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: tools is {tools!r}; expected a list of objects")
    told = json.dumps([record.get("messages"), tools], ensure_ascii=False)
    check_whole_characters(told, f"{where}: text of messages or tools")


def check_text(text: Any, where: str) -> None:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where} is {text!r}; expected text")
    check_whole_characters(text, where)


def read_conversations(path: str | Path) -> Iterator[dict[str, Any]]:
    """Records {"messages", "tools"} of JSON lines, checked; errors name the file, the line and the field."""
    for where, record in read_objects(path, "an object with a field 'messages'"):
        check_conversation(record, where)
        yield {"tools": (), **record}
