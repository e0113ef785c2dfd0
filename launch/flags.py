"""The flags of all programs; a mistake in them is one message and exit code 2."""

import contextlib
import difflib
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from launch.config_fields import field_lines
from launch.interrupts import Stopped, end, handle_signals
from launch.memory import out_of_memory
from launch.overrides import EXAMPLE, check_overrides, meant_fields
from ling_jax.paths import as_path, is_remote, store_errors
from ling_jax.preflight import check_new, raise_open_files

HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")
NUMBER = re.compile(r"flag (--\S+?)=(.*): invalid literal for int\(\) with base 10: .*")
MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value")
_config_classes: tuple[type, ...] = ()  # of the program's config; `define_config` sets it once


def define_config(*classes: type) -> flags.FlagHolder:
    """The flag `--config FILE`; `--config.a.b=value` and `--config.a[0].b=value` override its fields.

    The config of the file belongs to one of `classes`, whose fields --help lists.
    """
    global _config_classes
    _config_classes = classes
    holder = config_flags.DEFINE_config_file("config", help_string=f"the experiment, a file such as {EXAMPLE}")
    flags.mark_flag_as_required("config")
    return holder


def define_thinking() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """The flags `--thinking` and `--effort` of chat templates."""
    from ling_jax.chat.thinking import CHOICES  # it imports JAX, which other programs set up first

    thinking = flags.DEFINE_enum(
        "thinking", "default", [*CHOICES], "whether to think first; default: as the chat template has it"
    )
    return thinking, flags.DEFINE_string("effort", "", "how hard to think, such as high; none if not given")


def run_program(main: Callable[[], None]) -> None:
    """Runs a program whose `main` takes no arguments. `--verbosity=0` shows the logs of libraries."""
    handle_signals()
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows é as \xe9
    try:
        app.run(lambda argv: _main(main), flags_parser=_parse)
    except Stopped as stopped:
        end(stopped)
    except Exception as error:
        if not (message := out_of_memory(error)):
            raise
        _fail(message)


def define_checks() -> None:
    """The flags `--no_verify` and `--strict` of programs that read checkpoints."""
    flags.DEFINE_bool("no_verify", False, "read checkpoints without comparing their files with their manifests")
    flags.DEFINE_bool("strict", False, "a damaged newest checkpoint is an error; else the newest whole one is read")


def _main(main: Callable[[], None]) -> None:
    with usage_errors():
        raise_open_files()
    if "no_verify" in flags.FLAGS:
        from ling_jax.sums import checks

        checks.verify, checks.strict = not flags.FLAGS.no_verify, flags.FLAGS.strict
    main()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """A block that reads the user's input: ValueError and OSError end the program with one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError, *store_errors()) as error:
        _fail(error)


def check_sampling(temperature: float, top_p: float, stop: Sequence[str]) -> None:
    """Raises ValueError on values that the types of these flags allow."""
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if not math.isfinite(value):
            raise ValueError(f"--{name} is {value}; expected a finite number")
    if "" in stop:
        raise ValueError("--stop is empty: every text ends there; name a text, or leave it out")


def check_output(flag: str, file: str) -> None:
    """Raises ValueError or OSError where an output file cannot be written; "" is no file. Call it before the work."""
    if not file:
        return
    path = as_path(file)
    if path.is_dir():
        raise ValueError(f"--{flag}={file} is a folder; name a file in it")
    if not is_remote(path) and not path.absolute().parent.is_dir():
        raise ValueError(f"--{flag}={file}: its folder does not exist")
    check_new(file)


def _fail(error) -> NoReturn:
    if type(error) is FileNotFoundError and error.filename and error.errno:  # of open(), which says no more
        error = f"{error.filename} does not exist; name a file or folder that is there"
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    if any(arg in HELP for arg in argv):
        print(_help())
        sys.exit(0)
    try:
        if _config_classes:
            check_overrides(argv, _config_classes)
        left = flags.FLAGS(argv)
        if len(left) > 1:
            raise flags.Error(f"{left[1]!r} is no flag; write --name=value")
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # set, or absl makes it INFO
        return left
    except flags.UnrecognizedFlagError as error:
        _fail(f"there is no flag --{error.flagname}{_meant(error.flagname)} (--help lists the flags)")
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        _fail(_missing(str(error), argv) or NUMBER.sub(r"\1=\2 is no whole number", str(error)))


def _meant(name: str) -> str:
    """What was probably meant by a flag that this program does not have."""
    near = difflib.get_close_matches(name, _own_flags(sys.argv[0]), n=2)
    return meant_fields(name, _config_classes) or (
        f"; did you mean {' or '.join(f'--{n}' for n in near)}?" if near else ""
    )


def _missing(error: str, argv: Sequence[str]) -> str:
    """The message for missing required flags; "" for another error."""
    names = MISSING.findall(error)
    if not names:
        return ""
    lines = [f"--{name} is missing: {' '.join(flags.FLAGS[name].help.split())}" for name in names]
    if stray := next((arg for arg in argv[1:] if not arg.startswith("-")), None):
        lines.append(f"{stray!r} is no flag; write --name=value")
    return "; ".join(lines) + " (--help lists the flags)"


def _help() -> str:
    """The text of --help: the docstring of the program, its flags, and the fields of its config."""
    module = sys.modules["__main__"]
    text = [(module.__doc__ or "").strip(), "", "Flags (--name=value):"]
    for name in sorted(_own_flags(sys.argv[0])):
        flag = flags.FLAGS[name]
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        text.append(textwrap.fill(f"--{name}: {' '.join(flag.help.split())}{default}", 118, subsequent_indent="    "))
    if _config_classes:
        text += ["", "Fields of the config (--config.NAME=value; one without a default stands in the file):"]
        text += field_lines(_config_classes)
    return "\n".join(text)


def _own_flags(program: str) -> set[str]:
    """The names of the flags that modules of this folder define."""
    modules = flags.FLAGS.flags_by_module_dict().items()
    ours = (defined for name, defined in modules if name == program or name.startswith("launch."))
    return {flag.name for defined in ours for flag in defined} | ({"config"} if _config_classes else set())
