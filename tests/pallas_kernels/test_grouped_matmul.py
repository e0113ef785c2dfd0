"""The TPU's grouped matmul, interpreted on a CPU, equals the reference for any loads, and computes few rows in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul import grouped_matmul_reference, grouped_matmul_tpu, suits_tpu
from pallas_kernels.grouped_matmul.plan import plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_rows import strip_width

DEPTH, WIDTH = 128, 256
LOADS = {
    "uniform": [129, 129, 129],
    "all on one": [0, 389, 0, 0],
    "zipf": [200, 100, 0, 66, 50, 40],
    "one row each": [1, 1, 1, 200],
    "the first and the last have none": [0, 0, 130, 128, 0],
}


def random_inputs(loads, dtype="float32"):
    """(x, w, loads, gradient of the product)."""
    rng = np.random.default_rng(0)
    x, w, grad = (
        jnp.asarray(rng.normal(size=size), dtype)
        for size in ((sum(loads), DEPTH), (len(loads), DEPTH, WIDTH), (sum(loads), WIDTH))
    )
    return x, w, jnp.asarray(loads, jnp.int32), grad


@functools.partial(jax.jit, static_argnames="kernel")
def product_and_gradients(x, w, loads, grad, *, kernel: bool):
    multiply = functools.partial(grouped_matmul_tpu, interpret=True) if kernel else grouped_matmul_reference
    product, pull = jax.vjp(lambda x, w: multiply(x, w, loads), x, w)
    return product, *pull(grad)


@pytest.mark.parametrize("name", LOADS)
def test_product_and_gradients_equal_the_reference(name):
    inputs = random_inputs(LOADS[name])
    found, wanted = (product_and_gradients(*inputs, kernel=kernel) for kernel in (True, False))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.abs(b).max()))


def test_bfloat16_rounds_the_results_alone():
    """Error below 3e-3 of the reference's rms: float32 sums, rounded once (measured 1.7e-3)."""
    inputs = random_inputs(LOADS["zipf"], "bfloat16")
    found = product_and_gradients(*inputs, kernel=True)
    wide = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in inputs]
    wanted = product_and_gradients(*wide, kernel=False)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        error = jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32) - b)) / jnp.mean(jnp.square(b)))
        assert error <= 3e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_in_its_group(dtype):
    """Groups that share a tile with a broken one have the values that they have beside a sound one."""
    x, w, loads, grad = random_inputs([40, 39, 52], dtype)
    sound = product_and_gradients(x, w, loads, grad, kernel=True)
    broken = product_and_gradients(x.at[50].set(jnp.nan), w, loads, grad.at[51].set(jnp.nan), kernel=True)
    inside = (slice(40, 79), slice(40, 79), 1)
    for a, b, own in zip(broken, sound, inside, strict=True):
        assert not jnp.isfinite(a[own]).all()
        np.testing.assert_array_equal(np.delete(a, own, axis=0), np.delete(b, own, axis=0))


plan_of = jax.jit(plan_steps, static_argnames=("rows", "tile", "visit_empty"))


def steps_of(loads, tile: int, **options):
    """(the plan, first and last own row + 1 of each step)."""
    plan = jax.device_get(plan_of(np.asarray(loads, np.int32), int(sum(loads)), tile, **options))
    group, first = plan.group[: plan.count], plan.tile[: plan.count] * tile
    return plan, np.maximum(plan.bounds[group], first), np.minimum(plan.bounds[group + 1], first + tile)


@given(most=st.lists(st.integers(0, 300), min_size=11, max_size=11), place=st.integers(0, 11))
@pytest.mark.parametrize("tile", [16, 256])
@settings(max_examples=40)
def test_steps_cover_every_row_once_and_only_groups_with_rows(tile, most, place):
    loads = [*most[:place], 3333 - sum(most), *most[place:]]  # 33 at least
    plan, starts, ends = steps_of(loads, tile)
    assert plan.count <= len(plan.group)
    assert (ends > starts).all(), "each step has rows"
    np.testing.assert_array_equal(np.concatenate([[0], ends]), np.concatenate([starts, [3333]]))
    assert plan.count * tile <= 3333 + np.count_nonzero(loads) * tile
    with_empty, starts, ends = steps_of(loads, tile, visit_empty=True)
    assert with_empty.count == plan.count + loads.count(0)
    assert set(with_empty.group[: with_empty.count]) == set(range(12))
    assert (np.diff(with_empty.group[: with_empty.count]) >= 0).all(), "a group's steps follow each other"


@pytest.mark.parametrize("name", ["uniform", "zipf", "all on one"])
def test_rows_computed_are_bounded_at_full_size(name):
    """65,536 rows of 64 experts: at most a tile beside the useful rows for each expert that has any."""
    shares = {"uniform": np.ones(64), "zipf": 1 / np.arange(1, 65), "all on one": np.eye(64)[17]}[name]
    loads = np.diff(np.round(65536 * np.cumsum(shares) / shares.sum()), prepend=0)
    tile = row_tile(65536, 64, 2 * 2048)
    plan, starts, ends = steps_of(loads, tile)
    assert (tile, (ends - starts).sum()) == (512, 65536)
    assert plan.count * tile <= 65536 + np.count_nonzero(loads) * tile
    if name != "zipf":
        assert plan.count * tile == 65536, "groups of whole tiles waste nothing"


@given(lanes=st.integers(1, 64), column_bytes=st.integers(1, 2**16))
def test_strips_divide_the_width(lanes, column_bytes):
    strip = strip_width(128 * lanes, column_bytes)
    assert 128 * lanes % strip == 0
    assert strip % 128 == 0
    assert strip == 128 or (strip * column_bytes <= 8 * 2**20 and strip <= 64 * lanes)


def test_the_kernels_are_chosen_for_whole_lanes_and_tiles():
    assert suits_tpu(jnp.bfloat16, 128, 2048, 512)
    assert not suits_tpu(jnp.bfloat16, 127, 2048, 512)
    assert not suits_tpu(jnp.bfloat16, 128, 2048, 500)
    assert not suits_tpu(jnp.float64, 128, 2048, 512)
    assert not suits_tpu(jnp.bfloat16, 128, 2**15, 512)
