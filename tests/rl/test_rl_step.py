"""What one optimisation step promises, whatever the objective."""

import functools

import jax
import numpy as np
import pytest

from ling_jax import spec
from ling_jax.objectives import calibrate_phi, kpop_loss, reference_kl
from ling_jax.rl.config import ObjectiveConfig
from ling_jax.rl.loss import make_loss
from ling_jax.rl.step import make_rl_step
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_batch import CONFIG, OPTIMIZER, logps_of, random_batch, state


@functools.cache
def step(*, microbatches=1, **objective):
    loss = make_loss(ObjectiveConfig(**({"name": "kpop"} | objective)), group_size=2)
    return quick_jit(make_rl_step(CONFIG, OPTIMIZER, loss, microbatches=microbatches))


def assert_same(found, wanted, *, tolerance=0.0):
    for (name, leaf), other in zip(spec.named_leaves(found).items(), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=tolerance, err_msg=name)


def test_the_loss_is_the_objective_of_a_plain_forward_pass():
    batch = random_batch()
    logps, entropies = logps_of()(state().params, batch.tokens)
    wanted, named = kpop_loss(logps, logps, batch.behaviour_logps[:, 1:], batch.advantages, batch.mask[:, 1:])
    _, metrics = step()(state(), batch)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)  # float32, in another order
    np.testing.assert_allclose(metrics["mismatch/mean"], named["mismatch/mean"], rtol=1e-4)
    np.testing.assert_allclose(metrics["masked_fraction"], named["masked_fraction"])
    assert 0 < metrics["masked_fraction"] < 1
    np.testing.assert_allclose(metrics["entropy"], np.asarray(entropies)[batch.mask[:, 1:]].mean(), rtol=1e-4)


def test_microbatches_are_the_batch():
    """With rows of unequal lengths and one without a reward, so that a wrong denominator shows."""
    batch = random_batch()
    batch.mask[3], batch.advantages[3], batch.valid[3] = False, 0, False
    (whole, metrics), (parts, others) = step()(state(), batch), step(microbatches=3)(state(), batch)
    assert metrics.keys() == others.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert_same(whole.opt_state, parts.opt_state, tolerance=1e-6)


def test_what_is_fresh_is_measured_alone():
    batch = random_batch()
    logps = np.asarray(logps_of()(state().params, batch.tokens)[0])
    fresh = batch.mask[:, 1:] & (batch.ages[:, 1:] == 0)
    _, metrics = step()(state(), batch)
    differences = np.abs(logps - batch.behaviour_logps[:, 1:])[fresh]
    np.testing.assert_allclose(metrics["mismatch_same_version/max"], differences.max(), rtol=1e-4)
    assert metrics["mismatch_same_version/far"] == (differences > 1e-4).sum() > 0
    assert metrics["mismatch_same_version/tokens"] == fresh.sum() and metrics["staleness/max"] == 2
    assert metrics["loss_tokens"] == batch.mask.sum()


def test_only_what_gradients_train_moves():
    """The router's bias and the MTP heads stay; what is frozen has no state in the optimizer."""
    after, _ = step()(state(), random_batch())
    moved = {
        name
        for (name, leaf), old in zip(
            spec.named_leaves(after.params).items(), jax.tree.leaves(state().params), strict=True
        )
        if not np.array_equal(leaf, old)
    }
    still = spec.named_leaves(after.params).keys() - moved
    assert still == {name for name in still if name.startswith("mtp/") or name.endswith("expert_bias")}
    assert moved and any(name.endswith("expert_bias") for name in still)
    kept = spec.named_leaves(after.opt_state)
    assert not any("mtp" in name or "expert_bias" in name for name in kept)


def test_padding_and_masked_positions_do_not_matter():
    batch, poisoned = random_batch(), random_batch()
    dead = batch.live == 0
    poisoned.tokens[dead] = 7
    for array in (poisoned.behaviour_logps, poisoned.ages, poisoned.sentence_ids):
        array[~batch.mask] = -77
    poisoned.behaviour_logps[dead] = np.nan
    (after, metrics), (other, others) = step()(state(), batch), step()(state(), poisoned)
    assert metrics["loss"] == others["loss"] and metrics["entropy"] == others["entropy"]
    assert_same(after.params, other.params, tolerance=1e-6)  # experts share their tiles with padding


@pytest.mark.parametrize(
    ("poison", "value"), [("advantages", np.nan), ("advantages", np.inf), ("mask", False)], ids=str
)
def test_a_bad_step_changes_nothing_and_is_counted(poison, value):
    """Numbers that are not finite, and a batch without loss tokens: with it, AdamW would still decay the weights."""
    batch = random_batch()
    getattr(batch, poison)[...] = value
    after, metrics = step()(state(), batch)
    assert metrics["nonfinite"] and after.skipped_steps == 1 and after.step == 1
    assert_same((after.params, after.opt_state), (state().params, state().opt_state))


def test_old_and_reference_log_probs_and_phi_are_those_of_the_whole_batch():
    """In microbatches, with an answer that has no reward: ratio and clip are to the weights before the first step on
    the batch, phi drops a share of all tokens, and the penalty is a mean over the rows with a reward."""
    batch, rng = random_batch(), np.random.default_rng(1)
    batch.mask[3], batch.advantages[3], batch.valid[3] = False, 0, False
    logps = logps_of()(state().params, batch.tokens)[0]
    old, reference = np.pad(logps, ((0, 0), (1, 0))) + rng.normal(0, 0.3, (2, *batch.mask.shape)).astype(np.float32)
    batch = batch.replace(old_logps=old, reference_logps=reference)
    rows, behaviour, mask = batch.valid, batch.behaviour_logps[:, 1:], batch.mask[:, 1:]
    arrays = (logps, old[:, 1:], behaviour, batch.advantages, mask)
    phi = calibrate_phi(old[:, 1:], behaviour, mask, 0.3)
    loss, named = kpop_loss(*(x[rows] for x in arrays), phi=phi)
    penalty, of_reference = reference_kl(logps[rows], reference[rows, 1:], mask[rows], coefficient=0.3)
    _, metrics = step(calibrate_phi=0.3, reference_kl=0.3, microbatches=3)(state(), batch)
    np.testing.assert_allclose(metrics["loss"], loss + penalty, rtol=1e-4)
    for name, value in (named | of_reference | {"phi": phi}).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0 < metrics["clip_fraction"] < 1 and penalty > 0.01
    assert abs(metrics["masked_fraction"] - 0.3) * mask.sum() <= 1
    fresh = mask & (batch.ages[:, 1:] == 0)  # what is fresh is measured with the old log-probs
    mismatch = np.abs(old[:, 1:] - behaviour)[fresh].max()
    np.testing.assert_allclose(metrics["mismatch_same_version/max"], mismatch, rtol=1e-6)
