"""The GPU kernels, interpreted on a CPU, equal the recurrence; and they lower to Triton for CUDA, at production sizes
too. No GPU has timed or run them here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.lightning_attention import (
    api,
    lightning_attention,
    lightning_attention_flat,
    lightning_decode_gpu,
    self_check,
)
from pallas_kernels.lightning_attention.gpu import lightning_attention_gpu, suits_gpu
from tests.pallas_kernels.test_tpu_decode import decode_inputs, recurrence
from tests.pallas_kernels.test_tpu_kernels import NAMES, random_inputs, random_segments, values_and_gradients


def assert_equals_recurrence(inputs, segment_ids=None):
    found = values_and_gradients(*inputs, segment_ids, backend="gpu_interpret")
    expected = values_and_gradients(*inputs, segment_ids, backend="reference")
    for name, a, b in zip(NAMES, found, expected, strict=False):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize(("length", "initial"), [(128, False), (197, True), (5, True)])
def test_plain_rows_equal_the_recurrence(length, initial):
    inputs = list(random_inputs(0, 1, length, 2, 16, 32))
    inputs[4] = inputs[4] if initial else None
    assert_equals_recurrence(inputs)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), longest=st.sampled_from([2, 20, 150]))
def test_packed_rows_equal_the_recurrence(seed, longest):
    """Padding before, between and behind documents of one token and of more than a chunk."""
    assert_equals_recurrence(random_inputs(seed, 2, 197, 2, 16, 16), random_segments(seed, 2, 197, longest))


def test_very_strong_decay_does_not_overflow():
    assert_equals_recurrence(random_inputs(0, 1, 197, 3, 16, 16, strongest=50.0))


def test_a_row_of_padding_keeps_its_state():
    q, k, v, log_decay, state, d_out, d_final = random_inputs(0, 2, 197, 2, 16, 16)
    ids = random_segments(0, 2, 197)
    ids[1] = 0
    out, final, *_, d_state = values_and_gradients(
        q, k, v, log_decay, state, d_out, d_final, ids, backend="gpu_interpret"
    )
    np.testing.assert_array_equal(out[1], 0)
    np.testing.assert_array_equal(final[1], state[1])
    np.testing.assert_array_equal(d_state[1], d_final[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_document(bad):
    """Documents that share a chunk with a broken one have the values that they have beside a sound one."""
    q, k, v, log_decay, state, d_out, d_final = random_inputs(0, 1, 197, 2, 16, 16)
    ids = np.repeat([1, 2, 3], [80, 40, 77])[None].astype(np.int32)
    inside = slice(80, 120)
    run = functools.partial(values_and_gradients, backend="gpu_interpret")
    sound = run(q, k, v, log_decay, state, d_out, d_final, ids)
    broken = run(*(x.at[:, 100].set(bad) for x in (q, k, v)), log_decay, state, d_out.at[:, 100].set(bad), d_final, ids)
    assert not np.isfinite(broken[0][:, 110]).any(), "and it does not vanish there"
    for name, a, b in zip(NAMES, broken, sound, strict=True):
        if a.shape[1] == 197:
            a, b = (np.delete(np.asarray(x), inside, axis=1) for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_at_the_dims_of_the_models(packed):
    """T = 3 chunks + 5; error below 3e-3 of the reference's rms."""
    inputs = random_inputs(0, 1, 3 * 64 + 5, 2, 128, 128, "bfloat16")
    ids = random_segments(0, 1, 3 * 64 + 5) if packed else None
    found = values_and_gradients(*inputs, ids, backend="gpu_interpret")
    wide = [jnp.asarray(x, jnp.float32) for x in inputs]
    expected = values_and_gradients(*wide, ids, backend="reference")
    for name, a, b in zip(NAMES, found, expected, strict=True):
        error = jnp.sqrt(jnp.mean(jnp.square(a.astype(jnp.float32) - b)) / jnp.mean(jnp.square(b)))
        assert error <= 3e-3, name


def test_no_gradient_reaches_the_decay():
    q, k, v, log_decay, *_ = random_inputs(0, 1, 64, 2, 16, 16)
    total = lambda g: lightning_attention(q, k, v, g, backend="gpu_interpret")[0].sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(log_decay)), 0)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("batch", "length", "heads", "key_dim", "value_dim"), [(3, 1, 2, 16, 32), (1, 8, 2, 128, 64), (4, 3, 3, 64, 128)]
)
def test_tokens_equal_the_recurrence(batch, length, heads, key_dim, value_dim):
    q, k, v, log_decay, state = decode_inputs(batch, length, heads, key_dim, value_dim)
    out, after = lightning_decode_gpu(q, k, v, log_decay, state, num_heads=heads, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_accepted_tokens_count_and_others_do_not():
    q, k, v, log_decay, state = decode_inputs(5, 4, 2, 16, 16)
    live = (np.arange(4) < np.arange(5)[:, None]).astype(np.int32)
    out, after = lightning_decode_gpu(q, k, v, log_decay, state, live=live, num_heads=2, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state, live), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    _, every = lightning_decode_gpu(q, k, v, log_decay, state, num_heads=2, every=True, interpret=True)
    np.testing.assert_allclose(after[0], state[0])
    for slot in range(1, 5):
        np.testing.assert_allclose(after[slot], every[slot, slot - 1], atol=1e-6)


def test_other_layers_of_a_stack_stay_as_they_are():
    q, k, v, log_decay, state = decode_inputs(2, 1, 2, 16, 16)
    stack = jnp.stack([state, 2 * state, 3 * state])
    step = jax.jit(lambda stack, i: lightning_decode_gpu(q, k, v, log_decay, stack, (i,), num_heads=2, interpret=True))
    _, after = step(stack, 1)
    np.testing.assert_allclose(after[1], recurrence(q, k, v, log_decay, stack[1])[1], atol=2e-5)
    np.testing.assert_array_equal(after[::2], stack[::2])


# ---------------------------------------------------------------- lowering and choice


def triton_kernels(function, *shapes) -> int:
    """Of a function, lowered for CUDA on this machine."""
    shapes = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text().count("__gpu$xla.gpu.triton")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("length", "heads", "dim"), [(8192, 64, 128), (197, 3, 16)])
def test_forward_and_backward_lower_for_cuda(dtype, length, heads, dim):
    def forward(q, k, v, log_decay, state, ids):
        return lightning_attention_gpu(q, k, v, log_decay, state, ids, heads)

    def both(q, k, v, log_decay, state, ids):
        values, pull = jax.vjp(lambda q, k, v, state: forward(q, k, v, log_decay, state, ids), q, k, v, state)
        return pull(values)

    array, state = ((1, length, heads * dim), dtype), ((1, heads, dim, dim), "float32")
    arguments = (array, array, array, ((heads,), "float32"), state, ((1, length), "int32"))
    assert triton_kernels(forward, *arguments) == 2
    assert triton_kernels(both, *arguments) == 4


@pytest.mark.parametrize("every", [False, True])
def test_decoding_lowers_for_cuda(every):
    decode = functools.partial(lightning_decode_gpu, num_heads=64, every=every)
    array = ((64, 3, 64 * 128), "bfloat16")
    assert triton_kernels(decode, array, array, array, ((64,), "float32"), ((64, 64, 128, 128), "float32")) == 1


def test_a_gpu_chooses_the_kernels_that_are_tested(monkeypatch):
    shape = lambda *dims, dtype="bfloat16": jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
    monkeypatch.setattr(api, "platform", lambda: "gpu")
    assert api.choose_backend(None, shape(1, 64, 16, 128), 128) == "gpu"
    assert api.choose_backend(None, shape(1, 63, 16, 128), 128) == "xla"
    assert not suits_gpu(shape(1, 64, 16, 128, dtype="float32"), 128)
    assert suits_gpu(shape(1, 64, 16, 64, dtype="float32"), 64)
    assert not suits_gpu(shape(1, 64, 16, 96), 96)
    with pytest.raises(ValueError, match="backend is 'tpu' and the platform 'gpu'"):
        api.choose_backend("tpu", shape(1, 64, 16, 128), 128)


def test_wrong_choices_raise():
    q, k, v, log_decay, *_ = random_inputs(0, 1, 64, 2, 16, 16)
    with pytest.raises(ValueError, match="backend is 'gpu' and the platform 'cpu'"):
        lightning_attention(q, k, v, log_decay, backend="gpu")
    with pytest.raises(ValueError, match="k is float32; the GPU kernels"):
        lightning_attention(q.astype(jnp.bfloat16), k, v, log_decay, backend="gpu_interpret")
    wide = jnp.zeros((1, 64, 2 * 48))
    with pytest.raises(ValueError, match="q has heads of 48"):
        lightning_attention_flat(wide, wide, wide, log_decay, num_heads=2, backend="gpu_interpret")
    with pytest.raises(ValueError, match="q has 9 tokens; at most 8"):
        lightning_decode_gpu(*decode_inputs(1, 9, 2, 16, 16), num_heads=2, interpret=True)


def test_a_gpu_checks_itself():
    found = self_check.check_kernels("gpu_interpret")
    assert found.startswith("gpu_interpret; off their reference by attention ") and "decoding " in found


# ---------------------------------------------------------------- slow


@pytest.mark.slow
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31), length=st.integers(1, 700), heads=st.integers(1, 9),
    key_dim=st.sampled_from([16, 64, 128]), value_dim=st.sampled_from([16, 64, 128]),
    packed=st.booleans(), strongest=st.floats(0.01, 5.0),
)  # fmt: skip
def test_any_shape_equals_the_recurrence(seed, length, heads, key_dim, value_dim, packed, strongest):
    inputs = random_inputs(seed, 1, length, heads, key_dim, value_dim, strongest=strongest)
    assert_equals_recurrence(inputs, random_segments(seed, 1, length) if packed else None)
