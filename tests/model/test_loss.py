"""Losses, targets and the inputs of MTP, inside documents, for any chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.model.loss import LossSums, cross_entropy_sum, shifted_targets, token_logps, weighted_total
from ling_jax.model.mtp import shift_tokens
from pallas_kernels.lightning_attention import document_ids

HEADS = ["main", "mtp0", "mtp1", "mtp2"]  # targets 1, 2, 3, 4 tokens ahead


@pytest.fixture
def official(golden):
    return dict(np.load(golden / "objectives" / "mtp_targets.npz"))


@pytest.mark.parametrize(("head", "by"), list(zip(HEADS, range(1, 5), strict=True)))
def test_targets_are_the_official(official, head, by):
    targets = shifted_targets(official["labels"], document_ids(official["segment_ids"]), by)
    np.testing.assert_array_equal(targets, official[f"target.{head}"])


@pytest.mark.parametrize(("head", "by"), list(zip(HEADS[1:], range(1, 4), strict=True)))
def test_mtp_inputs_are_the_official(official, head, by):
    tokens = shift_tokens(official["input_ids"], document_ids(official["segment_ids"]), by)
    np.testing.assert_array_equal(tokens, official[f"mtp_input.{head}"])


@functools.partial(jax.jit, static_argnums=2)
def mean_nll(logits, targets, chunk):
    """The logits are the hidden states, under an identity head."""
    total = cross_entropy_sum(logits, jnp.eye(logits.shape[-1], dtype=logits.dtype), targets, chunk)
    return total / jnp.maximum(jnp.sum(targets != -100), 1)


@functools.partial(jax.jit, static_argnums=2)
def token_nll(logits, targets, chunk):
    eye = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    one = lambda hidden, target: cross_entropy_sum(hidden[None, None], eye, target[None, None], chunk)  # noqa: E731
    return jax.vmap(jax.vmap(one))(logits, targets)


@pytest.mark.parametrize("head", HEADS)
def test_losses_and_their_gradients_are_the_official(official, x64, head):
    logits, targets = jnp.asarray(official[f"logits.{head}"], "float64"), official[f"target.{head}"]
    value, grad = jax.value_and_grad(mean_nll)(logits, targets, 5)  # 5 does not divide 18 tokens
    np.testing.assert_allclose(value, official[f"loss.{head}"], rtol=1e-9)
    np.testing.assert_allclose(grad, official[f"grad.{head}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(token_nll(logits, targets, 1), official[f"nll.{head}"], rtol=0, atol=1e-9)


def test_the_total_weighs_mtp_as_official(official, x64):
    def sums(head):
        return official[f"nll.{head}"].sum(), (official[f"target.{head}"] != -100).sum()

    (main, main_count), (mtp, mtp_count) = sums("main"), sums("mtp0")
    totals = LossSums(main, jnp.array([mtp]), 0.0, main_count, jnp.array([mtp_count]), 54)
    weight = float(official["mtp_loss_weight"])
    total = weighted_total(totals, totals, mtp_weight=weight, z_weight=0.0)
    np.testing.assert_allclose(total, official["loss.total_depth1"], rtol=1e-9)


def random_case(length=17, width=6, vocab=11):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, length, width)), rng.normal(size=(width, vocab))
    targets = rng.integers(0, vocab, (2, length))
    targets[0, 3:9] = targets[1, -1] = -100
    return hidden, head, targets


def dense_nll_sum(hidden, head, targets):
    logps = jax.nn.log_softmax(hidden @ head)
    picked = jnp.take_along_axis(logps, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(targets != -100, picked, 0))


@pytest.mark.parametrize("chunk", [1, 5, 17, 100])
def test_chunks_change_neither_the_loss_nor_its_gradients(x64, chunk):
    hidden, head, targets = random_case()
    found = jax.value_and_grad(lambda h, w: 3.0 * cross_entropy_sum(h, w, targets, chunk), (0, 1))(hidden, head)
    wanted = jax.value_and_grad(lambda h, w: 3.0 * dense_nll_sum(h, w, targets), (0, 1))(hidden, head)
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-11)  # sums of 34 terms of size ~10


@pytest.mark.parametrize("chunk", [1, 5, 17, 100])
def test_log_probabilities_of_tokens_are_those_of_all_logits(x64, chunk):
    hidden, head, targets = random_case()
    weights = np.random.default_rng(1).normal(size=targets.shape)  # a gradient of its own for every token

    def dense(hidden, head):
        logps = jnp.take_along_axis(jax.nn.log_softmax(hidden @ head), jnp.maximum(targets, 0)[..., None], axis=-1)
        return jnp.where(targets != -100, logps[..., 0], 0)

    found = token_logps(hidden, head, targets, chunk)
    np.testing.assert_allclose(found, dense(hidden, head), rtol=0, atol=1e-12)
    grads = jax.grad(lambda h, w: jnp.sum(weights * token_logps(h, w, targets, chunk)), (0, 1))(hidden, head)
    wanted = jax.grad(lambda h, w: jnp.sum(weights * dense(h, w)), (0, 1))(hidden, head)
    for grad, expected in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-11)  # sums of 34 terms of size ~10


def test_log_probabilities_of_bfloat16_hidden_states_are_float32():
    hidden, head, targets = random_case()
    hidden = jnp.asarray(hidden, "bfloat16")
    found = token_logps(hidden, jnp.asarray(head, "float32"), targets, 5)
    assert found.dtype == np.float32
    total = dense_nll_sum(np.asarray(hidden, "float32"), head.astype("float32"), targets)
    np.testing.assert_allclose(-found.sum(), total, rtol=1e-6)  # the products and the sums in float32


def test_a_batch_without_targets_has_loss_zero_and_no_gradient(x64):
    hidden, head, targets = random_case()
    value, grads = jax.value_and_grad(cross_entropy_sum, (0, 1))(hidden, head, np.full_like(targets, -100), 5)
    assert value == 0 and not any(np.any(grad) for grad in grads)
    empty = LossSums(jnp.zeros(()), jnp.zeros(1), 0.0, jnp.asarray(0), jnp.zeros(1, int), jnp.asarray(0))
    assert weighted_total(empty, empty, mtp_weight=0.1, z_weight=1.0) == 0


def test_huge_logits_stay_finite():
    hidden, head, targets = (x.astype(np.float32) if x.dtype == float else x for x in random_case())
    value, grads = jax.value_and_grad(cross_entropy_sum, (0, 1))(1e4 * hidden, head, targets, 5)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_hidden_states_have_float32_logits():
    hidden, head, targets = random_case()
    hidden = jnp.asarray(hidden, "bfloat16")
    value = cross_entropy_sum(hidden, jnp.asarray(head, "float32"), targets, 5)
    exact = dense_nll_sum(np.asarray(hidden, "float32"), head.astype("float32"), targets)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, exact, rtol=1e-6)  # the products and the sum in float32


def test_microbatches_add_up_to_the_batch(x64):
    counts = LossSums(0.0, jnp.zeros(2), 0.0, jnp.asarray(30), jnp.array([28, 25]), jnp.asarray(40))
    part = lambda seed: LossSums(  # noqa: E731
        *(jnp.asarray(np.random.default_rng(seed).uniform(size=shape)) for shape in ((), 2, ())), 1, jnp.ones(2), 1
    )
    total = functools.partial(weighted_total, counts=counts, mtp_weight=0.3, z_weight=0.5)
    both = jax.tree.map(lambda a, b: a + b, part(1), part(2))
    np.testing.assert_allclose(total(part(1)) + total(part(2)), total(both), rtol=1e-12)
