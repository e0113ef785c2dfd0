"""Configs say what is wrong, and count what was published."""

import pytest

from ling_jax import spec
from ling_jax.config import MODELS, from_hf, model_config, to_hf
from ling_jax.model import layer_plan, model_spec
from ling_jax.model.layers import layer_numbers


@pytest.mark.parametrize(("name", "billions"), [("ling-2.6-1t", 1012.23 + 13.18), ("ling-2.6-flash", 104.19 + 3.31)])
def test_parameter_counts_are_the_published(name, billions):
    assert round(spec.count(model_spec(model_config(name))) / 1e9, 1) == round(billions, 1)


@pytest.mark.parametrize("name", MODELS)
def test_hf_config_round_trip(name):
    assert from_hf(to_hf(model_config(name))) == model_config(name, **how_it_is_run(name))


def how_it_is_run(name):
    """Fields that config.json does not hold come back as their defaults."""
    defaults = dict(remat="full", scan_layers=True, lightning_chunk=None, loss_chunk=128)
    return defaults


def test_eighty_layers_are_two_segments():
    plan = layer_plan(model_config("ling-2.6-1t"))
    assert [segment.repeats for segment in plan] == [1, 9]
    assert [run.count for run in plan[0].runs] == [4, 3, 1] and [run.count for run in plan[1].runs] == [7, 1]


@pytest.mark.parametrize(("layers", "group"), [(1, 8), (3, 8), (10, 4), (8, 8), (17, 1)])
def test_every_layer_has_one_place(layers, group):
    config = model_config("tiny-2.6", num_layers=layers, layer_group_size=group)
    numbers = sorted(n for array in layer_numbers(config).values() for n in array.reshape(-1))
    assert numbers == list(range(layers))
    assert all(config.is_softmax_layer(layer) for layer in range(layers // group * group, layers))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_norm_groups=3), "num_norm_groups 3 does not divide num_heads 4"),
        (dict(top_k=5), "top_k is 5; the 1 kept groups hold 4 experts"),
        (dict(rotary_dim=7), "rotary_dim is 7"),
        (dict(remat="ful"), "remat is 'ful'"),
        (dict(hiden_size=4), "no field 'hiden_size', did you mean 'hidden_size'"),
        (dict(num_layers=0), "num_layers is 0"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        model_config("tiny-2.6", **fields)


def test_rope_scaling_that_means_none():
    hf = to_hf(model_config("tiny-2.6")) | {"rope_scaling": {"rope_type": "default", "rope_theta": 1e4}}
    assert from_hf(hf).rope_scaling is None
