"""Experts on sorted rows, in tiles and ragged, equal one-hot einsums over all experts, for any loads."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax.model import moe
from ling_jax.parallel import expert_chunks, expert_tiles, experts
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.programs import needs_libtpu, output_of
from tests.helpers.tiny import tiny_config

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


def random_case(seed, shape, loads, width=WIDTH, ffn=FFN):
    """(expert_index, (x, weight, experts), gradient of the output)."""
    rng = np.random.default_rng(seed)
    tokens, choices, count = shape
    index = random_choices(rng, shape, loads).astype(np.int32)
    shapes = ((count, width, ffn), (count, width, ffn), (count, ffn, width))
    matrices = experts.Experts(*(rng.normal(size=size) for size in shapes))
    x_MD, weight_Mk = rng.normal(size=(tokens, width)), rng.normal(size=(tokens, choices))
    return index, (x_MD, weight_Mk, matrices), rng.normal(size=(tokens, width))


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
def both_forms(count, share):
    """The loop over tiles that runs on CPUs, and the loop over chunks of all other devices; the first `count` experts
    are here."""

    def run(index, inputs, grad_MD):
        dispatch = experts.plan_dispatch(index, count)
        inputs = (*inputs[:-1], jax.tree.map(lambda matrix: matrix[:count], inputs[-1]))
        y_MD, *hidden = expert_tiles.forward(*inputs, dispatch)
        tiles = (y_MD, *expert_tiles.backward(*inputs, dispatch, *hidden, grad_MD))
        y_MD = expert_chunks.forward(*inputs, dispatch, share)
        return tiles, (y_MD, *expert_chunks.backward(*inputs, dispatch, grad_MD, share))

    return quick_jit(run)


@all_shapes
@pytest.mark.parametrize(("share", "here"), [(1, None), (4, None), (4, 1)])
@contents
@many
def test_the_form_of_other_devices_equals_that_of_cpus(x64, shape, share, here, seed, loads):
    tiles, chunks = both_forms(here or shape[2], share)(*random_case(seed, shape, loads))
    for found, wanted in zip(jax.tree.leaves(chunks), jax.tree.leaves(tiles), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_tokens_that_are_not_here_may_hold_anything(x64, shape):
    """Neither form, nor a gradient, reads what is not a token of an expert here."""
    index, (x_MD, *others), grad_MD = random_case(0, shape, "uniform")
    here = shape[2] // 2
    elsewhere_M1 = np.arange(len(index))[:, None] % 3 > 0
    index = np.where(elsewhere_M1, here, index)
    found, wanted = (
        both_forms(here, 2)(index, (np.where(elsewhere_M1, held, x_MD), *others), np.where(elsewhere_M1, held, grad_MD))
        for held in (np.nan, 0)
    )
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_other_devices_keep_nothing_of_all_rows_for_the_gradient(monkeypatch):
    """There would have to be room for every row on every device."""
    monkeypatch.setattr(experts, "platform", lambda: "tpu")
    index, inputs, _ = jax.tree.map(jnp.asarray, random_case(0, (64, 3, 4), "uniform"))
    _, pull = jax.vjp(lambda *inputs: sorted_rows(index, 4, *inputs), *inputs)
    kept = [leaf.size for leaf in jax.tree.leaves(pull)]
    assert max(kept) == 64 * WIDTH < 64 * 3 * FFN


def test_the_kernels_of_a_tpu_equal_the_form_of_cpus(monkeypatch):
    """In the interpreter: two chunks, rows of no expert, experts without rows and with rows in both."""
    for name in ("grouped_matmul_tpu", "add_grouped_outer_tpu"):
        monkeypatch.setattr(expert_chunks, name, functools.partial(getattr(expert_chunks, name), interpret=True))
    monkeypatch.setattr(expert_chunks, "platform", lambda: "tpu")
    index, *inputs = random_case(0, (139, 2, 5), "never the first or last", width=256, ffn=128)
    inputs = jax.tree.map(np.float32, inputs)
    tiles, chunks = both_forms.__wrapped__(5, 2)(index, *inputs)
    for found, wanted in zip(jax.tree.leaves(chunks), jax.tree.leaves(tiles), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.slow
@needs_libtpu
def test_a_pod_runs_the_kernels_and_computes_the_shared_expert_while_tokens_travel():
    *kernels, overlap = output_of("tests.helpers.experts_on_v5p").splitlines()
    of_kernels = "grouped_columns grouped_rows"
    assert kernels == [f"expert {of_kernels} ragged-all-to-all", f"fsdp tensor {of_kernels}", f"data {of_kernels}"]
    exchanges, products = map(int, re.findall(r"\d+", overlap))
    assert exchanges == 5  # there and back, there again, and both gradients
    assert products >= 2


@pytest.mark.slow
def test_tokens_travel_to_their_experts_and_back_for_any_loads():
    assert output_of("tests.helpers.experts_on_eight", "loads").count("equal") == 8


def test_what_a_device_may_not_send_is_counted_as_dropped():
    assert output_of("tests.helpers.experts_on_eight", "drops") == "counted\n"


def test_gpus_exchange_by_one_operation_there_and_one_back():
    assert output_of("tests.helpers.experts_on_eight", "cuda") == "exchanges 4, others 0\n"


@pytest.mark.parametrize(("experts_groups_kept_top", "devices"), [((16, 4, 2, 3), d) for d in (2, 4, 8, 16)] + [
    ((24, 3, 2, 6), 4), ((24, 4, 1, 6), 8), ((16, 1, 1, 3), 8), ((256, 8, 4, 8), 8),
], ids=str)  # fmt: skip
def test_groups_bound_on_how_many_devices_a_token_has_its_experts(experts_groups_kept_top, devices):
    names = ("num_experts", "num_expert_groups", "top_groups", "top_k")
    config = tiny_config(**dict(zip(names, experts_groups_kept_top, strict=True)))
    logits = 3 * np.random.default_rng(0).normal(size=(1, 3000, config.num_experts))
    index_MK, _ = jax.jit(moe.route, static_argnums=2)(logits, np.zeros(config.num_experts), config)
    device_MK = index_MK[0] // (config.num_experts // devices)
    found = max(len(set(row)) for row in np.asarray(device_MK).tolist())
    assert found == moe.max_devices_per_token(config, devices)


@all_shapes
@contents
@many
def test_devices_that_share_the_experts_add_up_to_one_that_has_all(x64, shape, seed, loads):
    index, inputs, _ = random_case(seed, shape, loads)
    total, rows, wanted = jax.device_get(one_expert_each(shape[2])(index, inputs))
    assert rows == index.size
    np.testing.assert_allclose(total, wanted, rtol=0, atol=EXACT * max(1, np.abs(wanted).max()))


@functools.cache
def one_expert_each(count):
    """(the sum of devices with one expert each, their rows, the dense form)."""

    def run(index, inputs):
        x_MD, weight_Mk, matrices = inputs
        plans = [experts.plan_dispatch(index, 1, first) for first in range(count)]
        parts = [experts.Experts(*(matrix[first, None] for matrix in matrices)) for first in range(count)]
        sums = [experts.experts_ffn(x_MD, weight_Mk, *here) for here in zip(parts, plans, strict=True)]
        return sum(sums), sum(plan.loads.sum() for plan in plans), dense(index, count, *inputs)

    return quick_jit(run)


@all_shapes
@contents
@many
def test_counting_gives_the_rows_of_a_stable_sort(shape, seed, loads):
    """Also where some experts are elsewhere: their pairs come last."""
    expert_P = random_choices(np.random.default_rng(seed), shape, loads).reshape(-1)
    here = shape[2] - 1
    rows, counts = jax.device_get(counted(here)(np.minimum(expert_P, here)))
    np.testing.assert_array_equal(np.argsort(rows), np.argsort(np.minimum(expert_P, here), kind="stable"))
    np.testing.assert_array_equal(counts, np.bincount(expert_P, minlength=shape[2])[:here])


@functools.cache
def counted(count):
    return quick_jit(lambda expert_P: experts.counted_rows(expert_P, count))


@functools.cache
def walk(count):
    """The dispatch, and how often a tile of an expert has each row and how many rows each expert's tiles compute."""

    def run(index):
        dispatch = experts.plan_dispatch(index, count)
        rows_EP, computed_E = expert_tiles.over_experts(dispatch.loads, visit, zeros(count, index.size))
        return dispatch, experts.count_drops(dispatch), rows_EP, computed_E

    return quick_jit(run)


def zeros(count, rows):
    return jnp.zeros((count, rows + max(expert_tiles.TILE_SIZES)), int), jnp.zeros(count, int)


def visit(number, tiles, carry):
    def tile(rows, mask_C, carry):
        rows_EP, computed_E = carry
        (start, size) = rows
        rows_EP = rows_EP.at[number, start + jnp.arange(size)].add(mask_C)
        return rows_EP, computed_E.at[number].add(size)

    return tiles(tile, carry)


@all_shapes
@contents
@many
def test_every_pair_has_one_row_and_every_row_one_tile_of_its_expert(shape, seed, loads):
    count = shape[2]
    index = random_choices(np.random.default_rng(seed), shape, loads).astype(np.int32)
    dispatch, drops, rows_EP, _ = jax.device_get(walk(count)(index))
    assert drops == 0
    np.testing.assert_array_equal(dispatch.pair_of_row[dispatch.row_of_pair.reshape(-1)], np.arange(index.size))
    np.testing.assert_array_equal(dispatch.loads, np.bincount(index.reshape(-1), minlength=count))
    expert_of_row = index.reshape(-1)[dispatch.pair_of_row]
    np.testing.assert_array_equal(rows_EP[:, : index.size], np.arange(count)[:, None] == expert_of_row)
    assert not rows_EP[:, index.size :].any()


def test_few_rows_are_computed_in_vain():
    """Loads of 0 to 1000 rows: a quarter of a tile at the most, but for the smallest tile."""
    loads = np.arange(1001, dtype=np.int32)
    _, computed = jax.jit(lambda loads: expert_tiles.over_experts(loads, visit, zeros(len(loads), 0)))(loads)
    assert computed[0] == 0
    assert (computed >= loads).all() and (computed <= loads + 64).all()


def test_a_lost_pair_is_counted():
    dispatch = experts.plan_dispatch(np.array([[0, 1], [1, 2]]), 4)
    assert experts.count_drops(dispatch) == 0
    assert experts.count_drops(dispatch._replace(pair_of_row=dispatch.pair_of_row.at[2].set(0))) == 1
    assert experts.count_drops(dispatch._replace(loads=dispatch.loads - 1)) == 4
