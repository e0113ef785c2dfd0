"""What one optimisation step promises, whatever the objective."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import model, spec
from ling_jax.objectives import kpop_loss
from ling_jax.rl.batch import loss_scale
from ling_jax.rl.buffer import Group
from ling_jax.rl.step import Batch, make_objective, make_rl_step, trainable
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.state import create_state
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(num_layers=2, compute_dtype="float32", remat="none", mtp_depth=1)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 10)
SIZES = dict(rows=6, length=12)


@functools.cache
def state():
    params = jax.tree.map(jnp.asarray, random_params(CONFIG, dtype="float32", std=0.2))
    return create_state(params, OPTIMIZER, trainable(CONFIG))


@functools.cache
def step(**options):
    return quick_jit(make_rl_step(CONFIG, OPTIMIZER, make_objective("kpop", 2, {}), **options))


@functools.cache
def logps_of():
    """(log-prob, entropy) of every token from the second on, by a plain forward pass."""

    def logps(params, tokens):
        every = jax.nn.log_softmax(model.forward(params, tokens, CONFIG).logits[:, :-1], axis=-1)
        return jnp.take_along_axis(every, tokens[:, 1:, None], axis=-1)[..., 0], -jnp.sum(jnp.exp(every) * every, -1)

    return quick_jit(logps)


def random_batch(seed=0) -> Batch:
    """Answers of 3 to 7 tokens behind prompts of 3; row 1 has tool output in the middle."""
    rng = np.random.default_rng(seed)
    rows, length = SIZES.values()
    tokens = rng.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    ends = rng.integers(6, 11, (rows, 1))
    place = np.arange(length)[None]
    mask = (place >= 3) & (place < ends)
    mask[1, 4:6] = False
    logps = np.zeros((rows, length), np.float32)
    logps[:, 1:] = logps_of()(state().params, tokens)[0]
    return Batch(
        tokens=tokens,
        live=(place < ends).astype(np.int32),
        mask=mask,
        behaviour_logps=np.where(mask, logps + rng.normal(0, 1.5, logps.shape), 0).astype(np.float32),
        ages=np.where(mask, rng.integers(0, 3, logps.shape), 0).astype(np.int32),
        sentence_ids=(place // 2 + 0 * tokens).astype(np.int32),
        advantages=rng.normal(0, 1, rows).astype(np.float32),
        scale=np.float32(1),
    )


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
    """With rows of unequal lengths, an empty one and a scale, so that a wrong denominator shows."""
    batch = random_batch()
    batch.mask[3], batch.advantages[3] = False, 0
    batch = batch.replace(scale=np.float32(6 / 5))
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


@pytest.mark.parametrize(("name", "options"), [("kpop", {}), ("lpo", {}), ("grpo", {"aggregate": "token_mean"})])
def test_empty_rows_are_as_good_as_none(name, options):
    """Two groups of two and an empty one are worth what the two are, whatever the objective's mean is over."""
    batch, loss = random_batch(), make_objective(name, 2, options)
    batch.mask[4:], batch.advantages[4:] = False, 0
    group = Group(0, (SimpleNamespace(failed=False),) * 2)
    logps, scale = batch.behaviour_logps + 0.1, loss_scale(name, options, [group, group], 6)

    def of(rows):
        ids = dict(sentence_ids=batch.sentence_ids[:rows], entropies=None)
        arrays = (logps, logps, batch.behaviour_logps, batch.advantages, batch.mask)
        return loss(*(x[:rows] for x in arrays), **ids)[0]

    np.testing.assert_allclose(scale * of(6), of(4), rtol=1e-6)


def test_an_objective_without_what_it_needs_is_refused():
    objective, zeros = make_objective("kpop", 2, {}), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="kpop: behaviour_logps is missing"):
        objective(zeros, zeros, None, jnp.zeros(2), zeros > 0, sentence_ids=None, entropies=None)
    with pytest.raises(ValueError, match="no option 'phy'"):
        make_objective("kpop", 2, {"phy": 0.1})
    with pytest.raises(ValueError, match="objective is 'ppo'"):
        make_objective("ppo", 2, {})
