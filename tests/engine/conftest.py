import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def free_programs():
    """The modules of this folder share their programs."""
    yield
    jax.clear_caches()
