"""Malformed bodies for a server: wrong types, huge numbers, broken text, deep nesting, unknown fields."""

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
