"""Records of JSON lines with a prompt: read and checked, errors name file, line and field."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ling_jax.config import nearest
from ling_jax.data.chat import check_messages

HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON may escape one half of a surrogate pair, which no UTF-8 can hold


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, record) of each line; blank lines are left out. Raises ValueError on what is no JSON object."""
    with Path(path).expanduser().open("rb") as file:  # as bytes: a text's line separators are not only line ends
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # bad JSON or bad UTF-8
                raise ValueError(f"{where} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where} is a JSON {type(record).__name__}; expected an object")
            yield where, record


def check_prompt(record: dict[str, Any], where: str) -> None:
    """Raises ValueError unless the record has one of `prompt` and `messages` (with `tools` or not), well formed."""
    if ("prompt" in record) == ("messages" in record):
        raise ValueError(f"{where}: expected an object with one of 'prompt' and 'messages'")
    if "prompt" in record:
        check_text(record["prompt"], f"{where}: prompt")
    else:
        check_messages(record["messages"], f"{where}: messages")
    tools = record.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{where}: tools is {tools!r}; expected a list of objects")
    if HALF_PAIR.search(json.dumps([record.get("messages"), tools], ensure_ascii=False)):
        raise ValueError(f"{where}: messages or tools hold half a surrogate pair; expected whole characters")


def check_text(text: Any, where: str) -> None:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where} is {text!r}; expected text")
    if HALF_PAIR.search(text):
        raise ValueError(f"{where} holds half a surrogate pair; expected whole characters")


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """A field that must be there."""
    if name not in record:
        raise ValueError(f"{where} has no field {name!r}{nearest(name, record)}; found {', '.join(record) or 'none'}")
    return record[name]
