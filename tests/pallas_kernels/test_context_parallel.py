"""Rows split among ranks, one gather of states: equal to the whole row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.lightning_attention import document_ids, lightning_attention
from pallas_kernels.lightning_attention.context import entering_state, live_between, local_state


def split_attention(q, k, v, log_decay, docs, ranks):
    """(out, entering states [R, B, …], local states [R, B, …], final state of the last rank)."""
    cut = lambda x: jnp.moveaxis(x.reshape(len(x), ranks, -1, *x.shape[2:]), 1, 0)  # noqa: E731
    q, k, v, parts = map(cut, (q, k, v, docs))
    local = jax.vmap(local_state, (0, 0, None, 0))(k, v, log_decay, parts)
    between = jnp.moveaxis(live_between(docs, ranks), 1, 0)
    entering = jax.vmap(entering_state, (None, 0, None))(local, between, log_decay)
    outs, finals = zip(
        *(
            lightning_attention(*qkv, log_decay, initial_state=state, segment_ids=ids, backend="xla")
            for *qkv, state, ids in zip(q, k, v, entering, parts, strict=True)
        ),
        strict=True,
    )
    return jnp.concatenate(outs, axis=1), entering, local, finals[-1]


def test_official_numbers(golden, x64):
    """Ranks of unequal and of zero tokens are equal ones with padding behind; a last one shows the final state."""
    data = np.load(golden / "objectives" / "cp_fold.npz")
    lengths = data["rank_lengths"]
    places = np.concatenate([rank * lengths.max() + np.arange(n) for rank, n in enumerate(lengths)])
    length = (len(lengths) + 1) * lengths.max()
    spread = lambda x: jnp.zeros((len(x), length, *x.shape[2:]), x.dtype).at[:, places].set(x)  # noqa: E731
    docs = document_ids(data["segment_ids"])
    last = docs.max(axis=1)
    docs = spread(docs).at[:, -1].set(last)  # one more token of the last document, that reads the state
    q, k, v = (spread(jnp.asarray(data[name])) for name in "qkv")
    log_decay = jnp.asarray(data["g"])
    out, entering, local, _ = split_attention(q, k, v, log_decay, docs, len(lengths) + 1)
    np.testing.assert_allclose(out[:, places], data["out"], atol=1e-12)
    np.testing.assert_allclose(local[:-1], np.swapaxes(data["local_state"], 0, 1), atol=1e-12)
    np.testing.assert_allclose(entering[-1], data["final_state"], atol=1e-12)
    live = np.swapaxes(data["live"], 0, 1) > 0  # without live tokens nothing reads it
    np.testing.assert_allclose(entering[:-1][live], np.swapaxes(data["S_in"], 0, 1)[live], atol=1e-12)


@jax.jit
def whole_and_split(q, k, v, d_out, log_decay, ids):
    """(out, dq, dk, dv) of both ways."""

    def values_and_gradients(form):
        out, pull = jax.vjp(form, q, k, v)
        return out, *pull(d_out)

    whole = lambda q, k, v: lightning_attention(q, k, v, log_decay, segment_ids=ids, backend="xla")[0]  # noqa: E731
    split = lambda q, k, v: split_attention(q, k, v, log_decay, document_ids(ids), 4)[0]  # noqa: E731
    return values_and_gradients(whole), values_and_gradients(split)


@given(seed=st.integers(0, 2**31))
def test_ranks_equal_the_whole_row(seed):
    """Values, and gradients through the gather; documents and padding across the ranks' edges."""
    rng = np.random.default_rng(seed)
    q, k, v, d_out = jnp.asarray(rng.normal(size=(4, 2, 24, 2, 4)), jnp.float32)
    ids = np.stack([np.repeat(rng.integers(0, 3, 24), rng.integers(1, 15, 24))[:24] for _ in range(2)]).astype(np.int32)
    for a, b in zip(*whole_and_split(q, k, v, d_out, jnp.asarray([-0.7, -0.01]), ids), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_values_that_are_not_finite_stay_in_their_document():
    """Of states that are handed on and of their gradients; the second of three documents goes over four ranks of five
    tokens, from the third token to the last but two."""
    docs = jnp.repeat(jnp.arange(1, 4), jnp.asarray([2, 16, 2]), total_repeat_length=20)[None]
    k, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 20, 2, 4)), jnp.float32)
    bad = docs[0] == 2

    def handed(k, v):
        return split_attention(k, k, v, jnp.asarray([-0.7, -0.01]), docs, 4)[1]

    states, pull = jax.vjp(handed, *(jnp.where(bad[:, None, None], jnp.nan, x) for x in (k, v)))
    assert np.isnan(states[1:]).all() and not states[0].any()
    assert all(np.isfinite(x[:, ~bad]).all() for x in pull(states))


def test_strong_decay_over_many_ranks_stays_finite():
    """Only differences are raised: no exponent is positive, however many tokens stand before."""
    ranks, log_decay = 4, jnp.asarray([-5.0, -1e-3])
    q, k, v = jnp.ones((3, 1, 4 * 64, 2, 4), jnp.float32)
    docs = jnp.ones((1, 4 * 64), jnp.int32)
    whole, _ = lightning_attention(q, k, v, log_decay, backend="xla")
    split, *_ = split_attention(q, k, v, log_decay, docs, ranks)
    np.testing.assert_allclose(split, whole, rtol=2e-5)


@pytest.mark.parametrize("ids", list(itertools.product([0, 1, 2], repeat=4)))
def test_only_states_of_continuing_documents_reach_later_ranks(ids):
    """Ranks of one token: a state enters where the token before is of the same document."""
    between = live_between(document_ids(jnp.asarray([ids])), 4)[0]
    for k, j in itertools.product(range(4), repeat=2):
        handed = j < k and ids[k] > 0 and len(set(ids[j : k + 1])) == 1
        assert between[k, j] == (k - j - 1 if handed else -1), (k, j)
