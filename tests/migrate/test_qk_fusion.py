import jax
import numpy as np
import pytest

from ling_jax.migrate.qk_fusion import fuse_qk_norm, fused_config, head_squares
from ling_jax.model.gqa import gqa_spec
from tests.helpers.objective_numbers import BOTH, load
from tests.helpers.tiny import tiny_config

CONFIG = tiny_config("2.0", hidden_size=48, num_heads=4, num_kv_heads=2, head_dim=16)
# float64: the project's tolerance of objectives; float32: rounding of a product over 48 inputs
CLOSE = {"float64": dict(rtol=0, atol=1e-9), "float32": dict(rtol=1e-4, atol=2e-6)}


@pytest.fixture
def numbers(golden):
    return load(golden, "qk_norm_fusion")


def layer_of(numbers, dtype="float64"):
    as_heads = lambda w: w.T.reshape(48, -1, 16).astype(dtype)  # noqa: E731
    layer = {"q": as_heads(numbers["W_q"]), "k": as_heads(numbers["W_k"])}
    return layer | {"q_norm": numbers["gamma_q"].astype(dtype), "k_norm": numbers["gamma_k"].astype(dtype)}


def squares_of(layer, x_BTD):
    return head_squares(layer, x_BTD, np.ones(x_BTD.shape[:2], bool))


@BOTH
def test_the_oracles_fused_weights(numbers, dtype):
    with jax.enable_x64(dtype == "float64"):
        layer = layer_of(numbers, dtype)
        fused = fuse_qk_norm(layer, squares_of(layer, numbers["x"][None].astype(dtype)), CONFIG)
    assert fused.keys() == {"q", "k"}
    for name in ("q", "k"):
        assert fused[name].dtype == dtype
        np.testing.assert_allclose(fused[name].reshape(48, -1).T, numbers[f"W_{name}_fused"], **CLOSE[dtype])


def test_mean_squares_are_those_behind_the_norm(numbers, x64):
    """So much is kept of each head, with norm weights of 1."""
    x = numbers["x"]
    layer = layer_of(numbers) | {"q_norm": np.ones(16), "k_norm": np.ones(16)}
    fused = fuse_qk_norm(layer, squares_of(layer, x[None]), CONFIG)
    for name in ("q", "k"):
        plain, ours = (np.einsum("ND,DHK->NHK", x, p[name]) for p in (layer, fused))
        normed = plain / np.sqrt(np.mean(plain**2, axis=-1, keepdims=True) + CONFIG.norm_eps)
        rms = [np.sqrt(np.mean(y**2, axis=(0, 2))) for y in (ours, normed)]
        np.testing.assert_allclose(*rms, rtol=1e-6)  # eps of 1e-6 stands inside two different means


def test_batches_add_up_and_padding_counts_nothing(numbers, x64):
    layer, x = layer_of(numbers), numbers["x"]
    padded = np.concatenate([x[60:], np.full((7, 48), 9.0)])[None]
    parts = squares_of(layer, x[None, :60]) + head_squares(layer, padded, np.arange(147)[None] < 140)
    whole = squares_of(layer, x[None])
    assert parts.tokens == whole.tokens == 200
    np.testing.assert_allclose(parts.q, whole.q, rtol=1e-13)
    np.testing.assert_allclose(parts.k, whole.k, rtol=1e-13)


def test_sums_stay_exact_over_many_float32_batches(numbers):
    """In float32 the sum would stop growing by what a batch adds."""
    layer = layer_of(numbers, "float32")
    one = squares_of(layer, numbers["x"][None, :1].astype("float32"))
    many = one._replace(tokens=2**30, q=one.q * 2**30, k=one.k * 2**30)
    np.testing.assert_allclose(((many + one).q - many.q) / one.q, 1, rtol=1e-5)


def test_layers_that_cannot_be_fused_are_an_error(numbers, x64):
    layer = layer_of(numbers)
    nothing = head_squares(layer, numbers["x"][None], np.zeros((1, 200), bool))
    with pytest.raises(ValueError, match="no calibration token was seen"):
        fuse_qk_norm(layer, nothing, CONFIG)
    with pytest.raises(ValueError, match="mean square of q of head 0 is nan"):
        fuse_qk_norm(layer, squares_of(layer, np.full((1, 3, 48), np.nan)), CONFIG)
    with pytest.raises(ValueError, match="fused already"):
        fuse_qk_norm({"q": layer["q"], "k": layer["k"]}, nothing, CONFIG)


def test_a_fused_model_declares_no_norms_in_its_gqa_layers():
    config = tiny_config("linear-2.0")
    assert gqa_spec(config).keys() - gqa_spec(fused_config(config)).keys() == {"q_norm", "k_norm"}
