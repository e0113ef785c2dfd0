"""Checks of the config file of a command and of its overrides, with hints about what was probably meant."""

import dataclasses
import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_flags import config_path

from launch.config_fields import fields
from ling_jax.messages import nearest

EXAMPLE = "configs/pretrain/tiny_2_6.py"
OVERRIDE = re.compile(r"--?config\.([^=]+)(=?)")
MAX_NAMED = 4  # fields or files in a hint
SYNONYMS = {  # other programs' words: the end of our field's name
    "lr": "peak_lr",
    "learning_rate": "peak_lr",
    "epochs": "steps",
    "num_train_epochs": "steps",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "microbatches",
    "max_seq_length": "sequence_length",
    "seq_len": "sequence_length",
    "model": "start_from",
    "teacher": "teachers[i].model",
    "data": "sources[i].path",
}


def check_config_file(path: str, classes: Sequence[type]) -> ml_collections.ConfigDict:
    """The config of a file. Raises flags.Error that names the line of an error, or the program of another config."""
    file = path.split(":")[0]
    if not os.path.isfile(file):
        raise flags.Error(f"--config={path}: {_no_file(Path(file))}")
    try:
        config = flags.FLAGS["config"].parser.parse(path)
        getattr(config, "items", None)  # ml_collections keeps an OSError of the file until its config is read
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise flags.Error(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise flags.Error(f"{file}: get_config() gives a {type(config).__name__}; it must give a ConfigDict")
    if not any(_knows(cls, config) for cls in classes) and (other := _program_of(Path(file))):
        raise flags.Error(f"--config={path} is a config of {other}, and this is {_this_program()}")
    return config


def check_overrides(argv: Sequence[str], classes: Sequence[type]) -> None:
    """Raises flags.Error, with a hint, where an override names no field of the config."""
    names = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=names)
    names(argv, known_only=True)
    if names.config is None:
        return
    config = check_config_file(names.config, classes)
    for match in filter(None, map(OVERRIDE.match, argv)):
        _check_override(match[1], config)


def meant_fields(name: str, classes: Sequence[type]) -> str:
    """ "; did you mean --config.train.steps?" for a flag `steps` that a program does not have, else ""."""
    return _meant(_called(name, [field.name.replace("[i]", "[0]") for field in fields(classes)] if classes else []))


def _called(name: str, listed: Iterable[str]) -> list[str]:
    """The fields whose name ends in a word, or in what other programs mean by it."""
    word = SYNONYMS.get(name, name).replace("[i]", "[0]")
    return [field for field in listed if f".{field}".endswith(f".{word}") and ("[" in word or "[" not in field)]


def _meant(found: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(f'--config.{field}' for field in found[:MAX_NAMED])}?" if found else ""


def _check_override(name: str, config: ml_collections.ConfigDict) -> None:
    node, where = config, "config"
    for part in config_path.split(name):
        node, where = _step_into(node, part, where, name, config)
    if where.endswith("]"):
        raise flags.Error(f"--config.{name} is a whole item; override its fields, or all of {where.rpartition('[')[0]}")
    if isinstance(node, ml_collections.ConfigDict):
        some = ", ".join(f"--config.{name}.{field}" for field in list(node)[:MAX_NAMED])
        raise flags.Error(f"--config.{name} is a group of {len(node)} fields; override them one by one: {some}, …")


def _step_into(node: Any, part: Any, where: str, name: str, config: ml_collections.ConfigDict) -> tuple[Any, str]:
    """(the value of a part of a field, its name). Raises flags.Error where there is none."""
    if isinstance(part, int):
        if not isinstance(node, (tuple, list)) or not 0 <= part < len(node):
            raise flags.Error(f"--config.{name}: {where} has no item {part}")
        return node[part], f"{where}[{part}]"
    if not isinstance(part, str):
        raise flags.Error(f"--config.{name}: items have numbers, as in {where}[0]")
    if not hasattr(node, "keys"):
        raise flags.Error(f"--{where} is a value; it has no field {part!r}")
    if part not in node:
        raise flags.Error(f"--config.{name}: {where} has no field {part!r}{_near(part, node, config)}")
    return node[part], f"{where}.{part}"


def _near(part: str, node: Any, config: ml_collections.ConfigDict) -> str:
    """A hint: the field of that name in another group, the nearest name in this group, or all fields of it."""
    if found := _called(part, _names(config, "")):
        return _meant(found)
    if not node:
        return "; it is empty in the file: copy the file, and fill it there"
    return nearest(part, node.keys()) or f"; it has {', '.join(node.keys())}"


def _names(node: ml_collections.ConfigDict, prefix: str) -> Iterable[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, ml_collections.ConfigDict):
            yield from _names(value, f"{prefix}{name}.")


def _no_file(path: Path) -> str:
    if path.is_dir():
        inside = sorted(str(file) for file in path.rglob("*.py"))
        return f"{path} is a folder; name a file in it{': ' + ', '.join(inside[:MAX_NAMED]) if inside else ''}"
    known = {file.stem: str(file) for file in sorted(Path("configs").rglob("*.py"))}
    close = difflib.get_close_matches(path.stem, known, n=1, cutoff=0.75)
    hint = f"did you mean {known[close[0]]}?" if close else f"name a file such as {EXAMPLE}"
    return f"{path} does not exist; {hint}"


def _knows(cls: type, config: ml_collections.ConfigDict) -> bool:
    return set(config) <= {field.name for field in dataclasses.fields(cls) if field.compare}


def _program_of(file: Path) -> str | None:
    """The program of a config file: the last one in its docstring, since earlier ones prepare its inputs."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"python -m (launch\.\w+)[^\n]*" + re.escape(file.name), text)
    return found[-1] if found else None


def _this_program() -> str:
    return f"launch.{Path(sys.argv[0]).stem}"
