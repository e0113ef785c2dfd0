"""Dispatch, grouped matmuls and the weighted sum equal one-hot einsums over all experts, for any loads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax.parallel import experts
from tests.golden_numbers import quick_jit

WIDTH, FFN = 5, 3
# (tokens, choices, experts): one token, primes, fewer pairs than experts, many rows a block.
SHAPES = [(1, 1, 4), (7, 2, 4), (13, 3, 8), (5, 2, 32), (151, 2, 4)]
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
    rng = np.random.default_rng(seed)
    tokens, choices, count = shape
    index = random_choices(rng, shape, loads).astype(np.int32)
    x_MD, w_EDF = rng.normal(size=(tokens, WIDTH)), rng.normal(size=(count, WIDTH, FFN))
    return index, (x_MD, w_EDF, rng.normal(size=(tokens, choices))), rng.normal(size=(tokens, FFN))


def grouped(index, count, x_MD, w_EDF, weight_Mk):
    dispatch = experts.plan_dispatch(index, count)
    y_PF = experts.grouped_matmul(experts.gather_rows(x_MD, dispatch), w_EDF, dispatch)
    return experts.weighted_sum(y_PF, weight_Mk, dispatch)


def dense(index, count, x_MD, w_EDF, weight_Mk):
    chosen_MkE = jax.nn.one_hot(index, count, dtype=x_MD.dtype)
    return jnp.einsum("MD,EDF,MkE,Mk->MF", x_MD, w_EDF, chosen_MkE, weight_Mk)


@functools.cache
def with_gradients(function, count):
    def run(index, inputs, grad_MF):
        value, pull = jax.vjp(functools.partial(function, index, count), *inputs)
        return value, pull(grad_MF)

    return quick_jit(run)


@all_shapes
@contents
@many
def test_experts_and_their_gradients_equal_the_dense_form(x64, shape, seed, loads):
    case = random_case(seed, shape, loads)
    found, wanted = (with_gradients(function, shape[2])(*case) for function in (grouped, dense))
    names = ("value", "gradient of x", "gradient of the experts", "gradient of the weights")
    for name, value, expected in zip(names, jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=EXACT, err_msg=name)


@functools.cache
def plan(count):
    def run(index):
        dispatch = experts.plan_dispatch(index, count)
        return dispatch, experts.count_drops(dispatch)

    return quick_jit(run)


@all_shapes
@contents
@many
def test_every_pair_has_one_row_of_its_expert(shape, seed, loads):
    tokens, choices, count = shape
    index = random_choices(np.random.default_rng(seed), shape, loads).astype(np.int32)
    dispatch, drops = jax.device_get(plan(count)(index))
    rows, pairs = dispatch.row_of_pair.reshape(-1), tokens * choices
    assert drops == 0 and len(set(rows)) == pairs
    np.testing.assert_array_equal(dispatch.pair_of_row[rows], np.arange(pairs))
    assert (np.sort(dispatch.pair_of_row)[pairs:] == pairs).all()  # all other rows are empty
    block = len(dispatch.pair_of_row) // len(dispatch.expert_of_block)
    np.testing.assert_array_equal(dispatch.expert_of_block[rows // block], index.reshape(-1))
    loads_E = np.bincount(index.reshape(-1), minlength=count)
    np.testing.assert_array_equal(dispatch.rows_of_expert, -(-loads_E // block) * block)


def test_a_lost_pair_is_counted():
    dispatch = experts.plan_dispatch(np.array([[0, 1], [1, 2]]), 4)
    lost = dispatch._replace(pair_of_row=jnp.where(dispatch.pair_of_row == 2, 4, dispatch.pair_of_row))
    assert experts.count_drops(dispatch) == 0 and experts.count_drops(lost) == 1


@all_shapes
@contents
@many
def test_gathered_rows_are_the_tokens_and_zeros(x64, shape, seed, loads):
    index, (x_MD, *_), _ = random_case(seed, shape, loads)
    dispatch, _ = plan(shape[2])(index)
    rows = np.asarray(experts.gather_rows(jnp.asarray(x_MD), dispatch))
    pair_of_row = np.asarray(dispatch.pair_of_row)
    live = pair_of_row < index.size
    np.testing.assert_array_equal(rows[live], x_MD[pair_of_row[live] // shape[1]])
    assert not rows[~live].any()


@functools.cache
def both_branches(count):
    """Products and expert gradients: the loop that runs on CPUs, and the one of all other devices."""

    def run(index, x_MD, w_EDF, grad_MF):
        dispatch = experts.plan_dispatch(index, count)
        x_PD, grad_PF = (experts.gather_rows(a, dispatch) for a in (x_MD, grad_MF))
        rows = [experts._rows_times_experts_blocks, experts._rows_times_experts_ragged]
        gradients = [experts._expert_gradients_blocks, experts._expert_gradients_ragged]
        return [(f(x_PD, w_EDF, dispatch), g(x_PD, grad_PF, dispatch)) for f, g in zip(rows, gradients, strict=True)]

    return quick_jit(run)


@all_shapes
@contents
@many
def test_the_branch_of_other_devices_equals_that_of_cpus(x64, shape, seed, loads):
    index, (x_MD, w_EDF, _), grad_MF = random_case(seed, shape, loads)
    blocks, ragged = both_branches(shape[2])(index, x_MD, w_EDF, grad_MF)
    for name, found, wanted in zip(("rows", "gradients"), ragged, blocks, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT, err_msg=name)


@pytest.mark.parametrize(
    ("pairs", "count", "rows"), [(1, 256, 8), (2048, 256, 8), (8 * 4096, 256, 64), (10**7, 8, 128)]
)
def test_blocks_are_half_an_even_share_within_limits(pairs, count, rows):
    assert experts.block_rows(pairs, count) == rows
