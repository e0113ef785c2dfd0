"""JSON as models and data sets write it, read strictly: what has no exact value in Python is refused."""

import json
import math
import re
from typing import Any

from ling_jax.data.json_lines import check_whole_characters

MAX_DEPTH = 100  # of lists and objects in each other: our choice, far below what Python's recursion allows
# Strings and all that is neither a bracket nor foreign to JSON, then the start of a string that has no end on its line,
# or brackets. Possessive: nothing is tried again in another way.
STRING = r'"(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+'
STEP = re.compile(rf'(?:[^"\\<{{}}\[\]]++|{STRING}")*+({STRING}\\?)?([{{\[]*+)([}}\]]*+)')


def read_json(text: str) -> Any:
    """The value that a JSON text holds. Raises ValueError on what has no exact value in Python.

    That is, besides what is no JSON: NaN, Infinity and numbers too large for a float, integers of more digits than
    Python reads (4300), names that occur twice in an object, half surrogate pairs, and more than `MAX_DEPTH` levels.
    """
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] in ("{", "[") and not bracketed_end(text, start)[1]:
        raise ValueError(f"not JSON, or nested in more than {MAX_DEPTH} levels")
    value = STRICT.decode(text)
    if "\\u" in text:
        check_whole_characters(json.dumps(value, ensure_ascii=False), "JSON")
    return value


def check_json(value: Any, where: str) -> None:
    """Raises ValueError unless JSON can hold the value and `read_json` reads it back."""
    try:
        read_json(json.dumps(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} has no exact JSON: {error}") from None


def bracketed_end(text: str, start: int) -> tuple[int, bool]:
    """(end, True) of the object or list that begins at `start`, or (where it cannot be JSON any more, False).

    Only strings and brackets are looked at, each character once; `read_json` checks the rest.
    """
    depth, at = 0, start
    while True:
        step = STEP.match(text, at)
        depth += len(step[2])
        if step[1] or step.end() == at or depth > MAX_DEPTH:
            return step.start(3), False
        if len(step[3]) >= depth:
            return step.start(3) + depth, True
        depth -= len(step[3])
        at = step.end()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _not_finite(text: str):
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large for a float")
    return value


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite)
