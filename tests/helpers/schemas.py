"""Random JSON schemas of what grammars can follow, whose answers end soon even where tokens are random."""

import random
from typing import Any


def random_schemas(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Schemas of objects, lists, unions, enums, constants, references and scalars with bounds."""
    rng = random.Random(seed)
    return [_with_definition(rng) for _ in range(count)]


def _with_definition(rng: random.Random) -> dict[str, Any]:
    schema = _object(rng, 2)
    if rng.random() < 0.3:
        schema["$defs"] = {"part": _object(rng, 1)}
        schema["properties"]["ref"] = {"$ref": "#/$defs/part"}
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = [f"{rng.choice('abcß')}{i}" for i in range(rng.randint(1, 4))]
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: _schema(rng, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_integer, _number, _string, _enum, _constant, _boolean, _null]
    if depth > 0:
        kinds += [_nested, _list, _union]
    return rng.choice(kinds)(rng, depth)


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-5, 5)
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 10)}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    bounds = [{"maxLength": rng.randint(0, 8)}, {"pattern": "^[a-c]{1,4}$"}, {"minLength": 2, "maxLength": 5}]
    return {"type": "string"} | rng.choice(bounds)


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(["a", "ß\n", 1, -2.5, None, True, "a longer text"], 3)}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(["x", 7, None, False])}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _null(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["null", "boolean"]}


def _nested(rng: random.Random, depth: int) -> dict[str, Any]:
    return _object(rng, depth)


def _list(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "items": _schema(rng, depth - 1), "maxItems": rng.randint(1, 3)}


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(2)]}
