"""Rows split among devices: what is refused, who computes what; and, on simulated devices, equality and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import model
from ling_jax.model.transformer import make_token_info
from ling_jax.parallel import context
from ling_jax.parallel.sharding import abstract_mesh
from tests.helpers.programs import output_of
from tests.helpers.tiny import tiny_config


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_causal_work_evenly(ranks):
    """Each (queries, earlier or equal keys) pair of half stretches is computed once, as many by each rank."""
    own = [(2 * rank, 2 * (ranks - 1 - rank) + 1) for rank in range(ranks)]
    pairs = context._pairs(ranks)
    assert pairs.shape == (ranks, 2 * ranks + 1, 2)
    computed = [(own[rank][p], s) for rank in range(ranks) for p, s in pairs[rank].tolist()]
    assert sorted(computed) == [(q, s) for q in range(2 * ranks) for s in range(q + 1)]


def test_rows_that_cannot_be_split_are_refused_with_the_numbers():
    message = r"rows of 12 tokens cannot be split among 4 ranks .*; the length must be a multiple of 8"
    with jax.sharding.use_abstract_mesh(abstract_mesh(context=4)), pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda tokens: make_token_info(tokens, tiny_config()), np.zeros((2, 12), int))


def test_a_cache_is_refused_where_rows_are_split():
    config = tiny_config()
    params, cache = jax.eval_shape(
        lambda: (model.init(jax.random.key(0), config), model.init_cache(config, 2, 16, dtype=jnp.float32))
    )
    read = lambda params, cache: model.forward(params, jnp.zeros((2, 8), int), config, cache=cache)  # noqa: E731
    message = r"a cache belongs to whole rows, and the mesh splits them 2 ways"
    with jax.sharding.use_abstract_mesh(abstract_mesh(context=2)), pytest.raises(ValueError, match=message):
        jax.eval_shape(read, params, cache)


def on_four_devices(*names: str) -> None:
    assert output_of("tests.helpers.rows_on_four", *names).split() == [*names]


@pytest.mark.slow
def test_softmax_of_split_rows_equals_whole_rows_and_lightning_moves_states_alone():
    on_four_devices("softmax", "collectives")


@pytest.mark.slow
def test_the_kernels_of_tpus_compute_the_same_of_split_rows():
    on_four_devices("softmax_kernels")


def test_split_lightning_attention_gives_the_official_numbers():
    on_four_devices("official")
