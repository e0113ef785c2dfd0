"""Configs of runs: nested frozen dataclasses, from nested dicts whose keys and types are checked, and back."""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from ling_jax.config import RENAMED_FIELDS
from ling_jax.messages import nearest

Config = TypeVar("Config")
Rule = tuple[Sequence[str], Callable[[Any], bool], str]  # (fields, test of a value, what an error says of it)


def from_dict(cls: type[Config], values: Any, where: str = "config") -> Config:
    """A config of the dataclass `cls` from nested dicts.

    Older names of fields are taken too (`RENAMED_FIELDS`). Raises ValueError on unknown keys, with the nearest known
    one, and on values of another type; `where` is the name of the config in its messages.
    """
    if dataclasses.is_dataclass(values):
        return values
    if not hasattr(values, "items"):
        example = ", ".join(repr(name) + ": …" for name in _required(cls) or _settings(cls))
        raise ValueError(f"{where} is {values!r}; expected a dict of {cls.__name__}'s fields, such as {{{example}}}")
    hints, values = _settings(cls), {RENAMED_FIELDS.get(key, key): value for key, value in values.items()}
    for key in values:
        if key not in hints:
            raise ValueError(f"{where}.{key} is unknown{nearest(key, hints)}; {cls.__name__} has {', '.join(hints)}")
    if missing := [name for name in _required(cls) if name not in values]:
        raise ValueError(f"{where}.{missing[0]} is missing ({cls.__name__} has no default for it)")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint, value, where: str):
    if hint is Any:
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        optional, hint = type(None) in typing.get_args(hint), _option(options, value)
        if value is None or (optional and _is_none(hint, value)):
            return None
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{where} is {value!r}; expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, a {type(value).__name__}; expected {hint.__name__}")
    return value


def _is_none(cls, value: Any) -> bool:
    """Whether `value` is the form in which `to_config_dict` writes a config of `cls` that is None."""
    needed = _required(cls) if dataclasses.is_dataclass(cls) and hasattr(value, "get") else []
    return bool(needed) and all(name in value and value[name] is None for name in needed)


def _required(cls) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]


def _option(options: Sequence[Any], value: Any) -> Any:
    """The first of several dataclasses that has all keys of a dict and lacks none that it needs; else the first."""

    def fits(cls) -> bool:
        return set(_required(cls)) <= set(value) <= {field.name for field in dataclasses.fields(cls)}

    if len(options) == 1 or not hasattr(value, "items"):
        return options[0]
    return next(filter(fits, options), options[0])


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """The config as an `ml_collections.ConfigDict`, which checks the types of overrides; None is a placeholder."""
    fields = {}
    for name, hint in _settings(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(value, tuple):
            value = tuple(dataclasses.asdict(item) if dataclasses.is_dataclass(item) else item for item in value)
        elif value is None:
            value = _placeholder(hint)
        fields[name] = value
    return ml_collections.ConfigDict(fields)


def _settings(cls) -> dict[str, Any]:
    """The types of a config's fields, without fields that equality ignores: these are no settings."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.compare}


def _placeholder(hint) -> Any:
    """The placeholder of a field that is None: for a dataclass its defaults, and placeholders of what has none."""
    kind = next((option for option in typing.get_args(hint) if option is not type(None)), hint)
    if not dataclasses.is_dataclass(kind):
        return config_dict.placeholder(kind)
    hints, defaults = typing.get_type_hints(kind), {f.name: f.default for f in dataclasses.fields(kind)}
    unset = (None, dataclasses.MISSING)
    return ml_collections.ConfigDict(
        {name: _placeholder(hints[name]) if value in unset else value for name, value in defaults.items()}
    )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 100, …} of a config or of its JSON form, without `hf_source`."""
    if dataclasses.is_dataclass(values):
        values = dataclasses.asdict(values)
    if isinstance(values, (list, tuple)):
        values = {str(i): item for i, item in enumerate(values)}
    if not isinstance(values, dict):
        return {prefix: values}
    flat = {}
    for key, value in values.items():
        if key != "hf_source":
            key = RENAMED_FIELDS.get(key, key)
            flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """The default of every field of a config that has one, as `flatten` names them."""
    found: dict[str, Any] = {}
    for field in (field for field in dataclasses.fields(config) if field.compare):  # as in `_settings`
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        parts = {name: value} if dataclasses.is_dataclass(value) else {}
        if isinstance(value, tuple):
            parts = {f"{name}.{i}": item for i, item in enumerate(value) if dataclasses.is_dataclass(item)}
        for where, part in parts.items():
            found |= _defaults(part, f"{where}.")
        if not parts and not isinstance(field.default, (tuple, type(dataclasses.MISSING))):
            found |= flatten({field.name: field.default}, prefix[:-1])
    return found


def check_fields(config: Any, rules: Sequence[Rule]) -> None:
    """Raises ValueError with name and value of the first field of a nested config that breaks its rule."""
    for names, good, wanted in rules:
        for name in names:
            value = functools.reduce(getattr, name.split("."), config)
            if not good(value):
                raise ValueError(f"{name} is {value!r}; it {wanted}")


def differences(old: Any, new: Any, resumable: Sequence[str]) -> list[str]:
    """A line for each field that differs between two configs and may not change on resumption.

    `resumable` are patterns of fields that may change. Where `new` is a dataclass, fields that `old` lacks count as
    their defaults: an older version wrote it.
    """
    old, new = (_defaults(new) if dataclasses.is_dataclass(new) else {}) | flatten(old), flatten(new)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    # A cosine ends at train.steps, so a run with another number of steps has other learning rates from the start.
    may_differ = [name for name in resumable if (name, new["optimizer.schedule"]) != ("train.steps", "cosine")]
    fixed = [
        key for key in changed if not any(fnmatchcase(key, name) or key.startswith(name + ".") for name in may_differ)
    ]
    return [f"{key}: {old.get(key)!r} in the workdir, {new.get(key)!r} now" for key in fixed]
