"""The TPU kernels, interpreted on a CPU, equal the recurrence: values, gradients, documents, transformations of jax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from pallas_kernels.lightning_attention import lightning_attention, lightning_attention_flat
from pallas_kernels.lightning_attention.tpu import head_block, lightning_attention_tpu, suits_tpu
from tests.helpers.kernel_laws import (
    NAMES,
    assert_a_row_of_padding_keeps_its_state,
    assert_any_shape_equals_the_recurrence,
    assert_equals_recurrence,
    assert_it_stays_in_its_document,
    assert_no_gradient_reaches_the_decay,
    random_inputs,
    random_segments,
    values_and_gradients,
)

BACKEND = "tpu_interpret"


@pytest.mark.parametrize(("length", "initial"), [(256, False), (389, True)])
def test_plain_rows_equal_the_recurrence(length, initial):
    inputs = list(random_inputs(0, 1, length, 2, 16, 32))
    inputs[4] = inputs[4] if initial else None
    assert_equals_recurrence(BACKEND, inputs)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), longest=st.sampled_from([2, 20, 150, 400]))
def test_packed_rows_equal_the_recurrence(seed, longest):
    """Padding before, between and behind documents of one token and of hundreds."""
    assert_equals_recurrence(BACKEND, random_inputs(seed, 2, 389, 2, 16, 16), random_segments(seed, 2, 389, longest))


def test_a_row_of_padding_keeps_its_state():
    assert_a_row_of_padding_keeps_its_state(BACKEND, 389)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_document(bad):
    assert_it_stays_in_its_document(BACKEND, bad, (100, 40, 249))


def test_no_gradient_reaches_the_decay():
    assert_no_gradient_reaches_the_decay(BACKEND, 256)


def flat_total(q, k, v, log_decay, ids=None):
    out, state = lightning_attention_flat(q, k, v, log_decay, num_heads=2, segment_ids=ids, backend="tpu_interpret")
    return jnp.sum(jnp.square(out)) + jnp.sum(state)


def flat_inputs(batch, length=256):
    q, k, v, log_decay, *_ = random_inputs(0, batch, length, 2, 16, 16)
    return *(x.reshape(batch, length, -1) for x in (q, k, v)), log_decay


@pytest.mark.slow
def test_rows_under_vmap_are_the_batch():
    q, k, v, log_decay = flat_inputs(2)
    ids = random_segments(0, 2, 256)
    gradients = jax.grad(flat_total, (0, 1, 2))
    mapped = jax.vmap(lambda q, k, v, ids: gradients(q[None], k[None], v[None], log_decay, ids[None]))(q, k, v, ids)
    for a, b in zip(mapped, gradients(q, k, v, log_decay, ids), strict=True):
        np.testing.assert_allclose(a[:, 0], b, atol=1e-6)


def kernels_in(jaxpr) -> list[str]:
    names = [e.params["name"] for e in jaxpr.eqns if e.primitive.name == "pallas_call"]
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and equation.primitive.name != "pallas_call":
                names += kernels_in(inner)
    return names


def test_under_full_remat_no_kernel_runs_three_times():
    remat = jax.checkpoint(flat_total, policy=jax.checkpoint_policies.nothing_saveable)
    q, k, v, log_decay = flat_inputs(1)
    jaxpr = jax.make_jaxpr(jax.jit(jax.grad(remat, (0, 1, 2))))(q, k, v, log_decay).jaxpr
    names = sorted(kernels_in(jaxpr))
    assert names == ["lightning_backward", "lightning_forward", "lightning_forward"]


def test_rows_over_devices_are_the_batch():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    q, k, v, log_decay = flat_inputs(2)
    rows = PartitionSpec("data")
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(rows,) * 3, out_specs=(rows,) * 3)
    step = lambda q, k, v: jax.grad(flat_total, (0, 1, 2))(q, k, v, log_decay)  # noqa: E731
    # The interpreter does not know what varies over devices; the compiled kernels do, and are traced below.
    for a, b in zip(jax.jit(shard(step, check_vma=False))(q, k, v), step(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    kernel = lambda q, k, v: lightning_attention_tpu(q, k, v, jnp.asarray(log_decay), None, None, 2)[0].sum()  # noqa: E731
    jax.make_jaxpr(shard(jax.grad(kernel, (0, 1, 2))))(q, k, v)


@given(
    batch=st.integers(1, 8), heads=st.integers(1, 64), key_dim=st.sampled_from([16, 64, 128, 256]),
    value_dim=st.sampled_from([16, 64, 128]), itemsize=st.sampled_from([2, 4]),
)  # fmt: skip
def test_head_blocks_divide_the_heads(batch, heads, key_dim, value_dim, itemsize):
    block = head_block(batch, heads, key_dim, value_dim, itemsize)
    assert heads % block == 0
    assert block == heads or (block * key_dim % 128 == 0 and block * value_dim % 128 == 0)


@pytest.mark.parametrize(
    ("batch", "heads", "block"), [(1, 16, 8), (1, 64, 8), (1, 8, 4), (2, 8, 8), (1, 1, 1), (1, 20, 5)]
)
def test_two_cores_get_a_block_each(batch, heads, block):
    assert head_block(batch, heads, 128, 128, 2) == block


def test_wrong_choices_raise():
    q, k, v, log_decay, *_ = random_inputs(0, 1, 256, 2, 16, 16)
    with pytest.raises(ValueError, match="backend is 'tpu' and the platform 'cpu'"):
        lightning_attention(q, k, v, log_decay, backend="tpu")
    with pytest.raises(ValueError, match="k is float32; the TPU kernels"):
        lightning_attention(q.astype(jnp.bfloat16), k, v, log_decay, backend="tpu_interpret")


def test_the_kernels_are_chosen_for_whole_tiles_and_chunks():
    shape = lambda *dims, dtype="bfloat16": jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
    assert suits_tpu(shape(1, 128, 16, 128), 128)
    assert not suits_tpu(shape(1, 127, 16, 128), 128)
    assert not suits_tpu(shape(1, 128, 16, 64), 128)
    assert not suits_tpu(shape(1, 128, 16, 128, dtype="float64"), 128)


# ---------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("heads", [16, 64])
def test_bfloat16_in_the_blocks_that_are_timed(heads, packed):
    """T = 3 chunks + 5; error below 3e-3 of the reference's rms (measured 1.6e-3 to 2.5e-3)."""
    length = 3 * 128 + 5
    inputs = random_inputs(0, 1, length, heads, 128, 128, "bfloat16")
    ids = random_segments(0, 1, length) if packed else None
    assert head_block(1, heads, 128, 128, 2) == 8
    found = values_and_gradients(*inputs, ids, backend="tpu_interpret")
    wide = [jnp.asarray(x, jnp.float32) for x in inputs]
    expected = values_and_gradients(*wide, ids, backend="reference")
    for name, a, b in zip(NAMES, found, expected, strict=True):
        error = jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32) - b)) / jnp.mean(jnp.square(b)))
        assert error <= 3e-3, name


@pytest.mark.slow
def test_any_shape_equals_the_recurrence():
    assert_any_shape_equals_the_recurrence(BACKEND)
