"""What can be wrong before a program's imports: its name, the Python, the packages. Python's own modules alone."""

import difflib
import importlib.util
import os
import sys
from pathlib import Path

OLDEST = (3, 11)
START = '\nif __name__ == "__main__":'
PACKAGE = "absl"  # which every program imports first
OURS = ("launch", "ling_jax", "pallas_kernels")


def check_start():
    """Ends `python -m launch.NAME` with one line where it cannot begin."""
    command = getattr(sys, "orig_argv", [])  # Python 3.10 has it first
    name = command[command.index("-m") + 1] if "-m" in command else "launch"
    problem = _old_python() or (_unknown_program(name) or _missing_packages() if name != "launch" else "")
    if problem:
        _end(problem)
    sys.excepthook = _explain


def program_sources():
    """{name: source} of every program in this folder."""
    sources = {file.stem: file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    return {name: source for name, source in sources.items() if START in source}


def _unknown_program(name):
    programs = program_sources()
    if name.partition(".")[2] in programs:
        return ""
    near = difflib.get_close_matches(name.partition(".")[2], programs, n=1)
    meant = f"; did you mean launch.{near[0]}?" if near else ""
    return f"there is no program {name}{meant} (python -m launch lists them)"


def _old_python():
    if sys.version_info >= OLDEST:
        return ""
    return (
        f"Python {sys.version.split()[0]} is too old; ling_jax needs {'.'.join(map(str, OLDEST))}: "
        "make install PYTHON=python3.11, then . .venv/bin/activate"
    )


def _missing_packages():
    return (
        "" if importlib.util.find_spec(PACKAGE) else _not_installed(f"the packages are not installed in {sys.prefix}")
    )


def _not_installed(problem):
    if (Path(__file__).parents[1] / ".venv" / ".installed").exists():
        return f"{problem}; activate the environment of this checkout: . .venv/bin/activate"
    return f"{problem}; run `make install` (again, where it was interrupted), then . .venv/bin/activate"


def _explain(kind, error, trace):
    """The hook of an error that ends a program: a package that is missing, or there by half, is one line."""
    name = getattr(error, "name", None) or ""
    if not issubclass(kind, ImportError) or not name or name.partition(".")[0] in OURS:
        sys.__excepthook__(kind, error, trace)
        return
    _end(_not_installed(f"the packages in {sys.prefix} are not complete ({error})"))


def _end(problem):
    print(f"error: {problem}", file=sys.stderr, flush=True)
    os._exit(2)
