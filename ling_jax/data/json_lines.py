"""JSON lines: read and checked, errors name file, line and field."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ling_jax.config import nearest

HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON may escape one half of a surrogate pair, which no UTF-8 can hold


def read_objects(path: str | Path, expected: str = "an object") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, object) of each line; blank lines are left out. Raises ValueError on what is no JSON object."""
    with Path(path).expanduser().open("rb") as file:  # as bytes: a text's line separators are not only line ends
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, brackets nested by the thousand
                raise ValueError(f"{where} is not JSON: {error}; expected {expected}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where} is a JSON {type(record).__name__}; expected {expected}")
            yield where, record


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """A field that must be there."""
    if name not in record:
        raise ValueError(f"{where} has no field {name!r}{nearest(name, record)}; found {', '.join(record) or 'none'}")
    return record[name]


def check_whole_characters(text: str, where: str) -> None:
    if HALF_PAIR.search(text):
        raise ValueError(f"{where} holds half a surrogate pair; expected whole characters")
