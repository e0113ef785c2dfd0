"""Stored notebooks show their outputs, use names that exist, and run from a checkout."""

import ast
import importlib
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from notebooks.execute import FOLDER, ROOT, execute, problems, tidy
from tests.helpers.sandboxes import sandbox_or_skip

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FAST = ("environments", "lightning", "migration")  # the others compile for longer, or start programs
# Until a cell counts as hanging: the longest takes 20 s on two quiet cores, a busy machine has 40 times that.
CELL_SECONDS = 900
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(output):
    """What an output is: the stream's name, or the formats that it has."""
    return output.get("name") or sorted(output.get("data", ()))


def draws_or_prints(source: str) -> bool:
    """Whether a cell draws, prints at its top level, or ends in an expression, which Jupyter shows."""
    *_, last = body = ast.parse(source).body
    called = [ast.unparse(line.value.func) for line in body if is_call(line)]
    shows_last = isinstance(last, ast.Expr) and not is_call(last) and not source.rstrip().endswith(";")
    return shows_last or "print" in called or "plt.show" in called


def is_call(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)


def library_imports(notebook):
    """(module, name or "") of everything that the cells import from this repository."""
    for cell in code_cells(notebook):
        for line in ast.walk(ast.parse(cell.source)):
            modules = [alias.name for alias in line.names] if isinstance(line, ast.Import) else []
            if isinstance(line, ast.ImportFrom) and line.module:
                modules = [line.module]
            for module in modules:
                if module.split(".")[0] in ("ling_jax", "pallas_kernels", "configs", "benchmarks"):
                    yield from ((module, alias.name) for alias in line.names)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in FAST else [pytest.mark.slow]) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_and_shows_the_kinds_of_output_that_are_stored(path):
    if path.stem == "environments":
        sandbox_or_skip()
    stored, ran = nbformat.read(path, as_version=4), execute(path, CELL_SECONDS)
    assert not problems(ran)
    for before, after in zip(code_cells(stored), code_cells(ran), strict=True):
        assert [kinds(output) for output in before.outputs] == [kinds(output) for output in after.outputs], before.id


@each_notebook
def test_a_notebook_is_stored_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    again = f"run python -m notebooks.execute {path.stem}"
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)], again
    silent = [cell.id for cell in code_cells(notebook) if draws_or_prints(cell.source) and not cell.outputs]
    assert not silent, again
    undrawn = [
        cell.id
        for cell in code_cells(notebook)
        if "plt.show()" in cell.source and not any("image/png" in output.get("data", ()) for output in cell.outputs)
    ]
    assert not undrawn, again


@each_notebook
def test_a_stored_notebook_has_no_error_no_warning_and_no_path_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    assert not problems(notebook)
    assert notebook == tidy(nbformat.read(path, as_version=4)), f"run python -m notebooks.execute {path.stem}"


@each_notebook
def test_the_names_that_a_notebook_imports_exist(path):
    for module, name in library_imports(nbformat.read(path, as_version=4)):
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


@each_notebook
def test_a_notebook_begins_with_a_title_and_its_time(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.source.startswith("# ")
    assert re.search(r"takes (about \d+|\d+ to \d+) s on two CPU cores", first.source)


def test_the_page_of_notebooks_lists_each_of_them():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert len(NOTEBOOKS) >= 12
    assert sorted(re.findall(r"`(\w+)\.ipynb`", page)) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (new_output("error", ename="ValueError", evalue="no"), "ValueError: no"),
        (new_output("stream", name="stderr", text="a warning"), "a warning"),
        (new_output("stream", name="stdout", text="saved in /home/someone/runs"), "/home/someone/runs"),
        (new_output("display_data", data={"image/png": "A" * 300_000}), "bytes"),
    ],
    ids=["error", "warning", "path", "size"],
)
def test_what_must_not_be_stored_is_named(output, problem):
    found = problems(new_notebook(cells=[new_code_cell("x", outputs=[output])]))
    assert len(found) == 1 and problem in found[0]


def test_outputs_without_a_path_of_a_machine_are_stored():
    shown = new_output("stream", name="stdout", text="runs/demo/kpop 1/2 https://host/tmp/x")
    assert not problems(new_notebook(cells=[new_code_cell("x", outputs=[shown])]))
