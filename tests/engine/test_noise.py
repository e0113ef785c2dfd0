"""The engine's noise is that of `jax.random`, which it promises to its callers."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax.engine.noise import gumbel_noise

SIZE = 77
noise = jax.jit(gumbel_noise, static_argnums=(2, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 2**31 - 1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_token_i_has_the_gumbel_noise_of_fold_in(x64, dtype, seed, number):
    found = noise(np.array([seed, 1], np.uint32), np.array([number, 0], np.int32), SIZE, np.dtype(dtype))
    for row, (s, n) in enumerate([(seed, number), (1, 0)]):
        wanted = jax.random.gumbel(jax.random.fold_in(jax.random.key(np.uint32(s)), n), (SIZE,), dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[row], wanted)
