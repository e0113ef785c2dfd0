"""What tests that start many runs share between them."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from ling_jax.run import loop


@contextlib.contextmanager
def shared_between_starts(folder: Path) -> Iterator[None]:
    """One folder of compiled programs for all runs in the block, and one measurement of the machine's peak."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", functools.cache(loop.peak_flops))
        yield
    jax.config.update("jax_compilation_cache_dir", before)
