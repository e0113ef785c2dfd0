"""Rows split among ranks, one gather of summaries and one correction equal the whole row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_attention.context import add_incoming, fold_states, local_attention


def split_attention(q, k, v, log_decay, ids, lengths, initial_state=None):
    """(out, incoming states, final state, local states) of ranks with these numbers of tokens."""
    edges = np.cumsum([0, *lengths])
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    ranks = [local_attention(q[:, p], k[:, p], v[:, p], log_decay, ids[:, p], backend="xla") for p in parts]
    summaries = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(summary for _, summary in ranks))
    incoming, final = fold_states(summaries, log_decay, initial_state)
    outs = [
        add_incoming(out, q[:, p], state, log_decay, ids[:, p])
        for (out, _), p, state in zip(ranks, parts, incoming, strict=True)
    ]
    return jnp.concatenate(outs, axis=1), incoming, final, summaries.state


def test_official_numbers(golden, x64):
    data = np.load(golden / "objectives" / "cp_fold.npz")
    held = [rank for rank, length in enumerate(data["rank_lengths"]) if length]  # a rank of no tokens has no part
    q, k, v, log_decay = (jnp.asarray(data[name]) for name in ("q", "k", "v", "g"))
    out, incoming, final, local = split_attention(
        q, k, v, log_decay, jnp.asarray(data["segment_ids"]), data["rank_lengths"][held]
    )
    np.testing.assert_allclose(out, data["out"], atol=1e-12)
    np.testing.assert_allclose(final, data["final_state"], atol=1e-12)
    np.testing.assert_allclose(local, np.swapaxes(data["local_state"], 0, 1)[held], atol=1e-12)
    entering = np.swapaxes(data["S_in"], 0, 1)[held]
    live = np.swapaxes(data["live"], 0, 1)[held] > 0  # without live tokens nothing reads it
    np.testing.assert_allclose(np.asarray(incoming)[live], entering[live], atol=1e-12)


@jax.jit
def whole_and_split(q, k, v, d_out, log_decay, ids, state):
    """(out, final state, dq, dk, dv) of both ways."""

    def split(q, k, v):
        out, _, final, _ = split_attention(q, k, v, log_decay, ids, [6, 6, 6, 6], state)
        return out, final

    def whole(q, k, v):
        return lightning_attention(q, k, v, log_decay, initial_state=state, segment_ids=ids, backend="xla")

    def values_and_gradients(form):
        values, pull = jax.vjp(form, q, k, v)
        return *values, *pull((d_out, jnp.ones_like(values[1])))

    return values_and_gradients(whole), values_and_gradients(split)


@pytest.mark.parametrize("initial", [False, True])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**31))
def test_ranks_equal_the_whole_row(initial, seed):
    """Values, and gradients through the gather; documents and padding across the ranks' edges."""
    rng = np.random.default_rng(seed)
    q, k, v, d_out = jnp.asarray(rng.normal(size=(4, 2, 24, 2, 4)), jnp.float32)
    ids = np.stack([np.repeat(rng.integers(0, 3, 24), rng.integers(1, 15, 24))[:24] for _ in range(2)]).astype(np.int32)
    state = jnp.asarray(rng.normal(size=(2, 2, 4, 4)), jnp.float32) if initial else None
    for a, b in zip(*whole_and_split(q, k, v, d_out, jnp.asarray([-0.7, -0.01]), ids, state), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)
