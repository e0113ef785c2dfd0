"""What holds for every objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ling_jax.objectives import grpo_loss, gspo_loss, icepop_loss, kpop_loss, lpo_loss, tis_loss
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.objective_numbers import LOGPS

ROWS, LENGTH = 4, 5
IDS = np.array([[0, 0, 2, 2, 5], [0, 1, 2, 3, 4], [3, 3, 3, 3, 3], [1, 0, 1, 0, 1]], np.int32)
GROUPED_LPO = functools.partial(lpo_loss, sentence_ids=IDS, group_size=2)
LOSSES = {
    "grpo": grpo_loss,
    "gspo": gspo_loss,
    "lpo": GROUPED_LPO,
    "icepop": icepop_loss,
    "kpop": kpop_loss,
    "kpop_asymmetric_one": functools.partial(kpop_loss, symmetric=False, kappa="one"),
    "tis": tis_loss,
}
EVERY = pytest.mark.parametrize("name", LOSSES)
RUN = {name: quick_jit(jax.value_and_grad(loss, has_aux=True)) for name, loss in LOSSES.items()}
EDGES = np.array([1e-6, 0.0, -1e-9, -0.7, -100.0, -1e4], np.float32)

LOG_PROBS = arrays.arrays(np.float32, (3, ROWS, LENGTH), elements=LOGPS)
ADVANTAGES = arrays.arrays(np.float32, ROWS, elements=st.floats(-8, 8, width=32, allow_subnormal=False))
MASKS = arrays.arrays(bool, (ROWS, LENGTH))


def batch(seed):
    """(policy, old, behaviour, advantages, mask): policies near each other, rows of all lengths, one of them empty."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (ROWS, LENGTH))
    policy, behaviour = np.minimum(old + rng.normal(0, 0.2, (2, ROWS, LENGTH)), 0)
    mask = rng.random((ROWS, LENGTH)) < [[1.0], [0.7], [0.7], [0.0]]
    numbers = (policy, old, behaviour, rng.normal(size=ROWS))
    return *(x.astype(np.float32) for x in numbers), mask


@EVERY
@given(logps=LOG_PROBS, advantages=ADVANTAGES, mask=MASKS)
def test_finite_input_gives_finite_numbers(name, logps, advantages, mask):
    (loss, metrics), grad = RUN[name](*logps, advantages, mask)
    assert np.isfinite(loss) and np.isfinite(grad).all()
    assert all(np.isfinite(x) for x in metrics.values()), metrics


@EVERY
def test_extreme_policies_of_opposite_sign_do_not_cancel_to_nan(name):
    logps = np.stack(np.meshgrid(EDGES, EDGES, indexing="ij"), axis=-1).reshape(-1, 2)
    for old, behaviour in ((-1e4, 0.0), (0.0, -1e4)):
        for policy in logps.T:
            row = np.resize(policy, (ROWS, LENGTH))
            advantages = np.array([5, -5, 5, -5], np.float32)
            both = (np.full_like(row, old), np.full_like(row, behaviour))
            (loss, _), grad = RUN[name](row, *both, advantages, np.ones((ROWS, LENGTH), bool))
            assert np.isfinite(loss) and np.isfinite(grad).all()


@EVERY
@given(seed=st.integers(0, 2**32 - 1))
def test_masked_positions_reach_neither_loss_nor_gradient(name, seed):
    *arguments, mask = batch(seed)
    (loss, metrics), grad = RUN[name](*arguments, mask)
    rng = np.random.default_rng(seed)
    spoilt = [x.copy() for x in arguments]
    for x in spoilt[:3]:
        x[~mask] = rng.choice([np.nan, np.inf, -np.inf, 7.0], (~mask).sum())
    spoilt[3][~mask.any(axis=1)] = np.nan
    (spoilt_loss, spoilt_metrics), spoilt_grad = RUN[name](*spoilt, mask)
    np.testing.assert_array_equal(spoilt_loss, loss)
    np.testing.assert_array_equal(spoilt_grad, grad)
    assert (grad[~mask] == 0).all()
    jax.tree.map(np.testing.assert_array_equal, spoilt_metrics, metrics)


@EVERY
def test_equal_policies_give_the_policy_gradient_and_mask_nothing(name):
    logps = np.resize(EDGES, (ROWS, LENGTH))
    _, _, _, advantages, mask = batch(0)
    (loss, metrics), grad = RUN[name](logps, logps, logps, advantages, mask)
    lengths = mask.sum(axis=1, keepdims=True)
    share = mask / np.maximum(lengths, 1) / ROWS
    if name == "lpo":
        share = mask / lengths.reshape(2, 2).sum(axis=1).repeat(2)[:, None] / 2
    np.testing.assert_allclose(grad, -share * advantages[:, None], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss, -(share * advantages[:, None]).sum(), rtol=1e-5, atol=1e-7)
    assert metrics["clip_fraction"] == metrics["mismatch/max"] == metrics.get("masked_fraction", 0) == 0
    assert metrics["ratio/0.01"] == metrics["ratio/0.99"] == 1


@EVERY
def test_a_batch_without_loss_tokens_is_zero(name):
    policy, old, behaviour, advantages, mask = batch(0)
    (loss, metrics), grad = RUN[name](policy, old, behaviour, advantages, np.zeros_like(mask))
    assert loss == 0 and not np.any(grad) and not any(metrics.values())


@EVERY
def test_a_batch_without_rows_or_tokens_is_zero(name):
    loss = LOSSES[name].func if isinstance(LOSSES[name], functools.partial) else LOSSES[name]
    for shape in ((0, LENGTH), (ROWS, 0)):
        x = np.zeros(shape, np.float32)
        more = {"sentence_ids": x.astype(int), "group_size": 2} if name == "lpo" else {}
        run = quick_jit(functools.partial(loss, **more))
        assert run(x, x, x, np.zeros(shape[0], np.float32), x)[0] == 0


@EVERY
def test_only_the_policy_has_a_gradient(name):
    *arguments, mask = batch(1)
    grads = quick_jit(jax.grad(lambda *xs: LOSSES[name](*xs, mask)[0], argnums=(0, 1, 2, 3)))(*arguments)
    assert np.any(grads[0]) and not any(np.any(grad) for grad in grads[1:])


@EVERY
def test_bfloat16_is_computed_in_float32(name):
    *arguments, mask = batch(2)
    half = [jnp.asarray(x, jnp.bfloat16) for x in arguments]
    run = quick_jit(LOSSES[name])
    loss, metrics = run(*half, mask)
    assert loss.dtype == jnp.float32 and all(x.dtype == jnp.float32 for x in metrics.values())
    wide = run(*(x.astype(jnp.float32) for x in half), mask)[0]
    np.testing.assert_allclose(loss, wide, rtol=1e-6)


@EVERY
def test_a_mask_of_numbers_is_a_mask(name):
    *arguments, mask = batch(3)
    numbers = RUN[name](*arguments, mask.astype(np.float32))[0][0]
    np.testing.assert_array_equal(numbers, RUN[name](*arguments, mask)[0][0])


def same(first, second):
    first, second = (quick_jit(jax.value_and_grad(loss, has_aux=True)) for loss in (first, second))
    for arguments in (batch(seed) for seed in range(4)):
        (a, _), grad_a = first(*arguments)
        (b, _), grad_b = second(*arguments)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(grad_a, grad_b, rtol=1e-5, atol=1e-7)


EACH_TOKEN = np.tile(np.arange(LENGTH), (ROWS, 1))


def test_sentences_of_one_token_are_grpo_and_sentences_of_a_row_are_gspo():
    tokens = functools.partial(lpo_loss, sentence_ids=EACH_TOKEN, group_size=ROWS, clip=0.2)
    same(tokens, functools.partial(grpo_loss, aggregate="token_mean"))
    rows = functools.partial(lpo_loss, sentence_ids=np.zeros_like(IDS), group_size=1, clip=0.1)
    same(rows, functools.partial(gspo_loss, clip_low=0.1, clip_high=0.1))


def test_loose_bounds_do_not_change_the_weight():
    weighted = functools.partial(tis_loss, cap=np.inf)
    same(functools.partial(kpop_loss, phi=np.inf), weighted)
    same(functools.partial(icepop_loss, alpha=0.0, beta=np.inf), weighted)
    same(functools.partial(kpop_loss, phi=np.inf, kappa="one"), grpo_loss)


@EVERY
@pytest.mark.parametrize(
    ("argument", "shape", "message"),
    [
        (0, (ROWS,), r": policy_logps has shape \(4,\); expected \[B, T\]"),
        (1, None, r": old_logps is missing; it needs an array of shape \(4, 5\)"),
        (1, (ROWS, 2), r": old_logps has shape \(4, 2\); policy_logps asks for \(4, 5\)"),
        (2, (ROWS, 2), r": behaviour_logps has shape \(4, 2\)"),
        (3, (3,), r": advantages has shape \(3,\); policy_logps asks for \(4,\)"),
        (4, (ROWS,), r": mask has shape \(4,\)"),
    ],
)
def test_a_wrong_argument_is_named(name, argument, shape, message):
    arguments = list(batch(0))
    arguments[argument] = None if shape is None else np.zeros(shape)
    with pytest.raises(ValueError, match=name.split("_")[0] + message):
        LOSSES[name](*arguments)
