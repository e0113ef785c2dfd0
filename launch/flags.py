"""How every program here reads its flags: what is wrong with them is one message and exit code 2."""

import contextlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from ling_jax.config import nearest

EXAMPLE = "configs/pretrain/tiny_2_6.py"
OVERRIDE = re.compile(r"--?config\.([^=]+)")


def define_config() -> flags.FlagHolder:
    """`--config FILE`, whose fields `--config.a.b=value` and `--config.a[0].b=value` override."""
    holder = config_flags.DEFINE_config_file("config", help_string=f"the experiment, a file such as {EXAMPLE}")
    flags.mark_flag_as_required("config")
    return holder


def define_thinking() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """`--thinking` and `--effort`, of how a chat template asks for an answer."""
    from ling_jax.chat.thinking import CHOICES  # it imports JAX, which other programs set up first

    thinking = flags.DEFINE_enum(
        "thinking", "default", [*CHOICES], "whether to think first; default: as the chat template has it"
    )
    return thinking, flags.DEFINE_string("effort", "", "how hard to think, such as high; none if not given")


def run_program(main: Callable[[], None]) -> None:
    """Runs a program whose `main` takes no arguments. Libraries' own progress shows with `--verbosity=0`."""
    try:
        app.run(lambda argv: _main(main), flags_parser=_parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # no waiting for threads that compile


def define_checks() -> None:
    """`--no_verify` and `--strict`, of how the checkpoints that a program reads are looked at."""
    flags.DEFINE_bool("no_verify", False, "read checkpoints without comparing their files with their manifests")
    flags.DEFINE_bool("strict", False, "a damaged newest checkpoint is an error; else the newest whole one is read")


def _main(main: Callable[[], None]) -> None:
    if "no_verify" in flags.FLAGS:
        from ling_jax.sums import checks

        checks.verify, checks.strict = not flags.FLAGS.no_verify, flags.FLAGS.strict
    main()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Around what reads the user's input: ValueError and OSError there end the program with exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        _fail(error)


def check_sampling(temperature: float, top_p: float, stop: Sequence[str]) -> None:
    """Raises ValueError for what the types of these flags let through."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if not math.isfinite(value):
            raise ValueError(f"--{name} is {value}; expected a finite number")
    if "" in stop:
        raise ValueError("--stop is empty: every text ends there; name a text, or leave it out")


def check_output(flag: str, file: str) -> None:
    """Raises ValueError where a file to write (or "") cannot be one: before the work that fills it."""
    if file and epath.Path(file).is_dir():
        raise ValueError(f"--{flag}={file} is a folder; name a file in it")
    if file and not (folder := epath.Path(file).absolute().parent).is_dir():
        raise ValueError(f"--{flag}={file}: its folder does not exist")
    if file and "://" not in file and not os.access(folder, os.W_OK):
        raise ValueError(f"--{flag}={file}: nothing can be written into its folder")


def _fail(error) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    try:
        if "config" in flags.FLAGS:
            _check_overrides(argv)
        left = flags.FLAGS(argv)
        if len(left) > 1:
            raise flags.Error(f"{left[1]!r} is no flag; write --name=value")
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # set, or absl makes it INFO
        return left
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        _fail(error)


def _load(path: str):
    """The config of a file; whatever goes wrong in it is told with its line."""
    file = path.split(":")[0]
    if not os.path.isfile(file):
        raise flags.Error(f"--config={path}: {file} does not exist; name a file such as {EXAMPLE}")
    try:
        config = flags.FLAGS["config"].parser.parse(path)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
        where = f"{file}, line {lines[-1]}" if lines else file
        raise flags.Error(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise flags.Error(f"{file}: get_config() gives a {type(config).__name__}; it must give a ConfigDict")
    return config


def _check_overrides(argv: list[str]) -> None:
    """Their names against the config that they change; the flag itself would only say which part of one is unknown."""
    names = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=names)
    names(argv, known_only=True)
    if names.config is None:
        return
    config = _load(names.config)
    for name in (match[1] for match in map(OVERRIDE.match, argv) if match):
        node, where = config, "config"
        for part in config_path.split(name):
            if isinstance(part, int):
                if not isinstance(node, (tuple, list)) or not 0 <= part < len(node):
                    raise flags.Error(f"--config.{name}: {where} has no item {part}")
                where += f"[{part}]"
            else:
                if not isinstance(part, str):
                    raise flags.Error(f"--config.{name}: items have numbers, as in {where}[0]")
                if not hasattr(node, "keys"):
                    raise flags.Error(f"--{where} is a value; it has no field {part!r}")
                if part not in node:
                    raise flags.Error(f"--config.{name}: {where} has no field {part!r}{nearest(part, node.keys())}")
                where += f".{part}"
            node = node[part]
        if where.endswith("]"):
            raise flags.Error(
                f"--config.{name} is a whole item; override its fields, or all of {where.rpartition('[')[0]}"
            )
