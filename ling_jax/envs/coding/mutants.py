"""Seed modules, their tests, and the table of mistakes that some of their tests find and others do not.

The table, mutants.json, is written by `python -m tests.helpers.mutants`, which runs the tests with each mistake; so no
task runs code while it is made.
"""

import ast
import functools
import json
import re
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

from ling_jax.envs.coding.mutations import Mutation

SEEDS = "ling_jax.envs.coding.seeds"
FOLDER = Path(__file__).parent / "seeds"
TABLE = Path(__file__).parent / "mutants.json"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__"))


class Mutant(NamedTuple):
    """A mistake, and the tests, as Class.method, that find it."""

    mutation: Mutation
    failing: tuple[str, ...]


@functools.cache
def source(name: str) -> str:
    """The text of a seed module."""
    return (FOLDER / f"{name}.py").read_text()


@functools.cache
def test_source(name: str) -> str:
    """The text of its tests, which import it by its full name."""
    return (FOLDER / "tests" / f"{name}.py").read_text()


@functools.cache
def test_places(name: str) -> dict[str, tuple[int, int]]:
    """{Class.method: its first line and the one behind its last, from 0} of the tests of a seed module."""
    return {
        f"{group.name}.{method.name}": (method.lineno - 1, method.end_lineno)
        for group in ast.parse(test_source(name)).body
        if isinstance(group, ast.ClassDef)
        for method in group.body
        if isinstance(method, ast.FunctionDef) and method.name.startswith("test")
    }


def tests_with(name: str, kept: Set[str]) -> str:
    """The text of a seed module's tests with these alone; a class that has none left is left out."""
    lines, dropped = test_source(name).splitlines(keepends=True), set()
    for group in ast.parse(test_source(name)).body:
        if isinstance(group, ast.ClassDef):
            places = {test: place for test, place in test_places(name).items() if test.startswith(f"{group.name}.")}
            if not kept & places.keys():
                places = {group.name: (group.lineno - 1, group.end_lineno)}
            for test, place in places.items():
                if test not in kept:
                    dropped.update(range(*place))
    text = "".join(line for number, line in enumerate(lines) if number not in dropped)
    return re.sub("\n{4,}", "\n\n\n", re.sub("(\n    .*)\n{2,}(?=    )", r"\1\n\n", text)).rstrip() + "\n"


@functools.cache
def table() -> dict[str, tuple[Mutant, ...]]:
    """The mistakes of each seed module."""
    found = {}
    for name, rows in json.loads(TABLE.read_text()).items():
        tests = list(test_places(name))
        found[name] = tuple(
            Mutant(Mutation(start, stop, text), tuple(tests[i] for i in failing)) for start, stop, text, failing in rows
        )
    return found


def write_table(found: dict[str, list[Mutant]]) -> None:
    """Writes the table, a mistake a line: start, stop, text, and the numbers of the tests that fail."""
    blocks = []
    for name, rows in found.items():
        tests = list(test_places(name))
        lines = [json.dumps([*mutation, [tests.index(test) for test in failing]]) for mutation, failing in rows]
        blocks.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
    TABLE.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    table.cache_clear()
