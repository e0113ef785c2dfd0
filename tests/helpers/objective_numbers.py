"""Objectives beside their golden numbers: precision, tolerances, and a loss read as the objective J = -loss."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.helpers.golden_numbers import quick_jit

# XLA on a CPU takes subnormal numbers for 0.
LOGPS = st.floats(-1e4, 2.0**-20, width=32, allow_subnormal=False)
BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])


def load(golden, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(golden / "objectives" / f"{name}.npz"))


def close(found, expected, dtype: str, name: str = "") -> None:
    """The tolerances that come with the numbers; log-probs are stored as float32 in both cases."""
    largest = max(1.0, float(np.abs(expected).max(initial=0)))
    rtol, atol = {"float64": (0, 1e-9 * largest), "float32": (1e-4, 2e-6)}[dtype]
    np.testing.assert_allclose(found, expected, rtol, atol, err_msg=name)


def evaluate(function, dtype: str, *arrays, **options):
    """`function` under jit, its arrays traced and the floating ones in `dtype`; options that are arrays are traced too.

    Returns NumPy arrays.
    """
    traced = {name: x for name, x in options.items() if isinstance(x, np.ndarray | np.floating)}
    static = frozenset((name, x) for name, x in options.items() if name not in traced)
    with jax.enable_x64(dtype == "float64"):
        arrays, traced = jax.tree.map(lambda x: in_dtype(x, dtype), (arrays, traced))
        return jax.tree.map(np.asarray, _compiled(function, static)(*arrays, **traced))


@functools.cache
def _compiled(function, options):
    """One jit for each function and options, so that examples of a law compile once."""
    return quick_jit(functools.partial(function, **dict(options)))


def in_dtype(x, dtype: str):
    """`x` as an array, in `dtype` if its numbers are floating."""
    x = np.asarray(x)
    return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x


def objective(loss, dtype: str, *arrays, **options):
    """(J, ∂J/∂policy_logps, metrics) of a batch."""
    (value, metrics), grad = evaluate(_with_gradient(loss), dtype, *arrays, **options)
    return -value, -grad, metrics


@functools.cache
def _with_gradient(loss):
    return jax.value_and_grad(loss, has_aux=True)


def token_terms(loss, dtype: str, policy, old, behaviour, advantages, mask, **options):
    """[B, T]: J of each token alone, a batch of one row with one token."""
    advantages = np.broadcast_to(advantages if np.ndim(advantages) == 2 else advantages[:, None], mask.shape)
    tokens = [None if x is None else x.reshape(-1, 1, 1) for x in (policy, old, behaviour, mask)]
    terms = evaluate(_alone(loss), dtype, *tokens[:3], advantages.reshape(-1, 1), tokens[3], **options)
    return terms.reshape(mask.shape)


@functools.cache
def _alone(loss):
    return lambda *arrays, **options: jax.vmap(lambda *batch: -loss(*batch, **options)[0])(*arrays)
