"""The fields of config dataclasses with their comments, for --help and the documentation."""

import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

REQUIRED = object()


class Field(NamedTuple):
    """A field that `--config.NAME=value` overrides."""

    name: str  # with its groups, such as train.steps
    type: str
    default: Any  # REQUIRED where a config must name it
    text: str  # its comment


def fields(classes: Sequence[type], prefix: str = "") -> Iterator[Field]:
    """All fields of config dataclasses, also those in groups; each name once."""
    seen: set[str] = set()
    for cls in classes:
        hints, texts = typing.get_type_hints(cls), comments(cls)
        for field in dataclasses.fields(cls):
            if field.compare and field.name not in seen:
                seen.add(field.name)
                yield from _field(field, hints[field.name], f"{prefix}{field.name}", texts.get(field.name, ""))


def _field(field: dataclasses.Field, hint: Any, name: str, text: str) -> Iterator[Field]:
    options = [option for option in _options(hint) if option is not type(None)]
    groups = [option for option in options if dataclasses.is_dataclass(option)]
    if groups:
        yield from fields(groups, f"{name}.")
        return
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    kind = f"tuple of {_name(item)}" if item else " or ".join(map(_name, _options(hint)))
    yield Field(name, kind, REQUIRED if default is dataclasses.MISSING else default, text)
    for group in (option for option in _options(item) if dataclasses.is_dataclass(option)):
        yield from fields([group], f"{name}[i].")


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _name(hint: Any) -> str:
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def comments(cls: type) -> dict[str, str]:
    """{field: its comment on the same line, or the comment lines above} of a dataclass and those that it extends."""
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    return {name: text for base in bases for name, text in _own_comments(base).items()}


def _own_comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    found: dict[str, str] = {}
    above: list[str] = []
    name = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.line.strip()
        if token.type == tokenize.COMMENT and line.startswith("#"):
            above.append(token.string.lstrip("# "))
        elif token.type == tokenize.COMMENT and name:
            found[name] = token.string.lstrip("# ")
        elif token.type == tokenize.NEWLINE:
            above, name = [], None
        elif token.type == tokenize.NAME and name is None and (match := re.match(r"(\w+):", line)):
            name = match[1]
            if above:
                found[name] = " ".join(above)
    return found


def field_lines(classes: Sequence[type]) -> list[str]:
    """A line for each field, as --help shows it."""
    return [_line(field) for field in fields(classes)]


def _line(field: Field) -> str:
    default = "" if field.default is REQUIRED else f" = {field.default!r}"
    text = f"  # {field.text}" if field.text else ""
    return f"  {field.name}: {field.type}{default}{text}"
