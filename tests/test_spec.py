"""Everything about a parameter comes from its one declaration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import model, spec
from ling_jax.spec import Leaf
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import FAMILIES, assert_trees_equal, tiny_config

OTHERS = [family for family in FAMILIES if family != "2.6"]


def leaf(*shape, init=spec.ones, **fields):
    return Leaf(shape, (None,) * len(shape), init, **fields)


def test_a_leaf_names_every_dimension():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has 2 dimensions, axes \('embed',\)"):
        Leaf((2, 3), ("embed",), spec.ones)


def test_adding_a_leaf_changes_no_other():
    few = {"a": leaf(3, init=spec.normal(1.0)), "b": {"c": leaf(2, init=spec.normal(1.0))}}
    more = {"a": few["a"], "aa": leaf(4, init=spec.normal(1.0)), "b": {"c": few["b"]["c"], "d": leaf(1)}}
    found, wanted = spec.init(jax.random.key(3), more), spec.init(jax.random.key(3), few)
    np.testing.assert_array_equal(found["a"], wanted["a"])
    np.testing.assert_array_equal(found["b"]["c"], wanted["b"]["c"])


def test_leaves_of_equal_shape_start_differently():
    params = spec.init(jax.random.key(0), {"a": leaf(8, init=spec.normal(1.0)), "b": leaf(8, init=spec.normal(1.0))})
    assert not np.any(params["a"] == params["b"])


@pytest.mark.parametrize("family", ["2.6", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_init_is_what_the_spec_declares(family):
    config = tiny_config(family, mtp_depth=1, qkv_bias=True, out_bias=True, init_std=0.02)
    declared = spec.named_leaves(model.model_spec(config))
    params = spec.named_leaves(quick_jit(model.init, static_argnums=1)(jax.random.key(0), config))
    assert params.keys() == declared.keys()
    for name, value in params.items():
        assert value.shape == declared[name].shape and value.dtype == jnp.float32, name
        if "norm" in name:
            assert (value == 1).all(), name
        elif "bias" in name:
            assert (value == 0).all(), name
    drawn = np.concatenate([np.ravel(v) for n, v in params.items() if "norm" not in n and "bias" not in n])
    # The standard deviation of N draws is known to 1 / sqrt(2 N).
    np.testing.assert_allclose(drawn.std(), 0.02, rtol=5 / np.sqrt(2 * drawn.size))


def test_only_expert_biases_are_not_trained():
    for family in FAMILIES:
        trained = spec.named_leaves(spec.trainable(model.model_spec(tiny_config(family, mtp_depth=1))))
        frozen = {name for name, train in trained.items() if not train}
        assert frozen == {name for name in trained if name.endswith("expert_bias")} and frozen


def test_the_abstract_tree_has_the_shapes_of_init():
    config = tiny_config()
    declared = model.model_spec(config)
    wanted = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
    found = spec.abstract(declared)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), found, wanted))
    halves = spec.abstract(declared, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {np.dtype("bfloat16")}


def test_count_is_the_number_of_parameters():
    config = tiny_config()
    params = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
    assert spec.count(model.model_spec(config)) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_stacking_adds_leading_dimensions_with_their_axes():
    stacked = spec.stack({"a": Leaf((5,), ("embed",), spec.ones, trainable=False)}, (2, 3), ("layers", None))["a"]
    assert stacked.shape == (2, 3, 5) and stacked.axes == ("layers", None, "embed") and not stacked.trainable


def test_combine_undoes_partition():
    declared = {"a": leaf(2), "b": {"c": leaf(3, trainable=False), "d": leaf(1)}}
    params = spec.init(jax.random.key(0), declared)
    chosen, others = spec.partition(params, spec.trainable(declared))
    assert spec.named_leaves(chosen).keys() == {"a", "b/d"} and spec.named_leaves(others).keys() == {"b/c"}
    assert_trees_equal(spec.combine(chosen, others), params)
