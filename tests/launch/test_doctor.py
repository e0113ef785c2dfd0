import os
import re
import subprocess
import sys

import pytest

from launch import doctor
from ling_jax.sandbox import Sandbox, SandboxError
from tests.helpers.faults import ROOT

NAMES = [
    "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "gs:// paths", "devices",
    "room for make demo", "sandbox", "compiled programs", "training step", "decoding", "kernels", "matmul",
]  # fmt: skip


def run_doctor(**environment):
    """(exit code, {name: its line}, the last line)."""
    command, environment = [sys.executable, "-m", "launch.doctor"], os.environ | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    *lines, last = done.stdout.splitlines()
    return done.returncode, {line[6:25].strip(): line for line in lines}, last


@pytest.mark.slow
def test_a_machine_that_passes_the_tests_is_well(tmp_path):
    code, lines, last = run_doctor(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))
    assert list(lines) == NAMES
    assert all(line.startswith("ok ") for line in lines.values()), lines
    assert code == 0 and last == "all ok"
    assert "cpu" in lines["devices"] and "GiB" in lines["devices"]
    assert "compiled in " in lines["training step"] and "xla " in lines["kernels"] and "TFLOP/s" in lines["matmul"]
    assert not list((tmp_path / "compiled").iterdir()), "nothing is left behind"


def test_what_is_wrong_is_a_line_that_says_what_to_do(tmp_path):
    (tmp_path / "optax.py").write_text("raise ImportError('a broken install')")
    (tmp_path / "file").touch()
    code, lines, last = run_doctor(
        JAX_PLATFORMS="nonsense",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "compiled"),
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    wrong = [name for name, line in lines.items() if line.startswith("FAIL ") and name != "room for make demo"]
    assert wrong == ["optax", "devices", *NAMES[NAMES.index("compiled programs") :]] and list(lines) == NAMES
    assert code == 1 and last.endswith(", ".join(wrong[-5:]))
    assert "a broken install" in lines["optax"] and "What to do: make install" in lines["optax"]
    assert "'nonsense'" in lines["devices"] and "What to do: set JAX_PLATFORMS" in lines["devices"]
    assert "What to do: set JAX_COMPILATION_CACHE_DIR" in lines["compiled programs"]


def test_the_tier_of_the_sandbox_is_named(monkeypatch):
    def refuse(self, tier, warm):
        raise SandboxError(f"{tier}: not here")

    assert re.match("foreign code (runs in T[123]|does not run here: T3: )", doctor.sandbox())
    monkeypatch.setattr(Sandbox, "_start", refuse)
    assert doctor.sandbox() == "foreign code does not run here: T3: not here; T2: not here; T1: not here"


def test_a_kernel_that_is_off_fails(monkeypatch):
    monkeypatch.setattr(doctor, "TOLERANCE", 0.0)  # what every kernel is off by rounding
    with pytest.raises(doctor.Problem, match="are off their references by xla "):
        doctor.kernels()


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("0.10.2", "jax>=0.10.2,<0.12", True),
        ("0.11.9.dev20260101+abc", "jax>=0.10.2,<0.12", True),
        ("0.9.30", "jax>=0.10.2,<0.12", False),
        ("0.12.0", "jax>=0.10.2,<0.12", False),
        ("3.10.4", ">=3.11", False),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, requirement, fits):
    assert doctor.satisfies(version, requirement) == fits


def test_every_package_but_jaxlib_has_a_requirement():
    for name in doctor.PACKAGES:
        found = doctor.package_version(name)
        assert found[0].isdigit(), name
    declared = doctor.requirement("dependencies")
    assert [name for name in doctor.PACKAGES if not any(line.startswith(f"{name}>=") for line in declared)] == [
        "jaxlib"
    ]
