import jax
import numpy as np
import pytest

from ling_jax.migrate.gqa_to_lightning import gqa_to_lightning, hybrid_config, source_heads
from ling_jax.model.lightning import lightning_spec
from tests.helpers.objective_numbers import load
from tests.helpers.tiny import random_params, tiny_config


def layer_of(config, seed=0, dtype="float64"):
    """The mixer of a random model's first layer."""
    (run,) = random_params(config, seed, dtype)["segments"]["0"].values()
    return jax.tree.map(lambda leaf: leaf[0, 0], run["mixer"])


def blocks(numbers):
    """The oracle's weights as a GQA mixer's, [D, heads, K]."""
    heads, kv, dim = (int(numbers[name]) for name in ("n_heads", "n_kv", "head_dim"))
    rows = np.split(numbers["W_qkv"], [heads * dim, (heads + kv) * dim])
    return {name: w.T.reshape(w.shape[1], -1, dim) for name, w in zip("qkv", rows, strict=True)}


@pytest.mark.parametrize("kv_heads", ["random", "repeat"])
def test_the_oracles_rows(golden, kv_heads):
    numbers = load(golden, "gqa_to_mha")
    config = tiny_config("2.0", hidden_size=48, num_heads=4, num_kv_heads=2, head_dim=16)
    wide = gqa_to_lightning(blocks(numbers), np.random.default_rng(0), config, kv_heads=kv_heads)
    found = np.concatenate([wide[name].reshape(48, -1).T for name in "qkv"])
    rows = numbers[f"rows_{kv_heads}"]
    np.testing.assert_array_equal(found[rows >= 0], numbers["W_qkv"][rows[rows >= 0]])
    if kv_heads == "repeat":
        np.testing.assert_array_equal(found, numbers["W_repeat"])
    else:
        new = found[rows < 0]
        assert new.size == 2 * 2 * 16 * 48
        np.testing.assert_allclose([new.mean(), new.std()], [0, config.init_std], atol=0.1 * config.init_std)


def test_a_converted_layer_has_the_parameters_of_a_lightning_layer_and_keeps_its_own():
    config = tiny_config("2.0", qkv_bias=True, out_bias=True)
    layer = layer_of(config)
    wide = gqa_to_lightning(layer, np.random.default_rng(0), config, kv_heads="repeat")
    hybrid = hybrid_config(config, layer_group_size=3, num_norm_groups=2)
    assert {name: x.shape for name, x in wide.items()} == {n: x.shape for n, x in lightning_spec(hybrid).items()}
    for name in ("q", "q_bias", "q_norm", "k_norm", "out", "out_bias"):
        np.testing.assert_array_equal(wide[name], layer[name])
    np.testing.assert_array_equal(wide["k_bias"], np.repeat(layer["k_bias"], 2, axis=0))
    assert (wide["norm"] == 1).all()


def test_layers_after_the_last_full_group_stay_gqa():
    hybrid = hybrid_config(tiny_config("2.0", num_layers=5), layer_group_size=2, num_norm_groups=1)
    assert [layer for layer in range(5) if hybrid.is_full_attention_layer(layer)] == [1, 3, 4]


@pytest.mark.parametrize("group", [1, 4])
def test_a_pattern_that_converts_no_layer_is_refused(group):
    with pytest.raises(ValueError, match=rf"layer_group_size is {group}: none of the 3 layers .*; it is 2 to 3"):
        hybrid_config(tiny_config("2.0"), layer_group_size=group, num_norm_groups=1)


@pytest.mark.parametrize("family", ["2.6", "linear-2.0"])
def test_a_hybrid_is_no_source(family):
    with pytest.raises(ValueError, match="it is a hybrid or MLA already"):
        hybrid_config(tiny_config(family), layer_group_size=2, num_norm_groups=1)


def test_a_source_without_its_qk_norms_is_refused():
    with pytest.raises(ValueError, match="the source's QK-norms are fused"):
        hybrid_config(tiny_config("2.0", gqa_qk_norm=False), layer_group_size=2, num_norm_groups=1)


def test_heads_that_do_not_divide_and_unknown_options_are_an_error():
    with pytest.raises(ValueError, match="3 key/value heads do not divide the 4 heads"):
        source_heads(4, 3, "random")
    with pytest.raises(ValueError, match="kv_heads is 'repaet', did you mean 'repeat'"):
        source_heads(4, 2, "repaet")
