"""Experts on sorted rows, in tiles and ragged, equal one-hot einsums over all experts, for any loads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax.parallel import expert_tiles, experts
from tests.golden_numbers import quick_jit

WIDTH, FFN = 5, 3
# (tokens, choices, experts): one token, primes, fewer pairs than experts, several tiles of every size.
SHAPES = [(1, 1, 4), (7, 2, 4), (13, 3, 8), (5, 2, 32), (701, 2, 3)]
LOADS = ["uniform", "one expert", "skewed", "never the first or last"]
EXACT = 1e-11  # float64 sums of at most some hundred terms of size ~10

many = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
contents = given(seed=st.integers(0, 2**32 - 1), loads=st.sampled_from(LOADS))
all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_choices(rng, shape, loads):
    """[M, k] experts; only "one expert" may choose one twice."""
    tokens, choices, count = shape
    if loads == "one expert":
        return np.full((tokens, choices), rng.integers(count))
    logits = {
        "uniform": np.zeros(count),
        "skewed": -2.0 * np.arange(count),
        "never the first or last": np.where(np.isin(np.arange(count), [0, count - 1]), -1e9, 0.0),
    }[loads]
    noisy = logits + rng.gumbel(size=(tokens, count))
    return np.argsort(-noisy, axis=-1)[:, :choices]


def random_case(seed, shape, loads):
    """(expert_index, (x, weight, experts), gradient of the output)."""
    rng = np.random.default_rng(seed)
    tokens, choices, count = shape
    index = random_choices(rng, shape, loads).astype(np.int32)
    shapes = ((count, WIDTH, FFN), (count, WIDTH, FFN), (count, FFN, WIDTH))
    matrices = experts.Experts(*(rng.normal(size=size) for size in shapes))
    x_MD, weight_Mk = rng.normal(size=(tokens, WIDTH)), rng.normal(size=(tokens, choices))
    return index, (x_MD, weight_Mk, matrices), rng.normal(size=(tokens, WIDTH))


def sorted_rows(index, count, x_MD, weight_Mk, matrices):
    return experts.experts_ffn(x_MD, weight_Mk, matrices, experts.plan_dispatch(index, count))


def dense(index, count, x_MD, weight_Mk, matrices):
    """Every token through every expert."""
    gate_MEF, up_MEF = (jnp.einsum("MD,EDF->MEF", x_MD, w_EDF) for w_EDF in (matrices.gate, matrices.up))
    y_MED = jnp.einsum("MEF,EFD->MED", jax.nn.silu(gate_MEF) * up_MEF, matrices.down)
    return jnp.einsum("MED,MkE,Mk->MD", y_MED, jax.nn.one_hot(index, count, dtype=x_MD.dtype), weight_Mk)


@functools.cache
def with_gradients(function, count):
    def run(index, inputs, grad_MD):
        value, pull = jax.vjp(functools.partial(function, index, count), *inputs)
        return value, pull(grad_MD)

    return quick_jit(run)


@all_shapes
@contents
@many
def test_experts_and_their_gradients_equal_the_dense_form(x64, shape, seed, loads):
    case = random_case(seed, shape, loads)
    found, wanted = (with_gradients(function, shape[2])(*case) for function in (sorted_rows, dense))
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=EXACT * max(1, np.abs(expected).max()))


@functools.cache
def both_forms(count):
    """The loop over tiles that runs on CPUs, and the form of all other devices."""

    def run(index, inputs, grad_MD):
        dispatch = experts.plan_dispatch(index, count)
        forms = [
            (expert_tiles.forward, expert_tiles.backward),
            (experts._ragged_forward, experts._ragged_backward),
        ]
        results = []
        for forward, backward in forms:
            y_MD, *hidden = forward(*inputs, dispatch)
            results.append((y_MD, *hidden, *backward(*inputs, dispatch, *hidden, grad_MD)))
        return results

    return quick_jit(run)


@all_shapes
@contents
@many
def test_the_form_of_other_devices_equals_that_of_cpus(x64, shape, seed, loads):
    tiles, ragged = both_forms(shape[2])(*random_case(seed, shape, loads))
    for found, wanted in zip(jax.tree.leaves(ragged), jax.tree.leaves(tiles), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT * max(1, np.abs(wanted).max()))


@functools.cache
def plan(count):
    def run(index):
        dispatch = experts.plan_dispatch(index, count)
        return dispatch, experts.count_drops(dispatch), expert_tiles.plan_tiles(dispatch.loads, index.size)

    return quick_jit(run)


@all_shapes
@contents
@many
def test_every_pair_has_one_row_and_every_row_one_tile_of_its_expert(shape, seed, loads):
    count = shape[2]
    index = random_choices(np.random.default_rng(seed), shape, loads).astype(np.int32)
    dispatch, drops, tiles = jax.device_get(plan(count)(index))
    assert drops == 0
    np.testing.assert_array_equal(dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)], np.arange(index.size))
    np.testing.assert_array_equal(dispatch.loads, np.bincount(index.reshape(-1), minlength=count))
    expert_of_row, times = index.reshape(-1)[dispatch.pair_of_row], np.zeros(index.size, int)
    for size, of_size in zip(expert_tiles.TILE_SIZES, tiles, strict=True):
        assert of_size.count <= len(of_size.expert) and of_size.rows.max(initial=0) <= size
        for expert, start, rows in zip(*(a[: of_size.count] for a in of_size[:3]), strict=True):
            assert rows > 0 and (expert_of_row[start : start + rows] == expert).all()
            times[start : start + rows] += 1
    assert (times == 1).all()


def test_few_rows_are_computed_in_vain():
    """Loads of 1 to 1000 rows: a quarter of a tile at the most, but for the smallest tile."""
    loads = np.arange(1, 1001, dtype=np.int32)
    tiles = expert_tiles.plan_tiles(jnp.asarray(loads), int(loads.sum()))
    computed = sum(size * int(of_size.count) for size, of_size in zip(expert_tiles.TILE_SIZES, tiles, strict=True))
    assert computed <= loads.sum() + 64 * len(loads)


def test_a_lost_pair_is_counted():
    dispatch = experts.plan_dispatch(np.array([[0, 1], [1, 2]]), 4)
    assert experts.count_drops(dispatch) == 0
    assert experts.count_drops(dispatch._replace(pair_of_row=dispatch.pair_of_row.at[2].set(0))) == 1
    assert experts.count_drops(dispatch._replace(loads=dispatch.loads - 1)) == 4
