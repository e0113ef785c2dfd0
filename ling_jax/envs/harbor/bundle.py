"""Modules of this package for tasks that run without it: the very source files, which need the standard library alone.

    ling_jax/__init__.py                empty, like that of every package
    ling_jax/envs/tools/call.py         the file of this package
    …

They are in a zip file, from which Python imports.
"""

import ast
import functools
import io
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = "ling_jax"
ROOT = Path(__file__).parents[3]


@functools.cache
def sources(*modules: str) -> Mapping[str, bytes]:
    """{path: content} of modules and of all of this package that they import.

    Raises ValueError where one of them imports what is neither a module of this package nor of the standard library.
    """
    found: dict[str, bytes] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        path = f"{name.replace('.', '/')}.py"
        if path not in found:
            found[path] = (ROOT / path).read_bytes()
            waiting += _imports(name, found[path])
    packages = {parent for path in found for parent in Path(path).parents if parent.name}
    return found | {f"{package.as_posix()}/__init__.py": b"" for package in packages}


def archive(modules: Iterable[str], files: Mapping[str, bytes]) -> bytes:
    """A zip file of the `sources` of modules, and of other files by path. Equal arguments make equal bytes."""
    files = {**sources(*modules), **files}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        for path in sorted(files):
            packed.writestr(zipfile.ZipInfo(path), files[path], zipfile.ZIP_DEFLATED)  # without the time
    return made.getvalue()


def _imports(name: str, source: bytes) -> Iterator[str]:
    """The modules of this package that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]  # of a package, its modules
            wanted = [str(node.module)] if _is_module(str(node.module)) else inner
        else:
            continue
        for each in wanted:
            if _is_module(each):
                yield each
            elif each.split(".")[0] not in sys.stdlib_module_names:
                raise ValueError(f"{name} imports {each}; a task carries modules that need the standard library alone")


def _is_module(name: str) -> bool:
    return name.startswith(f"{PACKAGE}.") and (ROOT / f"{name.replace('.', '/')}.py").is_file()
