"""What a server is asked: malformed bodies, random JSON schemas, and a mixture of good requests."""

import json
import random
from collections.abc import Iterator
from typing import Any

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
CHAT = {
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 1,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
    "stop": ["x"],
    "logit_bias": {"1": 1},
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "seed": 1,
    "n": 1,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "x", "max_tokens": 1, "logprobs": 1, "echo": False, "stop": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1, 2]},
}
WRONG: list[Any] = [
    None, True, -1, 0, 10**30, -(10**30), 1e308, "", "x", "\x00", "\ud800", [], [[]], [None], {}, {"a": {"b": []}},
    [1, "x"], {"type": "x"}, {"": 0}, "a" * 5000, [0] * 3000, 0.1, "1",
]  # fmt: skip


def bad_bodies(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """(path, body) of so many requests."""
    rng = random.Random(seed)
    for _ in range(count):
        path = rng.choice(PATHS)
        yield path, rng.choice((_wrong_value, _wrong_value, _unknown_field, _deep, _cut, _bytes, _huge))(rng, path)


def _wrong_value(rng: random.Random, path: str) -> bytes:
    """A good body with another value somewhere."""
    body = json.loads(json.dumps(BODIES[path]))
    node = body
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
            node = node[key]
        else:
            node[key] = rng.choice(WRONG)
            return json.dumps(body).encode()


def _unknown_field(rng: random.Random, path: str) -> bytes:
    name = rng.choice(["temprature", "", "__class__", "messages ", "n\x00", "x" * 2000])
    return json.dumps(BODIES[path] | {name: rng.choice(WRONG)}).encode()


def _deep(rng: random.Random, path: str) -> bytes:
    depth, field = rng.choice([50, 101, 5000, 50_000]), rng.choice(list(BODIES[path]))
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    return f'{{"{field}": {opening * depth}1{closing * depth}}}'.encode()


def _cut(rng: random.Random, path: str) -> bytes:
    body = json.dumps(BODIES[path]).encode()
    return body[: rng.randrange(len(body))]


def _bytes(rng: random.Random, path: str) -> bytes:
    """Broken UTF-8 in the middle of a body, or no text at all."""
    body = json.dumps(BODIES[path]).encode()
    at = rng.randrange(len(body))
    return rng.choice([body[:at] + b"\xff\xc0" + body[at:], rng.randbytes(50), b"\xef\xbb\xbf" + body, b"\x00"])


def _huge(rng: random.Random, path: str) -> bytes:
    field = rng.choice(list(BODIES[path]))
    number = rng.choice(["9" * 400, "9" * 5000, "1e400", "-1e-400", "NaN", "Infinity", "0x10", "1_000", "٣"])
    return f'{{"{field}": {number}}}'.encode()


# Schemas of what grammars can follow, whose answers end soon even where tokens are random.


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


# Good requests.

SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["a", "ß"]}},
    "required": ["count", "kind"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "first", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
FORCED = {"tools": [TOOL], "tool_choice": "required"}, {"response_format": FORM}, {"reasoning_effort": "high"}


def mixed_requests(count: int, *, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of so many requests, no two alike: chats and completions, streams and whole answers."""
    rng = random.Random(seed)
    return [_mixed(rng, number) for number in range(count)]


def _mixed(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    common = {"seed": number, "max_tokens": rng.randint(1, 60), "stream": rng.random() < 0.7}
    common["temperature"] = rng.choice([0, 0.7, 1.0])
    words = " ".join(rng.choices(["some", "words", "call", "tool"], k=rng.randint(1, 40)))
    if rng.random() < 0.3:
        more = rng.choice([{}, {"logprobs": 0}, {"n": 3}, {"stop": "e"}])
        return "/v1/completions", {"prompt": words} | common | more
    more = rng.choice([{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"top_p": 0.9}, *FORCED])
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": words}]} | common | more
