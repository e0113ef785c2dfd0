"""JSON lines, whose errors name the file, the line and the field."""

import codecs
import collections
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ling_jax.data.text_files import FORMAT_BYTES, open_decompressed, wrong_format
from ling_jax.messages import nearest, shown
from ling_jax.paths import as_path

HALF_PAIR = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which JSON can escape and UTF-8 cannot encode
MAX_LINE_BYTES = 1 << 30  # our choice: memory holds a whole line, and gzip expands a thousandfold


def read_objects(path: str | Path, expected: str = "an object") -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", object) of each line of a file, which may be gzipped; blank lines are skipped.

    A byte order mark is dropped, also in front of a later line of joined files. Raises ValueError on a line that is no
    JSON object (NaN, Infinity and repeated keys are errors too), on a line of more than 1 GiB, and on a file of another
    format.
    """
    # Lines are read as bytes, because text has more line separators.
    with open_decompressed(as_path(path)) as file:
        for number in itertools.count(1):
            if not (line := file.readline(MAX_LINE_BYTES + 1)):
                return
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{where} is longer than {MAX_LINE_BYTES} bytes; expected {expected} a line")
            if number == 1 and (reason := wrong_format(line[:FORMAT_BYTES])):
                raise ValueError(f"{path} {reason}")
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                record = _load(line.decode())
            except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, too deep nesting
                raise ValueError(f"{where} is not JSON: {error}; expected {expected} on each line") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where} is a JSON {type(record).__name__}; expected {expected}")
            yield where, record


def _load(line: str) -> Any:
    return json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number (null is its like)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} stands twice in an object")
    return found


def with_unique_ids(records: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of `read_objects`. Raises ValueError where two have the same `id`, by which results are found.

    The id of a record without one is its number, from 0.
    """
    first: dict[str, str] = {}
    for number, (where, record) in enumerate(records):
        id = record.get("id", number)
        if (earlier := first.setdefault(json.dumps(id, sort_keys=True), where)) != where:
            raise ValueError(
                f"{where}: id is {shown(id)}, as that of {earlier}; give each record another, or none an id"
            )
        yield where, record


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """The value of a required field. Raises ValueError where the record lacks it."""
    if name not in record:
        keys = [key if len(key) <= 100 else f"{key[:97]}..." for key in itertools.islice(record, 20)]
        found = ", ".join(keys) + (", ..." if len(record) > len(keys) else "")
        raise ValueError(f"{where} has no field {name!r}{nearest(name, keys)}; found {found or 'none'}")
    return record[name]


def check_whole_characters(text: str, where: str) -> None:
    """Raises ValueError where a text has half a surrogate pair."""
    if HALF_PAIR.search(text):
        raise ValueError(f"{where} holds half a surrogate pair; expected whole characters")
