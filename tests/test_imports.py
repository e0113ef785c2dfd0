"""Imports point one way: a package imports those below it alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the programs down. Packages of one line do not import each other.
ORDER = (
    ("launch",),
    ("serve",),
    ("align",),
    ("rl",),
    ("evaluate", "migrate", "compile"),
    ("engine", "run"),
    ("train",),
    ("envs",),
    ("checkpoint", "sandbox"),
    ("chat",),
    ("data", "model"),
    ("parallel", "distributed"),
    ("pallas_kernels",),
    ("sums", "resumable", "user_code"),
    ("config_dicts", "objectives", "rewards", "spec", "files", "preflight"),
    ("config",),
    ("partials", "paths"),
    ("messages",),
    ("processes",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FILES = sorted(file for top in ("ling_jax", "pallas_kernels", "launch") for file in (ROOT / top).rglob("*.py"))


def package_of(module: str) -> str | None:
    """The part of the project that a module belongs to; None for the libraries of others."""
    top, *rest = module.split(".")
    if top == "ling_jax":
        return rest[0] if rest else None
    return top if top in ("launch", "pallas_kernels") else None


def imported_modules(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("package", RANK)
def test_a_package_imports_only_what_lies_below_it(package):
    upwards = []
    for file in FILES:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if package_of(module) != package:
            continue
        for imported in map(package_of, imported_modules(file)):
            if imported in RANK and imported != package and RANK[imported] <= RANK[package]:
                upwards.append(f"{module} imports {imported}")
    assert not upwards


def test_every_package_has_its_place():
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
    assert {package_of(module) for module in modules} - {None, "__init__", "__main__"} == set(RANK)


def test_a_file_of_tests_is_a_test_or_a_helper_and_its_folder_is_a_package():
    tests = ROOT / "tests"
    packages = {path.name for top in (ROOT, ROOT / "ling_jax") for path in top.iterdir() if path.is_dir()}
    for file in tests.rglob("*.py"):
        where = file.relative_to(tests)
        if where.parts[0] not in ("helpers", "gs", "fixtures"):  # gs: programs of several packages with a bucket
            assert where.parent == Path() or where.parts[0] in packages, f"{where}: no package has this name"
            assert file.name.startswith("test_") or file.stem in ("conftest", "__init__"), f"{where} is a helper"


def test_two_packages_may_have_tests_of_one_name(pytestconfig):
    assert pytestconfig.getoption("importmode") == "importlib"
