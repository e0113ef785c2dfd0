"""Strict JSON of models and data sets: values without an exact form in Python are errors."""

import json
import math
import re
from typing import Any

from ling_jax.data.json_lines import check_whole_characters

MAX_DEPTH = 100  # of nested lists and objects; our choice, far below Python's recursion limit
# Strings and other JSON text without brackets, then either the start of a string without end on its line, or brackets.
# Possessive quantifiers: the regular expression never backtracks.
STRING = r'"(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+'
STEP = re.compile(rf'(?:[^"\\<{{}}\[\]]++|{STRING}")*+({STRING}\\?)?([{{\[]*+)([}}\]]*+)')


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError where it has no exact value in Python.

    Besides other text these are NaN, Infinity, numbers too large for a float, integers of more than 4300 digits, names
    that occur twice in an object, half surrogate pairs, and more than `MAX_DEPTH` levels.
    """
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] in ("{", "[") and not bracketed_end(text, start)[1]:
        raise ValueError(f"not JSON, or nested in more than {MAX_DEPTH} levels")
    value = STRICT.decode(text)
    if "\\u" in text:
        check_whole_characters(json.dumps(value, ensure_ascii=False), "JSON")
    return value


def check_json(value: Any, where: str) -> None:
    """Raises ValueError unless `read_json` reads the JSON of the value back."""
    try:
        read_json(json.dumps(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} has no exact JSON: {error}") from None


def bracketed_end(text: str, start: int) -> tuple[int, bool]:
    """(end, True) of the object or list that begins at `start`, or (the position of its first error, False).

    It reads strings and brackets only, in linear time; `read_json` checks the rest.
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
