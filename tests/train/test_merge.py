"""Merging checkpoints instead of decaying the learning rate."""

import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.train.merge import DECAYS, decay_weights, merge_checkpoints, merge_coefficients

LEAVES = ("layer/w", "layer/b", "norm")
# float64 sums of six terms of size 1, and the oracle's own rounding
EXACT = dict(rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def wsm(golden):
    return dict(np.load(golden / "objectives/wsm.npz"))


def weights_of(wsm, decay):
    return wsm["w.custom"] if decay == "custom" else decay_weights(decay, int(wsm["k"]))


def stream(wsm, convert=np.asarray):
    for j in range(int(wsm["k"]) + 1):
        yield {name: convert(wsm[f"ckpt.{name}"][j]) for name in LEAVES}


@pytest.mark.parametrize("decay", [*DECAYS, "custom"])
def test_the_oracles_merges(wsm, decay):
    weights = weights_of(wsm, decay)
    coefficients = merge_coefficients(weights)
    np.testing.assert_allclose(weights, wsm[f"w.{decay}"], **EXACT)
    np.testing.assert_allclose(coefficients, wsm[f"c.{decay}"], **EXACT)
    merged = merge_checkpoints(stream(wsm), coefficients)
    for name in LEAVES:
        np.testing.assert_allclose(merged[name], wsm[f"merged.{decay}.{name}"], **EXACT)
        decayed = wsm[f"ckpt.{name}"][0] - np.tensordot(weights, wsm[f"update.{name}"], axes=1)
        np.testing.assert_allclose(merged[name], decayed, **EXACT, err_msg="the same gradients at a decayed rate")


@pytest.mark.parametrize("convert", [jnp.float32, np.float32], ids=["jax", "numpy"])
def test_float32_parameters_merge_to_a_rounding_error(wsm, convert):
    coefficients = merge_coefficients(decay_weights("cosine", 5))
    merged = merge_checkpoints(stream(wsm, convert), coefficients)
    for name in LEAVES:
        assert merged[name].dtype == np.float32
        # the inputs' own rounding at size ~3, six times
        np.testing.assert_allclose(merged[name], wsm[f"merged.cosine.{name}"], rtol=0, atol=2e-6)


def test_bfloat16_is_summed_wider_and_stays_bfloat16():
    # In bfloat16 the sum of 256 equal parts would stop growing at a fraction of 1.
    ones = np.ones(3, ml_dtypes.bfloat16)
    for leaf in (ones, jnp.asarray(ones)):
        merged = merge_checkpoints(({"w": leaf} for _ in range(256)), np.full(256, 1 / 256))
        assert merged["w"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(np.asarray(merged["w"], np.float32), 1)


def test_one_checkpoint_is_held_at_a_time():
    earlier = []

    def lazily():
        for value in range(5):
            assert all(ref() is None for ref in earlier), "an earlier checkpoint is alive while the next is loaded"
            leaf = np.full(4, float(value))
            earlier.append(weakref.ref(leaf))
            tree = {"w": leaf}
            del leaf
            yield tree
            del tree

    merged = merge_checkpoints(lazily(), np.full(5, 0.2))
    np.testing.assert_allclose(merged["w"], 2)


def test_the_checkpoints_stay_as_they_were():
    trees = [{"w": np.arange(3.0)}, {"w": np.ones(3)}]
    jax_trees = jax.tree.map(jnp.float32, trees)
    for checkpoints in (trees, jax_trees):
        merge_checkpoints(checkpoints, [0.5, 0.5])
        np.testing.assert_array_equal(checkpoints[0]["w"], [0, 1, 2])
        np.testing.assert_array_equal(checkpoints[1]["w"], 1)


@given(st.lists(st.floats(0, 1), max_size=12).map(lambda w: sorted(w, reverse=True)))
def test_coefficients_of_a_decay_are_an_average(weights):
    coefficients = merge_coefficients(weights)
    assert (coefficients >= 0).all()
    assert coefficients.sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [0, 1, 11, 31])
def test_a_linear_decay_is_the_plain_mean(k):
    np.testing.assert_allclose(merge_coefficients(decay_weights("linear", k)), 1 / (k + 1), **EXACT)


@pytest.mark.parametrize(
    ("second", "coefficients", "message"),
    [
        ({"w": np.ones(2)}, [0.5, 0.6], "coefficients sum to 1.1"),
        ({"w": np.ones(2)}, [1.0], "more checkpoints than the 1 coefficients"),
        ({"w": np.ones(2)}, [0.5, 0.25, 0.25], "2 checkpoints for 3 coefficients"),
        ({"w": np.ones(3)}, [0.5, 0.5], r"checkpoint 1: w is float64\[3\], the first's float64\[2\]"),
        ({"v": np.ones(2)}, [0.5, 0.5], "checkpoint 1: . is in only one of it and the first"),
    ],
)
def test_what_does_not_fit_is_named(second, coefficients, message):
    with pytest.raises(ValueError, match=message):
        merge_checkpoints([{"w": np.ones(2)}, second], coefficients)


def test_what_cannot_be_merged_is_named():
    with pytest.raises(ValueError, match="step is int64; merge parameters"):
        merge_checkpoints([{"step": np.ones(2, np.int64)}], [1.0])
    with pytest.raises(ValueError, match="decay is 'cosin', did you mean 'cosine'"):
        decay_weights("cosin", 3)
    with pytest.raises(ValueError, match="k is -1"):
        decay_weights("linear", -1)
    with pytest.raises(ValueError, match="expected finite numbers"):
        merge_coefficients([0.5, np.nan])
