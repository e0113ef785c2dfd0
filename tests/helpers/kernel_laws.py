"""What every kernel of Lightning attention promises, for the tests of each platform's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.lightning_attention import lightning_attention, lightning_attention_flat

NAMES = ("out", "final_state", "dq", "dk", "dv", "d_initial_state")


def random_inputs(seed, batch, length, heads, key_dim, value_dim, dtype="float32", strongest=1.0):
    """(q, k, v, log_decay, initial_state, d_out, d_final)."""
    rng = np.random.default_rng(seed)
    q, k = jnp.asarray(rng.normal(size=(2, batch, length, heads, key_dim)), dtype)
    v, d_out = jnp.asarray(rng.normal(size=(2, batch, length, heads, value_dim)), dtype)
    state, d_final = jnp.asarray(rng.normal(size=(2, batch, heads, key_dim, value_dim)), jnp.float32)
    log_decay = -np.geomspace(strongest, 1e-3, heads).astype(np.float32)
    log_decay[0] = 0 if heads > 1 else log_decay[0]
    return q, k, v, log_decay, state, d_out, d_final


def random_segments(seed, batch, length, longest=150):
    """Ids in any order, repeated ids and padding anywhere, runs of all lengths."""
    rng = np.random.default_rng(seed)
    rows = [np.repeat(rng.integers(0, 4, length), rng.integers(1, longest, length))[:length] for _ in range(batch)]
    return np.stack(rows).astype(np.int32)


@functools.partial(jax.jit, static_argnames="backend")
def values_and_gradients(q, k, v, log_decay, state, d_out, d_final, segment_ids=None, *, backend):
    """Of out and final state, and of a sum of both; `state` None leaves out the last gradient."""

    def total(q, k, v, state):
        out, final = lightning_attention(
            q, k, v, log_decay, initial_state=state, segment_ids=segment_ids, backend=backend
        )
        wide = out.astype(jnp.float32)
        return jnp.sum(wide * d_out.astype(jnp.float32)) + jnp.sum(final * d_final), (out, final)

    wanted = (0, 1, 2) if state is None else (0, 1, 2, 3)
    grads, values = jax.grad(total, wanted, has_aux=True)(q, k, v, state)
    return *values, *grads


def assert_equals_recurrence(backend, inputs, segment_ids=None):
    found = values_and_gradients(*inputs, segment_ids, backend=backend)
    expected = values_and_gradients(*inputs, segment_ids, backend="reference")
    for name, a, b in zip(NAMES, found, expected, strict=False):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale, err_msg=name)


def assert_any_shape_equals_the_recurrence(backend):
    @settings(max_examples=30)
    @given(
        seed=st.integers(0, 2**31), length=st.integers(1, 700), heads=st.integers(1, 9),
        key_dim=st.sampled_from([16, 64, 128]), value_dim=st.sampled_from([16, 64, 128]),
        packed=st.booleans(), strongest=st.floats(0.01, 5.0),
    )  # fmt: skip
    def holds(seed, length, heads, key_dim, value_dim, packed, strongest):
        inputs = random_inputs(seed, 1, length, heads, key_dim, value_dim, strongest=strongest)
        assert_equals_recurrence(backend, inputs, random_segments(seed, 1, length) if packed else None)

    holds()


def assert_a_row_of_padding_keeps_its_state(backend, length):
    q, k, v, log_decay, state, d_out, d_final = random_inputs(0, 2, length, 2, 16, 16)
    ids = random_segments(0, 2, length)
    ids[1] = 0
    out, final, *_, d_state = values_and_gradients(q, k, v, log_decay, state, d_out, d_final, ids, backend=backend)
    np.testing.assert_array_equal(out[1], 0)
    np.testing.assert_array_equal(final[1], state[1])
    np.testing.assert_array_equal(d_state[1], d_final[1])


def assert_it_stays_in_its_document(backend, bad, lengths):
    """Of three documents, `bad` in the middle one: those that share a chunk with it have the values that they have
    beside a sound one."""
    first, middle, _ = lengths
    length, inside, at = sum(lengths), slice(first, first + middle), first + middle // 2
    q, k, v, log_decay, state, d_out, d_final = random_inputs(0, 1, length, 2, 16, 16)
    ids = np.repeat([1, 2, 3], lengths)[None].astype(np.int32)
    run = functools.partial(values_and_gradients, backend=backend)
    sound = run(q, k, v, log_decay, state, d_out, d_final, ids)
    broken = run(*(x.at[:, at].set(bad) for x in (q, k, v)), log_decay, state, d_out.at[:, at].set(bad), d_final, ids)
    assert not np.isfinite(broken[0][:, at + 10]).any(), "and it does not vanish there"
    for name, a, b in zip(NAMES, broken, sound, strict=True):
        if a.shape[1] == length:
            a, b = (np.delete(np.asarray(x), inside, axis=1) for x in (a, b))
        np.testing.assert_array_equal(a, b, err_msg=name)


def assert_no_gradient_reaches_the_decay(backend, length):
    q, k, v, log_decay, *_ = random_inputs(0, 1, length, 2, 16, 16)
    total = lambda g: lightning_attention(q, k, v, g, backend=backend)[0].sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(log_decay)), 0)


def decode_inputs(batch, length, heads, key_dim, value_dim, dtype="float32"):
    """(q, k, v flat, log_decay, states)."""
    q, k, v, log_decay, state, *_ = random_inputs(0, batch, length, heads, key_dim, value_dim, dtype)
    return *(x.reshape(batch, length, -1) for x in (q, k, v)), jnp.asarray(log_decay), state


def recurrence(q, k, v, log_decay, state, live=None):
    return lightning_attention_flat(
        *(x.astype(jnp.float32) for x in (q, k, v)), log_decay, num_heads=log_decay.shape[0], initial_state=state,
        segment_ids=live, backend="reference",
    )  # fmt: skip


def assert_tokens_equal_the_recurrence(decode, batch, length, heads, key_dim, value_dim):
    q, k, v, log_decay, state = decode_inputs(batch, length, heads, key_dim, value_dim)
    out, after = decode(q, k, v, log_decay, state, num_heads=heads, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def assert_accepted_tokens_count_and_others_do_not(decode):
    """Speculative decoding: slots accept 0 to 4 of 4 drafted tokens."""
    q, k, v, log_decay, state = decode_inputs(5, 4, 2, 16, 16)
    live = (np.arange(4) < np.arange(5)[:, None]).astype(np.int32)
    out, after = decode(q, k, v, log_decay, state, live=live, num_heads=2, interpret=True)
    for a, b in zip((out, after), recurrence(q, k, v, log_decay, state, live), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    _, every = decode(q, k, v, log_decay, state, num_heads=2, every=True, interpret=True)
    np.testing.assert_allclose(after[0], state[0])
    for slot in range(1, 5):
        np.testing.assert_allclose(after[slot], every[slot, slot - 1], atol=1e-6)


def assert_other_layers_of_a_stack_stay_as_they_are(decode):
    q, k, v, log_decay, state = decode_inputs(2, 1, 2, 16, 16)
    stack = jnp.stack([state, 2 * state, 3 * state])
    step = jax.jit(lambda stack, i: decode(q, k, v, log_decay, stack, (i,), num_heads=2, interpret=True))
    _, after = step(stack, 1)
    np.testing.assert_allclose(after[1], recurrence(q, k, v, log_decay, stack[1])[1], atol=2e-5)
    np.testing.assert_array_equal(after[::2], stack[::2])


def assert_thousands_of_tokens_keep_slow_decays(decode):
    """A rounded decay, multiplied as often, is off by up to 1e-4; sums of 4,000 terms by 1e-6."""
    heads, dim, log_decay = 3, 16, np.float32([-2.5e-6, -3e-5, -7.7e-4])
    ones = jnp.ones((1, 8, heads * dim))

    def eight_tokens(state, _):
        return decode(ones, ones, ones, log_decay, state, num_heads=heads, interpret=True)[1], None

    state, _ = jax.jit(lambda state: jax.lax.scan(eight_tokens, state, length=500))(jnp.zeros((1, heads, dim, dim)))
    exact = np.exp(log_decay.astype(np.float64)[:, None] * np.arange(4000)).sum(axis=1)
    np.testing.assert_allclose(state[0, :, 0, 0], exact, rtol=2e-6)
