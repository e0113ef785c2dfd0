"""Three MTP depths: a module each, one for all, and one whose later depths leave the trunk alone (report App. B)."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.config import model_config
from ling_jax.migrate.run import with_mtp_modules
from ling_jax.model.transformer import loss_sums
from ling_jax.spec import named_leaves, trainable
from ling_jax.train import create_state, make_train_step
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

ONE = tiny_config(num_layers=2, first_dense_layers=2, mtp_depth=1, compute_dtype="float32")
SEPARATE = dataclasses.replace(ONE, mtp_depth=3)
SHARED = dataclasses.replace(ONE, mtp_shared_depths=3)
DETACHED = dataclasses.replace(SHARED, mtp_detached=True)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)


@functools.cache
def params():
    return random_params(ONE, dtype="float32")


def test_new_modules_are_drawn_as_those_of_a_new_model():
    trunk = {name: part for name, part in params().items() if name != "mtp"}
    drawn, wanted = with_mtp_modules(trunk, SEPARATE, seed=3)["mtp"], model.init(jax.random.key(3), SEPARATE)["mtp"]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), drawn, wanted)  # rounding of two programs
    assert with_mtp_modules(trunk, dataclasses.replace(ONE, mtp_depth=0)) is trunk


@functools.cache
def gradients(config):
    """Of the sum of each depth's loss: [{name: gradient}]."""
    loss_of = lambda params, depth: loss_sums(params, TOKENS, TOKENS, config)[0].mtp[depth]  # noqa: E731
    gradient = quick_jit(jax.grad(loss_of))
    return [named_leaves(gradient(params(), depth)) for depth in range(config.mtp_predictions)]


@functools.cache
def logits(config):
    weights = with_mtp_modules(params(), config)
    return quick_jit(model.forward, static_argnums=2)(weights, TOKENS, config).mtp_logits


def test_one_module_for_all_is_three_equal_ones():
    assert len(logits(SHARED)) == 3
    for found, wanted in zip(logits(SHARED), logits(SEPARATE), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)  # float32


def test_detaching_changes_no_value():
    for found, wanted in zip(logits(DETACHED), logits(SHARED), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_only_the_first_depth_reaches_the_trunk():
    first, *others = gradients(DETACHED)
    assert all(np.any(leaf) or name.endswith("expert_bias") for name, leaf in first.items())
    for other in others:
        assert all(not np.any(leaf) for name, leaf in other.items() if not name.startswith("mtp/"))
        assert np.any(other["mtp/layer/mixer/kv_b"]) and np.any(other["mtp/proj"])


@pytest.mark.slow
def test_gradients_of_the_module_and_of_the_first_depth_are_those_without_detaching():
    for depth in range(3):
        for name, leaf in gradients(DETACHED)[depth].items():
            if name.startswith("mtp/") or not depth:
                wanted = np.asarray(gradients(SHARED)[depth][name])
                np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.slow
def test_a_step_moves_the_one_bias_by_the_loads_of_all_depths():
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10, model.model_spec(SHARED))
    state = create_state(params(), optimizer, trainable(model.model_spec(SHARED)))
    batch = dict(tokens=TOKENS, labels=TOKENS, segment_ids=np.ones_like(TOKENS))
    batch["positions"] = np.tile(np.arange(12, dtype=np.int32), (2, 1))
    after, metrics = quick_jit(make_train_step(SHARED, optimizer, router_bias_rate=0.1))(state, batch)
    moved = after.params["mtp"]["layer"]["ffn"]["expert_bias"] - params()["mtp"]["layer"]["ffn"]["expert_bias"]
    assert moved.shape == (1, 8) and np.abs(moved).max() > 0.01
    assert {"mtp_loss_0", "mtp_loss_1", "mtp_loss_2"} <= metrics.keys()


def test_several_modules_are_not_shared():
    with pytest.raises(ValueError, match="mtp_shared_depths is 3 with mtp_depth 2; one module is shared"):
        model_config("tiny-2.6", mtp_depth=2, mtp_shared_depths=3)
