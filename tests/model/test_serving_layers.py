"""Layers as the engine serves them on a CPU compute what the stored ones do."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import model
from ling_jax.engine.weights import UNROLLED_LAYERS, decoding_copy
from ling_jax.model.layers import serving_layers
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.slow import slow_but
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config

ROUNDING = 1e-12  # float64: sums of some hundred terms of size 1
BIASED = {"qkv_bias": True, "out_bias": True}


@pytest.mark.parametrize(
    ("family", "biased"),
    slow_but(
        [*itertools.product(("2.6", "linear-2.0", "2.0"), (False, True)), ("2.6 without q_lora", False)],
        ("2.6", True),
        ("linear-2.0", False),
        ("2.0", False),
    ),
)
def test_served_layers_continue_a_cache_as_stored_ones(x64, family, biased):
    """The first call reads a whole context, the second one token behind it: both forms of every layer."""
    fields = BIASED if biased else {}
    config = tiny_config(family, compute_dtype="float64", remat="none", max_length=32, **fields)
    params = random_params(config)
    served = params | {"segments": serving_layers(params["segments"], config)}
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))

    @quick_jit
    def logits_of(params):
        cache, found = model.init_cache(config, 2, 16).replace(empty=False), []
        for part in (tokens[:, :8], tokens[:, 8:]):
            out = model.forward(params, part, config, cache=cache)
            cache = out.cache
            found.append(out.logits)
        return jnp.concatenate(found, axis=1)

    np.testing.assert_allclose(logits_of(served), logits_of(params), rtol=0, atol=ROUNDING)


def test_deep_models_stay_stacked():
    shallow = tiny_config("2.6", num_layers=UNROLLED_LAYERS)
    deep = dataclasses.replace(shallow, num_layers=UNROLLED_LAYERS + 2)
    params = random_params(deep, dtype="float32")
    stored = jax.tree.map(lambda leaf, copy: leaf.astype(copy.dtype), params, served := decoding_copy(params, deep))
    assert_trees_equal(served, stored)
    segments = decoding_copy(random_params(shallow, dtype="float32"), shallow)["segments"].values()
    assert all(isinstance(groups, tuple) for groups in segments)
