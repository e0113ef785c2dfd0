"""The TPU's decode kernel, interpreted on a CPU, equals the recurrence, token by token and state by state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.lightning_attention import lightning_attention_flat, lightning_decode_tpu
from tests.pallas_kernels.test_tpu_kernels import random_inputs


def decode_inputs(batch, length, heads, key_dim, value_dim, dtype="float32"):
    """(q, k, v flat, log_decay, states)."""
    q, k, v, log_decay, state, *_ = random_inputs(0, batch, length, heads, key_dim, value_dim, dtype)
    return *(x.reshape(batch, length, -1) for x in (q, k, v)), jnp.asarray(log_decay), state


def recurrence(q, k, v, log_decay, state, live=None):
    return lightning_attention_flat(
        *(x.astype(jnp.float32) for x in (q, k, v)), log_decay, num_heads=log_decay.shape[0], initial_state=state,
        segment_ids=live, backend="reference",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "length", "heads", "key_dim", "value_dim"),
    [(16, 1, 4, 128, 128), (3, 1, 2, 16, 32), (1, 8, 2, 128, 64), (4, 3, 3, 64, 128)],
)
def test_tokens_equal_the_recurrence(batch, length, heads, key_dim, value_dim):
    q, k, v, log_decay, state = decode_inputs(batch, length, heads, key_dim, value_dim)
    out, after = lightning_decode_tpu(q, k, v, log_decay, state, num_heads=heads, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_accepted_tokens_count_and_others_do_not():
    """Speculative decoding: slots accept 0 to 4 of 4 drafted tokens."""
    q, k, v, log_decay, state = decode_inputs(5, 4, 2, 16, 16)
    live = (np.arange(4) < np.arange(5)[:, None]).astype(np.int32)
    out, after = lightning_decode_tpu(q, k, v, log_decay, state, live=live, num_heads=2, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state, live), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    _, every = lightning_decode_tpu(q, k, v, log_decay, state, num_heads=2, every=True, interpret=True)
    np.testing.assert_allclose(after[0], state[0])
    for slot in range(1, 5):
        np.testing.assert_allclose(after[slot], every[slot, slot - 1], atol=1e-6)


def test_other_layers_of_a_stack_stay_as_they_are():
    q, k, v, log_decay, state = decode_inputs(2, 1, 2, 16, 16)
    stack = jnp.stack([state, 2 * state, 3 * state])
    step = jax.jit(lambda stack, i: lightning_decode_tpu(q, k, v, log_decay, stack, (i,), num_heads=2, interpret=True))
    _, after = step(stack, 1)
    np.testing.assert_allclose(after[1], recurrence(q, k, v, log_decay, stack[1])[1], atol=2e-5)
    np.testing.assert_array_equal(after[::2], stack[::2])


def test_bfloat16_inputs_have_float32_states():
    q, k, v, log_decay, state = decode_inputs(8, 1, 2, 128, 128, "bfloat16")
    out, after = lightning_decode_tpu(q, k, v, log_decay, state, num_heads=2, interpret=True)
    expected, expected_after = recurrence(q, k, v, log_decay, state)
    np.testing.assert_allclose(after, expected_after, atol=2e-5)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
    assert out.dtype == jnp.bfloat16


def test_more_tokens_are_refused():
    q, k, v, log_decay, state = decode_inputs(1, 9, 2, 16, 16)
    with pytest.raises(ValueError, match="q has 9 tokens; at most 8"):
        lightning_decode_tpu(q, k, v, log_decay, state, num_heads=2, interpret=True)
