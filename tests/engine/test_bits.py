"""Which operations give a row of a tile of 64 the same bits alone, among others and in another place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.engine import EXACT_TILE
from ling_jax.engine.draw import Sampling, draw
from ling_jax.model.attention import paged_attention
from ling_jax.model.lightning import recurrence_of_rows
from ling_jax.model.loss import head_logits
from ling_jax.model.moe import moe, swiglu
from ling_jax.model.norm import rms_norm
from ling_jax.model.token_info import PAGE_SIZE, PAST_END, Pages, TokenInfo
from tests.helpers.tiny import random_params, tiny_config

H, K, EACH = 4, 32, 10  # heads, their width, pages of a row


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Each takes a tile x [N, D], the number of each row's content [N] and whether the row is live [N].


def normed(x_ND, number_N, live_N):
    return rms_norm(x_ND, normal(1, x_ND.shape[1]), 1e-6)


def projected(x_ND, number_N, live_N):
    return x_ND @ normal(2, x_ND.shape[1], 3 * 77)


def feed_forward(x_ND, number_N, live_N):
    width = x_ND.shape[1]
    weights = {"gate": normal(3, width, 96), "up": normal(4, width, 96), "down": normal(5, 96, width)}
    return swiglu(weights, x_ND[:, None])


def experts(x_ND, number_N, live_N):
    """All rows choose expert 0: many in a full tile, few in an empty one."""
    sizes = dict(expert_ffn_size=128, shared_ffn_size=128, num_experts=4, num_expert_groups=1, top_groups=1)
    config = tiny_config("2.0", compute_dtype="float32", hidden_size=x_ND.shape[1], **sizes)
    weights = random_params(config, dtype="float32", std=0.1)["segments"]["1"]["0_gqa_moe"]["ffn"]
    weights = jax.tree.map(lambda leaf: leaf[0, 0], weights)
    weights["expert_bias"] = np.array([9, 0, 0, 0], np.float32)
    return moe(weights, x_ND[:, None], live_N[:, None], config)[0]


def log_probs(x_ND, number_N, live_N):
    logits_NW = head_logits(normal(6, x_ND.shape[1], 1000), x_ND[:, None])[:, 0]
    return logits_NW - jax.nn.logsumexp(logits_NW, axis=1, keepdims=True)


def attention(x_ND, number_N, live_N):
    pool = [jnp.asarray(normal(seed, EXACT_TILE * EACH, PAGE_SIZE, 2, K)) for seed in (7, 8)]
    table_Nn = number_N[:, None] * EACH + jnp.arange(EACH)
    last_N1 = jnp.where(live_N, number_N * 7 % (EACH * PAGE_SIZE), PAST_END)[:, None]

    def read(pages_Nn):
        return tuple(array[pages_Nn].reshape(len(pages_Nn), -1, 2, K) for array in pool)

    q_N1HK = (x_ND @ normal(9, x_ND.shape[1], H * K)).reshape(-1, 1, H, K)
    return paged_attention(q_N1HK, read, table_Nn, last_N1, 0.2)


def lightning_step(x_ND, number_N, live_N, in_order=False):
    q, k, v = (jnp.asarray(normal(seed, EXACT_TILE, H, K))[number_N] + x_ND[:, :1, None] for seed in (1, 2, 3))
    pages = Pages(None, jnp.where(live_N, number_N, PAST_END), None, jnp.any(live_N) & ~in_order)
    info = TokenInfo(*[None] * 7, pages=pages)
    decay = -jnp.linspace(0.01, 1, H)
    return recurrence_of_rows(q, k, v, decay, jnp.asarray(normal(4, EXACT_TILE, H, K, K))[number_N], info)[0]


def drawn(x_ND, number_N, live_N):
    logits_NW = x_ND @ normal(6, x_ND.shape[1], 1000)
    zero = jnp.zeros_like(number_N)
    top_p = jnp.where(number_N % 2 == 0, 0.9, 1.0)
    stop = jnp.full((len(number_N), 8), -1)
    return draw(logits_NW, Sampling(number_N.astype(jnp.uint32), number_N, top_p, zero, top_p, 0.0 * top_p, stop, zero))


OPERATIONS = (normed, projected, feed_forward, experts, log_probs, attention, lightning_step, drawn)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_row_has_the_same_bits_in_every_tile(operation, width):
    content, numbers = normal(0, EXACT_TILE, width), np.arange(EXACT_TILE)
    run = jax.jit(lambda x, number, live: operation(x, number, live).reshape(EXACT_TILE, -1))
    wanted, rng = np.asarray(run(content, numbers, numbers >= 0)), np.random.default_rng(1)
    for count in (64, 40, 17, 3, 1, 1):
        place = rng.permutation(EXACT_TILE)[:count]
        x, number, live = np.zeros_like(content), np.zeros_like(numbers), np.zeros(EXACT_TILE, bool)
        chosen = rng.permutation(EXACT_TILE)[:count]
        x[place], number[place], live[place] = content[chosen], chosen, True
        np.testing.assert_array_equal(np.asarray(run(x, number, live))[place], wanted[chosen], f"{count} rows")


def test_lightning_rows_in_order_have_the_bits_of_rows_together():
    run = jax.jit(lambda in_order: lightning_step(normal(0, EXACT_TILE, 8), number, number >= 0, in_order))
    number = jnp.arange(EXACT_TILE)
    np.testing.assert_array_equal(run(False), run(True))
