"""A tool is a schema and a function of its toolkit's state; what is wrong with a call is an answer, no exception."""

import json
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ling_jax.messages import nearest

Call = dict[str, Any]  # {"name", "arguments"}
Message = dict[str, Any]  # {"role", "content"}
KitState = Mapping[str, Any]
World = Mapping[str, KitState]  # by toolkit

NOUN = {"type": "string"}
AMOUNT = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
TYPES = {"string": str, "integer": int, "number": int | float, "boolean": bool, "array": list, "object": dict}


class ToolError(Exception):
    """What a tool refuses to do; its text is the answer to the call."""


class Tool(NamedTuple):
    schema: dict[str, Any]  # OpenAI's form
    run: Callable[..., tuple[KitState, Any]]  # (state, **arguments) -> (new state, result); raises ToolError
    changes: bool  # whether it can change the state; a tool that only reads may be called at any time

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


def tool(run, description: str, parameters: Mapping[str, Mapping[str, Any]], *, changes: bool) -> Tool:
    """The tool named like `run`; all its parameters are required."""
    schema = {"type": "object", "properties": dict(parameters), "required": list(parameters)}
    function = {"name": run.__name__, "description": description, "parameters": schema}
    return Tool({"type": "function", "function": function}, run, changes)


def call_tool(tools: Mapping[str, Tool], state: KitState, call: Call) -> tuple[KitState, Any, str | None]:
    """(new state, result, error), of which one of the last two is None; with an error the state is the old one."""
    name = call["name"]
    if name not in tools:
        return state, None, f"unknown tool {_short(name)}{nearest(name, tools)}; there are {', '.join(tools)}"
    error = argument_error(tools[name].schema["function"]["parameters"], call["arguments"])
    if error:
        return state, None, f"{name}: {error}"
    try:
        return *tools[name].run(state, **call["arguments"]), None
    except ToolError as refused:
        return state, None, f"{name}: {refused}"


def carry_out(offered: Mapping[str, tuple[str, Tool]], world: World, call: Call) -> tuple[World, Any, str | None]:
    """`call_tool` on the world of several toolkits; `offered` is name -> (toolkit, tool)."""
    kit = offered[call["name"]][0] if call["name"] in offered else None
    tools = {name: tool for name, (_, tool) in offered.items()}
    state, result, error = call_tool(tools, world.get(kit, {}), call)
    return {**world, kit: state} if error is None else world, result, error


def told(content: Any) -> Message:
    """The message in which a tool answers."""
    return {"role": "tool", "content": json.dumps(content)}


def argument_error(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """What is wrong with arguments by their schema, or None."""
    properties = schema["properties"]
    for name in arguments:
        if name not in properties:
            return f"unknown argument {_short(name)}{nearest(name, properties)}; it takes {', '.join(properties)}"
    for name in schema["required"]:
        if name not in arguments:
            return f"argument {name!r} is missing"
    errors = (_value_error(name, value, properties[name]) for name, value in arguments.items())
    return next((error for error in errors if error), None)


def _value_error(name: str, value: Any, schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "boolean")):
        return f"argument {name!r} is {_short(value)}; expected a value of type {kind}"
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        return f"argument {name!r} is {_short(value)}; expected {schema['minimum']} to {schema['maximum']}"
    if value not in schema.get("enum", (value,)):
        return f"argument {name!r} is {_short(value)}; expected one of {', '.join(map(str, schema['enum']))}"
    items = schema.get("items", {}) if kind == "array" else {}
    errors = (_value_error(f"{name}[{i}]", item, items) for i, item in enumerate(value)) if items else ()
    return next((error for error in errors if error), None)


def known(state: KitState, name: str, kind: str) -> Any:
    """state[name], or a ToolError that offers what there is."""
    if name not in state:
        raise ToolError(f"unknown {kind} {_short(name)}{nearest(name, state)}; there are {', '.join(state)}")
    return state[name]


def _short(value: Any) -> str:
    """A policy can write values of any size."""
    return reprlib.repr(value)
