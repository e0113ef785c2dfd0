"""Modules that tasks carry: the files of the package, which need the standard library alone."""

import subprocess
import sys

import pytest

from ling_jax.envs.harbor import bundle, tool_files, tool_program
from ling_jax.envs.tools import call, episode

MODULES = sorted({module.__name__ for module in tool_files.EPISODES.values()})


def test_a_task_carries_the_files_of_the_package():
    carried = bundle.sources(tool_program.__name__, *MODULES)
    for module in (call, episode, tool_program):
        with open(module.__file__, "rb") as file:
            assert carried[f"{module.__name__.replace('.', '/')}.py"] == file.read()
    packages = {path: content for path, content in carried.items() if path.endswith("/__init__.py")}
    assert "ling_jax/envs/tools/kinds/__init__.py" in packages and set(packages.values()) == {b""}


@pytest.mark.parametrize("module", MODULES)
def test_what_a_task_carries_runs_without_packages(module, tmp_path):
    """In a Python that finds nothing but the standard library."""
    (tmp_path / "carried.zip").write_bytes(bundle.archive((tool_program.__name__, module), {}))
    program = f"import sys; sys.path.insert(0, 'carried.zip'); import {tool_program.__name__}, {module} as m; print(m)"
    command = [sys.executable, "-I", "-S", "-B", "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "carried.zip" in ran.stdout, ran.stderr


def test_equal_tasks_have_equal_archives():
    first, second, other = (bundle.archive((MODULES[0],), {"a": a}) for a in (b"1", b"1", b"2"))
    assert first == second != other


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("ling_jax.config", "ling_jax.config imports ml_dtypes; a task carries modules that need the standard library"),
        ("ling_jax.envs.pure", "ling_jax.envs.base imports ling_jax.data; a task carries"),
    ],
)
def test_a_module_that_needs_more_is_refused_by_name(module, message):
    with pytest.raises(ValueError, match=message):
        bundle.sources(module)
