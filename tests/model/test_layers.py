"""The layer list becomes segments and comes back in order; biases and stacked groups are where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax import model
from ling_jax.config import model_config
from ling_jax.model import gqa, mla
from ling_jax.model.layers import (
    LayerKind,
    LayerRun,
    Segment,
    layer,
    layer_kind,
    layer_numbers,
    layer_plan,
    run_segments,
)
from ling_jax.model.lightning import log_decays
from ling_jax.model.norm import group_rms_norm
from ling_jax.model.transformer import make_token_info
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config


def kinds_of(config):
    return [layer_kind(config, number) for number in range(config.num_layers)]


def test_eighty_layers_are_two_segments():
    lightning, dense = LayerKind("lightning", "moe"), LayerKind("lightning", "dense")
    assert layer_plan(model_config("ling-2.6-1t")) == (
        Segment((LayerRun(dense, 4), LayerRun(lightning, 3), LayerRun(LayerKind("mla", "moe"), 1)), 1),
        Segment((LayerRun(lightning, 7), LayerRun(LayerKind("mla", "moe"), 1)), 9),
    )


def test_layers_after_the_last_whole_group_have_full_attention():
    config = tiny_config(num_layers=7, layer_group_size=3)
    mixers = [kind.mixer for kind in kinds_of(config)]
    assert mixers == ["lightning", "lightning", "mla", "lightning", "lightning", "mla", "mla"]


@pytest.mark.parametrize("layers", [1, 3])
def test_fewer_layers_than_a_group_all_have_full_attention(layers):
    assert {kind.mixer for kind in kinds_of(tiny_config(num_layers=layers, layer_group_size=8))} == {"mla"}


def test_groups_of_one_all_have_full_attention():
    assert {kind.mixer for kind in kinds_of(tiny_config("2.0"))} == {"gqa"}


@pytest.mark.parametrize("dense", [0, 1, 3, 9])
def test_the_first_layers_are_dense(dense):
    ffns = [kind.ffn for kind in kinds_of(tiny_config(num_layers=4, first_dense_layers=dense))]
    assert ffns == ["dense"] * min(dense, 4) + ["moe"] * max(4 - dense, 0)


@given(layers=st.integers(1, 90), group=st.integers(1, 12), dense=st.integers(0, 9))
@settings(max_examples=200)
def test_every_layer_has_one_position_in_the_plan(layers, group, dense):
    config = tiny_config(num_layers=layers, layer_group_size=group, first_dense_layers=dense)
    numbers, plan = layer_numbers(config), layer_plan(config)
    assert sorted(n for array in numbers.values() for n in array.reshape(-1)) == list(range(layers))
    order = []
    for index, segment in enumerate(plan):
        runs = segment.named_runs()
        for repeat in range(segment.repeats):
            for name, run in runs:
                row = numbers[str(index), name][repeat]
                assert len(row) == run.count and all(layer_kind(config, number) == run.kind for number in row)
                order += list(row)
    assert order == list(range(layers))


def test_stacked_groups_run_in_the_order_of_layers(x64):
    """Three equal groups in one scan equal a loop over layers with each one's own weights and decays."""
    config = tiny_config(num_layers=6, first_dense_layers=0, compute_dtype="float64", remat="none")
    assert [segment.repeats for segment in layer_plan(config)] == [3]
    params, numbers, decays = random_params(config)["segments"], layer_numbers(config), log_decays(config)
    x_BTD = np.random.default_rng(1).normal(size=(1, 10, config.hidden_size))
    info = make_token_info(np.zeros((1, 10), int), config)
    found, routers, _ = quick_jit(lambda p, x: run_segments(p, x, info, config))(params, x_BTD)
    wanted, step = x_BTD, quick_jit(layer, static_argnums=(5, 6))
    places = {array[r, c]: (*key, r, c) for key, array in numbers.items() for r, c in np.ndindex(array.shape)}
    for number in range(config.num_layers):
        segment, run, r, c = places[number]
        weights = jax.tree.map(lambda leaf, r=r, c=c: leaf[r, c], params[segment][run])
        wanted, router, _ = step(
            weights, wanted, {"log_decay": decays[number]}, None, info, config, layer_kind(config, number)
        )
        np.testing.assert_array_equal(routers[segment][run].expert_index[r, c], router.expert_index)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)  # the same sums


def test_routers_are_in_the_order_of_layers_with_mtp_last(x64):
    config = tiny_config(num_layers=5, first_dense_layers=1, mtp_depth=2, top_k=1, compute_dtype="float64")
    params = random_params(config)
    for (segment, run), array in layer_numbers(config).items():
        ffn = params["segments"][segment][run]["ffn"]
        if "expert_bias" in ffn:
            for place in np.ndindex(array.shape):
                ffn["expert_bias"][place] = 100.0 * (np.arange(8) == array[place])
    params["mtp"]["layer"]["ffn"]["expert_bias"][:] = 100.0 * np.stack([np.arange(8) == 6, np.arange(8) == 7])
    out = quick_jit(model.forward, static_argnums=2)(params, np.zeros((1, 3), np.int32), config)
    assert [int(loads.argmax()) for loads in out.router.loads] == [1, 2, 3, 4, 6, 7]


def test_a_model_without_experts_has_no_router():
    config = tiny_config(num_layers=1, first_dense_layers=1)
    out = jax.eval_shape(lambda p: model.forward(p, np.zeros((1, 3), int), config), random_params(config))
    assert out.router is None and out.mtp_logits == ()


def test_biases_are_added_to_query_key_and_value(x64):
    config = tiny_config("linear-2.0", qkv_bias=True, qk_norm=False, rotary_dim=0, compute_dtype="float64")
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=leaf.shape) for name, leaf in gqa.gqa_spec(config).items()}
    x_BTD = rng.normal(size=(1, 3, config.hidden_size))
    table = make_token_info(np.zeros((1, 3), int), config).rope
    for name, found in zip("qkv", gqa.project_qkv(params, x_BTD, table, config), strict=True):
        wanted = np.einsum("BTD,DHK->BTHK", x_BTD, params[name]) + params[f"{name}_bias"]
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)


def test_biases_of_mla_are_added_before_the_latent_norms(x64):
    config = tiny_config(qkv_bias=True, compute_dtype="float64")
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=leaf.shape) for name, leaf in mla.mla_spec(config).items()}
    without = {name: leaf for name, leaf in params.items() if name not in ("q_a_bias", "kv_a_bias")}
    # A last input of 1 whose row of the matrix is the bias.
    folded = without | {name: np.concatenate([params[name], params[f"{name}_bias"][None]]) for name in ("q_a", "kv_a")}
    x_BTD = rng.normal(size=(1, 3, config.hidden_size))
    x_one_BTD = np.concatenate([x_BTD, np.ones((1, 3, 1))], axis=-1)
    table = make_token_info(np.zeros((1, 3), int), config).latent_rope
    for function in (mla.queries, lambda *args: mla.latents(*args)[0], lambda *args: mla.latents(*args)[1]):
        found, wanted = function(params, x_BTD, table, config), function(folded, x_one_BTD, table, config)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_output_biases_are_added(x64):
    rng = np.random.default_rng(0)
    params = {"out": rng.normal(size=(2, 3, 5)), "out_bias": rng.normal(size=5)}
    o_BTHV = rng.normal(size=(1, 4, 2, 3))
    wanted = np.einsum("BTHV,HVD->BTD", o_BTHV, params["out"]) + params["out_bias"]
    np.testing.assert_allclose(gqa.project_out(params, o_BTHV), wanted, rtol=1e-12)


def test_a_group_of_heads_is_normalised_together(x64):
    rng = np.random.default_rng(0)
    x_BTHV, weight_HV = rng.normal(size=(1, 2, 4, 3)), rng.normal(size=(4, 3))
    found = group_rms_norm(jnp.asarray(x_BTHV), weight_HV, 2, 1e-6)
    for first in (0, 2):
        heads = x_BTHV[:, :, first : first + 2]
        scale = 1 / np.sqrt(np.mean(heads**2, axis=(2, 3), keepdims=True) + 1e-6)
        np.testing.assert_allclose(found[:, :, first : first + 2], heads * scale * weight_HV[first : first + 2])
