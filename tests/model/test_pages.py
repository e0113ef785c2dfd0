"""A pool of pages gives what whole caches and forward passes give."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax import model, spec
from ling_jax.model.attention import PAGED_BLOCK, cached_attention, paged_attention
from ling_jax.model.cache import pool_spec
from ling_jax.model.loss import head_logits
from ling_jax.model.token_info import PAGE_SIZE, PAST_END, Pages
from ling_jax.model.transformer import forward_with_pages
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import FAMILIES, random_params, tiny_config

EXACT = 1e-12  # float64: sums of some hundred terms of size 1
many = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
forward = quick_jit(model.forward, static_argnums=2)


@pytest.mark.parametrize(("heads", "groups", "queries"), [(4, 2, 1), (4, 1, 1), (2, 2, 5)])
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(5, 2 * PAGED_BLOCK + 8), min_size=3, max_size=3))
@many
def test_paged_attention_equals_cached_attention(x64, heads, groups, queries, seed, lengths):
    """Rows of any length in scattered pages; what lies behind a row's last token may be NaN."""
    rng, n = np.random.default_rng(seed), -(-(2 * PAGED_BLOCK + 8) // PAGE_SIZE)
    table = 1 + rng.permutation(3 * n).reshape(3, n)
    q, pool_k, pool_v = (
        rng.normal(size=shape)
        for shape in ((3, queries, heads, 8), (3 * n + 1, PAGE_SIZE, groups, 8), (3 * n + 1, PAGE_SIZE, groups, 6))
    )
    last = np.array(lengths)[:, None] - queries + np.arange(queries)
    k, v = (pool[table].reshape(3, n * PAGE_SIZE, groups, -1) for pool in (pool_k, pool_v))
    wanted = cached_attention(q, k, v, last, 0.3)
    stored = np.arange(n * PAGE_SIZE) <= last[:, -1:]
    for pool in (pool_k, pool_v):
        for row in range(3):
            pool[table[row]] = np.where(stored[row].reshape(n, PAGE_SIZE, 1, 1), pool[table[row]], np.nan)

    def read(pages):
        return tuple(jnp.asarray(pool)[pages].reshape(3, -1, *pool.shape[2:]) for pool in (pool_k, pool_v))

    found = paged_attention(q, read, jnp.asarray(table), jnp.asarray(last), 0.3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXACT)


@functools.cache
def family(name):
    config = tiny_config(name, compute_dtype="float64", remat="none", lightning_chunk=4, max_length=64)
    return random_params(config), config


@functools.partial(quick_jit, static_argnums=5)
def read(params, tokens, positions, pages, layers, config):
    hidden, _, layers = forward_with_pages(params, tokens, positions, pages, layers, config)
    return head_logits(params["head"], hidden), layers


def tile(counts, done):
    """(sequence of each row, positions [rows, columns]): single tokens of both sequences, then an empty row."""
    rows = [(which, done[which] + i) for which in (0, 1) for i in range(counts[which])]
    rows += [(0, -1)] * (9 - len(rows))
    return np.array([which for which, _ in rows]), np.array([[position] for _, position in rows])


def chunks(counts, done):
    """The same, a row of at most 4 tokens for each sequence, padded behind them."""
    at = np.arange(4)
    return np.arange(2), np.stack([np.where(at < counts[which], done[which] + at, -1) for which in (0, 1)])


@pytest.mark.parametrize("form", [tile, chunks])
@pytest.mark.parametrize("name", FAMILIES)
@given(seed=st.integers(0, 99), sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
@many
def test_pages_give_the_logits_of_a_forward_pass(x64, name, form, seed, sizes):
    """Two sequences in scattered pages, side by side and in any pieces; everything else in the pool is NaN."""
    params, config = family(name)
    rng, length, done, sizes = (
        np.random.default_rng(seed),
        30,
        np.zeros(2, int),
        itertools.cycle([*sizes, (1, 2), (2, 1)]),
    )
    tokens, table = rng.integers(0, config.vocab_size, (2, length)), 1 + rng.permutation(8).reshape(2, 4)
    found = np.full((2, length, config.vocab_size), np.nan)
    layers = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), empty_pool(config))
    while (done < length).any():
        which, positions = form(counts := np.minimum(next(sizes), length - done), done)
        live = positions >= 0
        state = np.where(live[:, 0], 2 - which, PAST_END)
        pages = Pages(table[which], state, positions[:, 0] == 0, np.asarray(form is chunks or max(counts) <= 1))
        given_tokens = np.where(live, tokens[which[:, None], positions], 0)
        logits, layers = read(params, given_tokens, positions, pages, layers, config)
        found[np.broadcast_to(which[:, None], live.shape)[live], positions[live]] = logits[live]
        done += counts
    np.testing.assert_allclose(found, forward(params, tokens, config).logits, rtol=EXACT, atol=EXACT)


def empty_pool(config):
    return spec.init(jax.random.key(0), pool_spec(config, states=3, pages=9))
