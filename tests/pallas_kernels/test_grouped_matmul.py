"""The TPU's grouped matmul, interpreted on a CPU, equals the reference for any loads, and computes few rows in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul import (
    add_grouped_outer_reference,
    add_grouped_outer_tpu,
    grouped_matmul_reference,
    grouped_matmul_tpu,
    suits_tpu,
)
from pallas_kernels.grouped_matmul.plan import plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_rows import strip_width

DEPTH, WIDTH, ROWS = 128, 256, 389
LOADS = {
    "uniform": [129, 130, 130],
    "all on one": [0, 389, 0, 0],
    "zipf": [200, 78, 0, 66, 40, 5],
    "one row each": [1, 1, 1, 200],
    "the first and the last have none": [0, 0, 130, 128, 0],
    "no rows": [0, 0, 0],
}


def random_inputs(loads, dtype="float32"):
    """(x, w, y, total, loads); rows behind the last group hold NaN."""
    rng = np.random.default_rng(0)
    shapes = ((ROWS, DEPTH), (len(loads), DEPTH, WIDTH), (ROWS, WIDTH), (len(loads), DEPTH, WIDTH))
    x, w, y, total = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    x, y = (a.at[sum(loads) :].set(jnp.nan) for a in (x, y))
    return x, w, y, total, jnp.asarray(loads, jnp.int32)


@functools.partial(jax.jit, static_argnames="kernel")
def products(x, w, y, total, loads, *, kernel: bool):
    """x w, y w^T, total + x^T y: of the rows that are of a group."""
    own = jnp.arange(ROWS)[:, None] < jnp.sum(loads)
    if kernel:
        forward, outer = (functools.partial(f, interpret=True) for f in (grouped_matmul_tpu, add_grouped_outer_tpu))
        back = forward(y, w, loads, transposed=True)
    else:
        forward, outer = grouped_matmul_reference, add_grouped_outer_reference
        x, y = jnp.where(own, x, 0), jnp.where(own, y, 0)
        back = forward(y, w.swapaxes(1, 2), loads)
    return jnp.where(own, forward(x, w, loads), 0), jnp.where(own, back, 0), outer(total, x, y, loads)


@pytest.mark.parametrize("name", LOADS)
def test_products_equal_the_reference(name):
    inputs = random_inputs(LOADS[name])
    found, wanted = (products(*inputs, kernel=kernel) for kernel in (True, False))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, float(jnp.abs(b).max())))


def test_bfloat16_rounds_the_results_alone():
    """Error below 3e-3 of the reference's rms: float32 sums, rounded once (measured 1.7e-3)."""
    inputs = random_inputs(LOADS["zipf"], "bfloat16")
    found = products(*inputs, kernel=True)
    wide = [x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for x in inputs]
    wanted = products(*wide, kernel=False)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        error = jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32) - b)) / jnp.mean(jnp.square(b)))
        assert error <= 3e-3


def test_matrices_of_groups_without_rows_stay_to_the_bit():
    """They are not even read: a total of NaN is one of theirs alone."""
    x, w, y, total, loads = random_inputs(LOADS["the first and the last have none"])
    total = total.at[1].set(jnp.nan)
    *_, after = products(x, w, y, total, loads, kernel=True)
    np.testing.assert_array_equal(after[loads == 0], total[loads == 0])
    assert jnp.isfinite(after[loads > 0]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_in_its_group(dtype):
    """Groups that share a tile with a broken one have the values that they have beside a sound one."""
    x, w, y, total, loads = random_inputs([40, 39, 52], dtype)
    sound = products(x, w, y, total, loads, kernel=True)
    broken = products(x.at[50].set(jnp.nan), w, y.at[51].set(jnp.nan), total, loads, kernel=True)
    inside = (slice(40, 79), slice(40, 79), 1)
    for a, b, own in zip(broken, sound, inside, strict=True):
        assert not jnp.isfinite(a[own]).all()
        np.testing.assert_array_equal(np.delete(a, own, axis=0), np.delete(b, own, axis=0))


plan_of = jax.jit(plan_steps, static_argnames=("rows", "tile"))


def steps_of(loads, rows: int, tile: int):
    """(the plan, first and last own row + 1 of each step)."""
    plan = jax.device_get(plan_of(np.asarray(loads, np.int32), rows, tile))
    group, first = plan.group[: plan.count], plan.tile[: plan.count] * tile
    return plan, np.maximum(plan.bounds[group], first), np.minimum(plan.bounds[group + 1], first + tile)


@given(loads=st.lists(st.integers(0, 300), min_size=12, max_size=12))
@pytest.mark.parametrize("tile", [16, 256])
@settings(max_examples=40)
def test_steps_cover_every_row_once_and_only_groups_with_rows(tile, loads):
    """Of 3,700 rows, those of groups, as few as there are."""
    plan, starts, ends = steps_of(loads, 3700, tile)
    assert plan.count <= len(plan.group)
    assert (ends > starts).all(), "each step has rows"
    np.testing.assert_array_equal([0, *ends], [*starts, sum(loads)])
    assert plan.count * tile <= sum(loads) + np.count_nonzero(loads) * tile
    assert set(plan.group[: plan.count]) == set(np.flatnonzero(loads))
    assert (np.diff(plan.group[: plan.count]) >= 0).all(), "a group's steps follow each other"


@pytest.mark.parametrize("name", ["uniform", "zipf", "all on one"])
def test_rows_computed_are_bounded_at_full_size(name):
    """65,536 rows of 64 experts: at most a tile beside the useful rows for each expert that has any."""
    shares = {"uniform": np.ones(64), "zipf": 1 / np.arange(1, 65), "all on one": np.eye(64)[17]}[name]
    loads = np.diff(np.round(65536 * np.cumsum(shares) / shares.sum()), prepend=0)
    tile = row_tile(65536, 64, 2 * 2048)
    plan, starts, ends = steps_of(loads, 65536, tile)
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


def test_kernels_declare_what_they_cost():
    """What a compiled program is said to cost is read from there."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 256), (4, 256, 128), (512, 128))]
    loads = jax.ShapeDtypeStruct((4,), jnp.int32)
    x_PD, w_EDF, y_PF = shapes
    calls = (grouped_matmul_tpu, (x_PD, w_EDF, loads), 1), (add_grouped_outer_tpu, (w_EDF, x_PD, y_PF, loads), 2)
    for kernel, arguments, matrices in calls:
        (call,) = (e for e in jax.make_jaxpr(kernel)(*arguments).eqns if e.primitive.name == "pallas_call")
        cost = call.params["cost_estimate"]
        assert cost.flops == 2 * 512 * 256 * 128
        assert cost.bytes_accessed == 2 * (512 * (256 + 128) + matrices * 4 * 256 * 128)
