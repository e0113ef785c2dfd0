"""Functions and classes of the user's own, which configs and flags name as `module:name`."""

import importlib
import os
import sys
import traceback
from types import FrameType, ModuleType
from typing import Any

from ling_jax.messages import nearest

MAX_NAMED = 10  # names of a module in a message; our choice


def load_object(name: str, field: str) -> Any:
    """What `module:name` names; modules are found from the current folder and in PYTHONPATH.

    Raises ValueError, which begins with the field, for a name of another form, a module that is not there or cannot be
    imported, and a name that the module does not have.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ValueError(f"{field} is {name!r}; expected module:name, such as my_module:{attribute or 'name'}")
    module = _import(module_name, f"{field} is {name!r}")
    if not hasattr(module, attribute):
        names = [known for known in vars(module) if not known.startswith("_")]
        has = f"; it has {', '.join(names[:MAX_NAMED]) or 'no names'}{', …' if len(names) > MAX_NAMED else ''}"
        meant = nearest(attribute, names) or has
        raise ValueError(f"{field} is {name!r}: {module_name} has no {attribute!r}{meant}")
    return getattr(module, attribute)


def _import(name: str, start: str) -> ModuleType:
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # the file may be younger than this process
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            file = f"{error.name.replace('.', '/')}.py"
            raise ValueError(
                f"{start}: there is no module {error.name}; expected {file} in the current folder, {os.getcwd()}, or "
                "in a folder of PYTHONPATH"
            ) from None
        message = " ".join(str(error).split())
        raise ValueError(
            f"{start}: {name} cannot be imported: {type(error).__name__}: {message}{_line(error, name)}"
        ) from None


def _line(error: BaseException, name: str) -> str:
    """Where a module raised an error; "" where that is not known, and for syntax errors, which say it."""
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__) if _is_of(f, name)]
    return f" ({frames[-1][0]}, line {frames[-1][1]})" if frames else ""


def _is_of(frame: FrameType, name: str) -> bool:
    return frame.f_globals.get("__name__") == name
