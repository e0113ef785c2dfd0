"""The GPU kernels, interpreted on a CPU, equal the recurrence; and they lower to Triton for CUDA, at production sizes
too. No GPU has timed or run them here."""

import contextlib
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
from tests.helpers.kernel_laws import (
    NAMES,
    assert_a_row_of_padding_keeps_its_state,
    assert_accepted_tokens_count_and_others_do_not,
    assert_any_shape_equals_the_recurrence,
    assert_equals_recurrence,
    assert_it_stays_in_its_document,
    assert_no_gradient_reaches_the_decay,
    assert_other_layers_of_a_stack_stay_as_they_are,
    assert_thousands_of_tokens_keep_slow_decays,
    assert_tokens_equal_the_recurrence,
    decode_inputs,
    random_inputs,
    random_segments,
    values_and_gradients,
)

BACKEND = "gpu_interpret"


@pytest.mark.parametrize(("length", "initial"), [(128, False), (197, True), (5, True)])
def test_plain_rows_equal_the_recurrence(length, initial):
    inputs = list(random_inputs(0, 1, length, 2, 16, 32))
    inputs[4] = inputs[4] if initial else None
    assert_equals_recurrence(BACKEND, inputs)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), longest=st.sampled_from([2, 20, 150]))
def test_packed_rows_equal_the_recurrence(seed, longest):
    """Padding before, between and behind documents of one token and of more than a chunk."""
    assert_equals_recurrence(BACKEND, random_inputs(seed, 2, 197, 2, 16, 16), random_segments(seed, 2, 197, longest))


def test_very_strong_decay_does_not_overflow():
    assert_equals_recurrence(BACKEND, random_inputs(0, 1, 197, 3, 16, 16, strongest=50.0))


def test_a_row_of_padding_keeps_its_state():
    assert_a_row_of_padding_keeps_its_state(BACKEND, 197)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_document(bad):
    assert_it_stays_in_its_document(BACKEND, bad, (80, 40, 77))


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
    assert_no_gradient_reaches_the_decay(BACKEND, 64)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("batch", "length", "heads", "key_dim", "value_dim"), [(3, 1, 2, 16, 32), (1, 8, 2, 128, 64), (4, 3, 3, 64, 128)]
)
def test_tokens_equal_the_recurrence(batch, length, heads, key_dim, value_dim):
    assert_tokens_equal_the_recurrence(lightning_decode_gpu, batch, length, heads, key_dim, value_dim)


def test_accepted_tokens_count_and_others_do_not():
    assert_accepted_tokens_count_and_others_do_not(lightning_decode_gpu)


def test_other_layers_of_a_stack_stay_as_they_are():
    assert_other_layers_of_a_stack_stay_as_they_are(lightning_decode_gpu)


def test_thousands_of_tokens_keep_slow_decays():
    assert_thousands_of_tokens_keep_slow_decays(lightning_decode_gpu)


# ---------------------------------------------------------------- lowering and choice


def abstract_gpu() -> contextlib.AbstractContextManager:
    """An H100 that is not here, which jax 0.11 and later lower for."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu))


def triton_kernels(function, *shapes) -> int:
    """Of a function, lowered for CUDA on this machine."""
    shapes = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    with abstract_gpu():
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("__gpu$xla.gpu.triton")


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
def test_any_shape_equals_the_recurrence():
    assert_any_shape_equals_the_recurrence(BACKEND)
