"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax

# Compiling dominates the time of the tests; without LLVM's optimiser it takes a third, and means the same. Set but
# empty, XLA_FLAGS leaves programs as users get them, which is how `make test-slow` runs.
QUICK: dict[str, object] = {"xla_backend_optimization_level": 0}
DEFAULT: dict[str, object] = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):  # later ones have no such option
    QUICK["xla_cpu_use_fusion_emitters"], DEFAULT["xla_cpu_use_fusion_emitters"] = False, True
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={value}" for name, value in QUICK.items()))

# A shared machine can take any time over one example; how long a test may take is not what it promises.
settings.register_profile("ling_jax", deadline=None)
settings.load_profile("ling_jax")

FIXTURES = Path(__file__).parent / "fixtures"


def golden_folder() -> Path | None:
    """Numbers of the official code: $LING_JAX_GOLDEN, or shared/golden beside the checkout."""
    return _folder("LING_JAX_GOLDEN", "golden")


def _folder(variable: str, name: str) -> Path | None:
    folder = Path(os.environ.get(variable, Path(__file__).parents[1] / "../shared" / name))
    return folder.resolve() if folder.is_dir() else None


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if folder is None:
        pytest.skip("no golden numbers: set LING_JAX_GOLDEN to their folder (tests/fixtures holds one of them)")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Public data sets: $LING_JAX_DATA, or shared/data beside the checkout."""
    folder = _folder("LING_JAX_DATA", "data")
    if folder is None:
        pytest.skip("no data sets: set LING_JAX_DATA to a folder that has gsm8k/ and bfcl/")
    return folder


@pytest.fixture
def x64():
    """float64 on for one test."""
    with jax.enable_x64(True):
        yield
