"""What the training step promises."""

import dataclasses
import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax import model, spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.state import create_state
from ling_jax.train.step import bias_step, make_train_step
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import assert_trees_equal, random_params

CONFIG = model_config(
    "tiny-2.6", vocab_size=64, hidden_size=32, num_layers=2, layer_group_size=2, num_heads=2, head_dim=16,
    num_norm_groups=2, rotary_dim=8, q_lora_rank=16, kv_lora_rank=8, nope_dim=16, rope_dim=8, v_dim=16, ffn_size=32,
    expert_ffn_size=16, shared_ffn_size=16, z_loss_weight=1e-3,
)  # fmt: skip
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10, model_spec(CONFIG))


@functools.cache
def new_state():
    params = quick_jit(model.init, static_argnums=1)(jax.random.key(0), CONFIG)
    return create_state(params, OPTIMIZER, spec.trainable(model.model_spec(CONFIG)))


def random_batch(seed=0, rows=4, length=24):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (rows, length))
    segment_ids = np.sort(rng.integers(1, 4, (rows, length)), axis=1)
    segment_ids[0, -7:] = 0  # rows of unequal counts, so that a mean of means would show
    labels = np.where(segment_ids > 0, tokens, -100)
    positions = np.broadcast_to(np.arange(length), tokens.shape)
    return {
        k: jnp.asarray(v)
        for k, v in dict(tokens=tokens, labels=labels, segment_ids=segment_ids, positions=positions).items()
    }


@functools.cache  # its compilation is most of a test's time
def train_step(**options):
    return quick_jit(make_train_step(CONFIG, OPTIMIZER, router_bias_rate=1e-3, **options))


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_accumulation_equals_the_large_batch(x64, seed):
    """In float64, where only a wrong sum or denominator shows."""
    whole, whole_metrics = wide_step(1)(wide_state(), random_batch(seed))
    parts, parts_metrics = wide_step(2)(wide_state(), random_batch(seed))
    for name in ("loss", "grad_norm", "main_loss", "mtp_loss_0", "tokens", "load_max_over_mean", "router_z"):
        np.testing.assert_allclose(parts_metrics[name], whole_metrics[name], rtol=1e-12, err_msg=name)
    for name, leaf in spec.named_leaves(whole.opt_state).items():
        other = spec.named_leaves(parts.opt_state)[name]
        np.testing.assert_allclose(other, leaf, rtol=0, atol=1e-12 * max(1.0, float(jnp.abs(leaf).max())), err_msg=name)


@functools.cache
def wide_step(microbatches):
    config = dataclasses.replace(CONFIG, compute_dtype="float64")
    return quick_jit(make_train_step(config, OPTIMIZER, router_bias_rate=1e-3, microbatches=microbatches))


@functools.cache
def wide_state():
    return create_state(random_params(CONFIG), OPTIMIZER, spec.trainable(model.model_spec(CONFIG)))


def test_a_bad_step_changes_nothing_but_the_position():
    state, batch = new_state(), random_batch()
    broken = state.replace(params=state.params | {"final_norm": state.params["final_norm"].at[0].set(jnp.nan)})
    after, metrics = train_step()(broken, batch)
    assert bool(metrics["nonfinite"]) and int(after.skipped_steps) == 1 and int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (broken.params, broken.opt_state))


def test_the_loss_falls_on_one_batch():
    state, batch, step = new_state(), random_batch(), train_step()
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1 and int(metrics["drops"]) == 0


def test_a_skewed_router_moves_each_bias_by_the_rate():
    loads = jnp.asarray([100, 90, 80, 70, 3, 2, 1, 0])
    np.testing.assert_allclose(bias_step(loads, 1e-3), [-1e-3] * 4 + [1e-3] * 4, atol=1e-10)


@given(loads=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9), rate=st.sampled_from([1e-3, 1e-4]))
def test_each_bias_moves_against_its_load_by_the_rate_around_a_mean_of_zero(loads, rate):
    moved = np.asarray(bias_step(jnp.asarray(loads, jnp.int32), rate), np.float64)
    mean = fractions.Fraction(sum(loads), len(loads))
    sign = np.array([(load < mean) - (load > mean) for load in loads])
    np.testing.assert_allclose(moved, rate * (sign - sign.mean()), rtol=0, atol=1e-6 * rate)


def test_the_step_moves_the_stored_biases_and_gradients_do_not():
    state, batch = new_state(), random_batch()
    after, _ = train_step()(state, batch)
    moved = [
        np.abs(np.asarray(leaf)).max()
        for name, leaf in spec.named_leaves(after.params).items()
        if name.endswith("expert_bias")
    ]
    assert all(0 < size <= 2e-3 for size in moved)  # from 0, by at most rate · (1 + |mean of signs|)
    assert not any("expert_bias" in name for name in spec.named_leaves(after.opt_state))


def test_mtp_without_a_weight_keeps_its_bits_and_the_rest_learns_as_without_mtp():
    """No gradient reaches it then, so neither weight decay nor its router's rate may move it."""
    small = dataclasses.replace(CONFIG, num_layers=1, first_dense_layers=1, layer_group_size=1, mtp_loss_weight=0.0)
    first, states = model.init(jax.random.key(0), small), []
    for config in (small, dataclasses.replace(small, mtp_depth=0)):
        params = {name: part for name, part in first.items() if name != "mtp" or config.mtp_depth}
        leaves = model.model_spec(config)
        optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=1), 10, leaves)
        state = create_state(params, optimizer, spec.trainable(leaves))
        step = quick_jit(make_train_step(config, optimizer, router_bias_rate=1e-3))
        for seed in range(2):
            state, metrics = step(state, random_batch(seed))
        assert not any("mtp" in name for name in metrics)
        states.append(state)
    found, wanted = states
    assert_trees_equal(found.params["mtp"], first["mtp"])
    assert not any("mtp" in name for name in spec.named_leaves(found.opt_state))
    assert_trees_equal({name: part for name, part in found.params.items() if name != "mtp"}, wanted.params)
    assert not np.array_equal(wanted.params["head"], first["head"])


def test_bias_rule_equals_the_oracle(golden):
    data = np.load(golden / "objectives" / "moe_bias.npz")
    bias = data["bias0"].astype(np.float64)
    for loads, expected in zip(data["loads"], data["bias"], strict=True):
        bias = bias + np.asarray(bias_step(jnp.asarray(loads.sum(axis=0), jnp.uint32), float(data["u"])))
        np.testing.assert_allclose(bias, expected, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    params, batch = model.init(jax.random.key(0), CONFIG), random_batch()
    grad = jax.jit(jax.grad(lambda p: model.loss(p, batch["tokens"], batch["labels"], config)[0]))(params)
    base = jax.jit(jax.grad(lambda p: model.loss(p, batch["tokens"], batch["labels"], CONFIG)[0]))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad, base)


def test_no_tokens_by_vocabulary_buffer_in_the_compiled_loss():
    config = dataclasses.replace(CONFIG, vocab_size=1000, loss_chunk=16)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    tokens = jax.ShapeDtypeStruct((2, 96), jnp.int32)
    loss = jax.value_and_grad(lambda p, t: model.loss(p, t, t, config)[0])
    text = quick_jit(loss).lower(params, tokens).compile().as_text()
    assert "[2,16,1000]" in text or "[32,1000]" in text  # one chunk's logits are there
    assert not any(shape in text for shape in ("[2,96,1000]", "[192,1000]", "[6,2,16,1000]"))
