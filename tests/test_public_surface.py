"""The public surface: what `import ling_jax` shows, and annotations and docstrings on public functions."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import ling_jax

ROOT = Path(__file__).parents[1]
ANNOTATED = (
    "launch/compile.py", "launch/config_fields.py", "launch/doctor.py", "launch/evaluate.py", "launch/flags.py",
    "launch/generate.py", "launch/interrupts.py", "launch/memory.py", "launch/overrides.py", "launch/port.py",
    "launch/training.py", "ling_jax/chat", "ling_jax/checkpoint", "ling_jax/compile", "ling_jax/config.py",
    "ling_jax/data", "ling_jax/distributed", "ling_jax/engine", "ling_jax/evaluate", "ling_jax/files.py",
    "ling_jax/messages.py", "ling_jax/migrate",
    "ling_jax/model", "ling_jax/objectives", "ling_jax/parallel", "ling_jax/partials.py", "ling_jax/paths.py",
    "ling_jax/preflight.py", "ling_jax/processes.py", "ling_jax/resumable.py", "ling_jax/rewards", "ling_jax/run",
    "ling_jax/serve", "ling_jax/spec.py", "ling_jax/sums.py", "ling_jax/train", "pallas_kernels",
)  # fmt: skip


def python_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def public_functions(file: Path):
    """(name, function) of the public functions of a module and of the public methods of its public classes."""
    scopes = [("", ast.parse(file.read_text()).body)]
    for prefix, body in scopes:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                scopes.append((f"{prefix}{node.name}.", node.body))
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield prefix + node.name, node


def unannotated(function: ast.FunctionDef) -> list[str]:
    """The parameters without a type, and "return" if the result has none."""
    a = function.args
    parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return missing + ([] if function.returns else ["return"])


@pytest.mark.parametrize("path", ANNOTATED)
def test_public_functions_have_annotations_and_docstrings(path):
    lacking = []
    for file in python_files(ROOT / path):
        for name, function in public_functions(file):
            lacking += [f"{file.relative_to(ROOT)}: {name}: {what}" for what in unannotated(function)]
            # The docstring of a program's module is what its `main` does.
            if "." not in name and name != "main" and not ast.get_docstring(function):
                lacking.append(f"{file.relative_to(ROOT)}: {name}: docstring")
    assert not lacking


def test_importing_the_package_shows_its_parts_and_does_not_import_jax():
    program = "import sys, ling_jax; print('jax' in sys.modules, *dir(ling_jax))"
    imported, *names = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert imported == "False" and set(ling_jax.SUBMODULES) <= set(names)


def test_every_part_is_shown_and_can_be_imported():
    packages = {path.parent.name for path in (ROOT / "ling_jax").glob("*/__init__.py")}
    assert set(ling_jax.SUBMODULES) == packages | {"config", "spec"}
    assert ling_jax.model.init and ling_jax.config.model_config("tiny-2.6")
    for name in ling_jax.SUBMODULES:
        assert importlib.util.find_spec(f"ling_jax.{name}")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'modle'; it has align, .*train"):
        _ = ling_jax.modle
