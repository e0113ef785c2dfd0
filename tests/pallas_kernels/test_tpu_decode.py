"""The TPU's decode kernel, interpreted on a CPU, equals the recurrence, token by token and state by state."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.lightning_attention import lightning_decode_tpu
from tests.helpers.kernel_laws import (
    assert_accepted_tokens_count_and_others_do_not,
    assert_other_layers_of_a_stack_stay_as_they_are,
    assert_thousands_of_tokens_keep_slow_decays,
    assert_tokens_equal_the_recurrence,
    decode_inputs,
    recurrence,
)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "key_dim", "value_dim"),
    [(16, 1, 4, 128, 128), (3, 1, 2, 16, 32), (1, 8, 2, 128, 64), (4, 3, 3, 64, 128), (11, 1, 1, 16, 16)],
)
def test_tokens_equal_the_recurrence(batch, length, heads, key_dim, value_dim):
    assert_tokens_equal_the_recurrence(lightning_decode_tpu, batch, length, heads, key_dim, value_dim)


def test_accepted_tokens_count_and_others_do_not():
    assert_accepted_tokens_count_and_others_do_not(lightning_decode_tpu)


def test_other_layers_of_a_stack_stay_as_they_are():
    assert_other_layers_of_a_stack_stay_as_they_are(lightning_decode_tpu)


def test_thousands_of_tokens_keep_slow_decays():
    assert_thousands_of_tokens_keep_slow_decays(lightning_decode_tpu)


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
