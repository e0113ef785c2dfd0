"""Rotary tables, slopes and routing equal the official numbers at the sizes of the released models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax.checkpoint import from_hf, to_hf
from ling_jax.config import model_config
from ling_jax.model import moe
from ling_jax.model.lightning import base_slopes, log_decays
from ling_jax.model.rope import inverse_frequencies, rope_table
from tests.helpers.tiny import tiny_config

ULPS = 1e-12  # relative; one power and one division in float64


@pytest.mark.parametrize("name", ["ling26", "ling26_yarn2", "ling20", "ling20_yarn4"])
def test_rotary_tables_are_the_official(golden, name):
    tables = np.load(golden / "ops" / "rope_tables.npz")
    hf = json.loads((golden / "ops" / "rope_tables.json").read_text())[name]
    config = from_hf(to_hf(model_config("ling-2.6-1t")) | {"rotary_dim": None} | hf)
    frequencies, factor = inverse_frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling)
    np.testing.assert_allclose(frequencies, tables[f"{name}.inv_freq"], rtol=ULPS)
    np.testing.assert_allclose(factor, tables[f"{name}.attention_factor"], rtol=ULPS)


def test_rotary_angles_hold_at_the_longest_positions():
    config = model_config("ling-2.6-1t")
    positions = np.array([[0, 1, 131071, config.max_length - 1]])
    cos, sin = rope_table(jnp.asarray(positions), config.rotary_dim, config)
    frequencies, _ = inverse_frequencies(config.rotary_dim, config.rope_theta, None)
    angles = positions[..., None] * frequencies
    assert cos.dtype == np.float32  # in bfloat16 compute too
    # A float32 angle of 2^18 radians is within half its spacing, 2^-6; its cosine within as much.
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=2**-6)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=2**-6)


def test_base_slopes_are_the_official_for_every_head_count(golden):
    slopes = np.load(golden / "ops" / "slopes.npz")
    counts = [int(name.removeprefix("base_H")) for name in slopes if name.startswith("base_H")]
    assert {1, 3, 6, 12, 64, 96} <= set(counts)
    for heads in counts:
        np.testing.assert_allclose(base_slopes(heads), slopes[f"base_H{heads}"], rtol=ULPS, err_msg=f"{heads} heads")


@pytest.mark.parametrize(("convention", "offset"), [("hf", -1), ("serving", 0)])
def test_log_decays_are_the_official_in_both_conventions(golden, convention, offset):
    slopes = np.load(golden / "ops" / "slopes.npz")
    names = [name for name in slopes if name.startswith(f"logdecay_{convention}_")]
    assert len(names) == 5
    for name in names:
        heads, layers = (int(part[1:]) for part in name.split("_")[2:])
        config = model_config(
            "tiny-2.6", num_heads=heads, num_layers=layers, num_norm_groups=1, slope_layer_offset=offset
        )
        np.testing.assert_allclose(log_decays(config), slopes[name], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("offset", [0, -1])
def test_decays_of_a_single_layer_are_finite_and_negative(offset):
    decays = log_decays(tiny_config(num_layers=1, slope_layer_offset=offset))
    assert np.isfinite(decays).all() and (decays < 0).all()


@pytest.fixture
def official_router(golden):
    return dict(np.load(golden / "ops" / "router_real.npz"))


def config_of_router(data, **fields):
    sizes = dict(
        num_experts=len(data["weight"]),
        num_expert_groups=int(data["n_group"]),
        top_groups=int(data["topk_group"]),
        top_k=int(data["top_k"]),
        routed_scale=float(data["routed_scaling_factor"]),
    )
    return tiny_config(**(sizes | fields))


def in_order_of_experts(index, weight):
    order = jnp.argsort(index, axis=-1)
    return jnp.take_along_axis(index, order, axis=-1)[0], jnp.take_along_axis(weight, order, axis=-1)[0]


def test_routing_over_256_experts_is_the_official(official_router, x64):
    data = official_router
    index, weight = moe.route(jnp.asarray(data["logits"])[None], data["expert_bias"], config_of_router(data))
    index, weight = in_order_of_experts(index, weight)
    np.testing.assert_array_equal(index, data["topk_idx_sorted"])
    np.testing.assert_allclose(weight, data["topk_weight_sorted"], rtol=0, atol=1e-9)


def test_gradients_of_the_router_are_the_official(official_router, x64):
    data = official_router
    config = config_of_router(data)

    def weighted(x, weight):
        logits = moe.router_logits(weight.T, x)
        _, chosen = in_order_of_experts(*moe.route(logits, data["expert_bias"], config))
        return jnp.sum(chosen * data["d_weight"]), logits

    x, weight = jnp.asarray(data["x"], "float64")[None], jnp.asarray(data["weight"], "float64")
    (dx, dweight), logits = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(x, weight)
    # x, the router and the gradient are stored as float32, the numbers were made before that rounding.
    for label, value, wanted in (
        ("logits", logits[0], data["logits"]),
        ("gradient of x", dx[0], data["dx"]),
        ("gradient of the router", dweight, data["dW"]),
    ):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max(), err_msg=label)


def test_float32_router_chooses_the_same_experts(official_router):
    data = official_router
    logits = moe.router_logits(jnp.asarray(data["weight"].T), jnp.asarray(data["x"])[None])
    index, _ = moe.route(logits, data["expert_bias"], config_of_router(data))
    np.testing.assert_array_equal(np.sort(index[0], axis=-1), data["topk_idx_sorted"])


def test_only_the_best_groups_are_kept(official_router, x64):
    data = official_router
    config = config_of_router(data)
    biased = jax.nn.sigmoid(jnp.asarray(data["logits"])) + data["expert_bias"]
    kept = np.isfinite(moe._keep_best_groups(biased[None], config)[0]).reshape(-1, 8, 32)
    assert (kept.all(axis=-1) == kept.any(axis=-1)).all() and (kept.all(axis=-1).sum(axis=-1) == 4).all()
    best_two = np.sort(np.asarray(biased).reshape(-1, 8, 32), axis=-1)[..., -2:].sum(axis=-1)
    lowest_kept = np.where(kept[..., 0], best_two, np.inf).min(axis=-1)
    assert (lowest_kept > np.where(kept[..., 0], -np.inf, best_two).max(axis=-1)).all()


def test_rejected_groups_stay_out_when_all_scores_are_negative(x64):
    config = tiny_config(num_expert_groups=4, top_groups=1, num_experts=8, top_k=2)
    bias = np.array([-3.0, -3, -2, -2, -4, -4, -5, -5])
    index, _ = moe.route(jnp.zeros((1, 1, 8)), bias, config)
    assert set(np.asarray(index).reshape(-1)) == {2, 3}


def test_one_expert_keeps_its_own_score(x64):
    config = tiny_config(top_k=1, routed_scale=2.5)
    logits = np.random.default_rng(0).normal(size=(1, 6, 8))
    index, weight = moe.route(jnp.asarray(logits), np.zeros(8), config)
    score = 1 / (1 + np.exp(-np.take_along_axis(logits, np.asarray(index), -1)))
    np.testing.assert_allclose(weight, 2.5 * score, rtol=1e-12)


def test_expert_bias_chooses_but_does_not_weigh(x64):
    config = tiny_config()
    logits, bias = np.random.default_rng(0).normal(size=(1, 6, 8)), np.zeros(8)
    bias[5] = 9
    index, weight = moe.route(jnp.asarray(logits), bias, config)
    assert (np.asarray(index) == 5).any(axis=-1).all()
    score = 1 / (1 + np.exp(-np.take_along_axis(logits, np.asarray(index), -1)))
    np.testing.assert_allclose(weight, 2.5 * score / score.sum(axis=-1, keepdims=True), rtol=1e-12)


def test_config_without_yarn_leaves_frequencies_plain():
    config = dataclasses.replace(tiny_config(), rope_scaling=None)
    frequencies, factor = inverse_frequencies(8, config.rope_theta, None)
    np.testing.assert_allclose(frequencies, [1, 0.1, 0.01, 0.001], rtol=1e-12)
    assert factor == 1
