"""The OpenAPI description of the endpoints."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from ling_jax.rl.trajectory import BRANCHES, SAMPLES
from ling_jax.serve import protocol

NOTHING: Mapping[str, Any] = MappingProxyType({})

ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
POSTS = {
    "/v1/completions": protocol.CompletionBody,
    "/v1/chat/completions": protocol.ChatBody,
    "/tokenize": protocol.TokenizeBody,
    "/detokenize": protocol.DetokenizeBody,
    "/v1/weights/init": protocol.InitBody,
    "/v1/weights/start": protocol.StartBody,
    "/v1/weights/update": protocol.UpdateBody,
    "/v1/weights/finish": protocol.FinishBody,
    "/v1/weights/abandon": protocol.EmptyBody,
}
GETS = (
    "/health", "/metrics", "/openapi.json", "/tokenizer_info", "/v1/models", "/v1/models/{name}", "/v1/sessions",
    "/v1/sessions/{name}",
)  # fmt: skip
QUERIES = {"/v1/sessions/{name}": {"samples": SAMPLES, "branches": BRANCHES}}
STATUSES = ("400", "401", "403", "404", "408", "409", "413", "415", "429", "503")


def description() -> dict[str, Any]:
    """The document; its schemas are those that requests are checked by."""
    schemas: dict[str, Any] = {"Error": ERROR}
    for kind in POSTS.values():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    paths: dict[str, Any] = {path: {"get": _operation(path, QUERIES.get(path, {}))} for path in GETS}
    paths["/v1/sessions/{name}"]["delete"] = _operation("/v1/sessions/{name}")
    for path, kind in POSTS.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
        paths[path] = {"post": _operation(path) | {"requestBody": {"required": True, "content": content}}}
    info = {"title": "ling_jax", "version": version("ling_jax")}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _operation(path: str, queries: Mapping[str, Sequence[str]] = NOTHING) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    responses = {status: {"description": "an error", **error} for status in STATUSES}
    named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    parameters: list[dict[str, Any]] = [named] if "{name}" in path else []
    for name, known in queries.items():
        parameters.append({"name": name, "in": "query", "schema": {"enum": list(known), "default": known[0]}})
    found: dict[str, Any] = {"responses": {"200": {"description": "the answer"}, **responses}}
    return found | ({"parameters": parameters} if parameters else {})
