"""MLA layers from GQA layers: the oracles of both, and what makes the conversion exact."""

import dataclasses

import jax
import numpy as np
import pytest

from ling_jax.config import Yarn
from ling_jax.migrate.transmla import balance_ratio, check_sizes, gqa_to_mla, key_rotation, mla_config, principal
from ling_jax.migrate.transmla import mean_rms as latent_weight
from ling_jax.model import gqa, mla
from ling_jax.model.rope import rope_table
from ling_jax.model.transformer import make_token_info
from tests.helpers.objective_numbers import BOTH, load
from tests.helpers.tiny import tiny_config

EXACT = {"float64": 1e-6, "float32": 1e-4}  # of the oracles; eigenvectors of a moment are good to its square root


@pytest.fixture
def no_latent_norms(monkeypatch):
    """No weight makes a norm the identity, so what is exact without them is compared without them."""
    monkeypatch.setattr(mla, "rms_norm", lambda x, weight, eps: x)


def source_of(numbers, dtype="float64", **fields):
    heads, kv, dim = (int(numbers[name]) for name in ("n_heads", "n_kv", "head_dim"))
    return tiny_config(
        "2.0", hidden_size=numbers["x"].shape[1], num_heads=heads, num_kv_heads=kv, head_dim=dim, compute_dtype=dtype,
        rotary_dim=int(numbers["rotary_dim"]), rope_theta=float(numbers["theta"]), gqa_qk_norm=False, **fields,
    )  # fmt: skip


def target_of(source, kv_rank=None, q_rank=None, components=1):
    rope = components * source.rotary_dim
    full = min(source.hidden_size, 2 * source.num_kv_heads * source.head_dim - rope)
    sizes = dict(kv_lora_rank=kv_rank or full, q_lora_rank=q_rank, nope_dim=source.head_dim, rope_dim=rope)
    return dataclasses.replace(source, full_attention="mla", v_dim=source.head_dim, **sizes)


def layer_of(numbers, dtype="float64"):
    dim, hidden = int(numbers["head_dim"]), numbers["x"].shape[1]
    layer = {name: numbers[f"W_{name}"].T.reshape(hidden, -1, dim).astype(dtype) for name in "qkv"}
    return layer | {"out": numbers["W_o"].T.reshape(-1, dim, hidden).astype(dtype)}


def run(layer, x_TD, config, components=1):
    """The mixer's output [T, D]; the rope table of several components is that of one, repeated."""
    positions = np.arange(len(x_TD))[None]
    info = make_token_info(np.zeros_like(positions), config)
    table = rope_table(positions, config.rope_dim // components, config)
    info = info._replace(latent_rope=tuple(np.tile(part, components) for part in table))
    mixer = mla.mla if config.full_attention == "mla" else gqa.gqa
    return np.asarray(mixer(layer, x_TD[None], info, None, config)[0][0])


def converted(numbers, dtype="float64", *, pca="complex", **sizes):
    """(output, energy kept) of the converted layer at the oracle's tokens."""
    source = source_of(numbers, dtype)
    target = target_of(source, **sizes)
    layer, kept = gqa_to_mla(layer_of(numbers, dtype), numbers["x_calib"].astype(dtype), source, target, pca=pca)
    return run(layer, numbers["x"].astype(dtype), target, sizes.get("components", 1)), kept


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def test_rope_keys_of_zero_keep_all_there_is(golden):
    numbers = load(golden, "mla_full_nkv1")
    source = source_of(numbers)
    layer = layer_of(numbers)
    layer["k"][..., : source.rotary_dim] = 0
    _, kept = gqa_to_mla(layer, numbers["x_calib"], source, target_of(source))
    assert kept.rope == 1


CASES = {  # what is exact -> how
    "mla_full_nkv1": dict(),
    "mla_full_nkv2_all_components": dict(components=2),
    "mla_rank1_real": dict(pca="real"),
    "mla_rank1_complex": dict(pca="complex"),
}


@BOTH
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_query_rank", [False, True])
def test_what_is_exact_without_latent_norms(golden, no_latent_norms, name, dtype, with_query_rank):
    numbers = load(golden, name)
    with jax.enable_x64(dtype == "float64"):
        found, kept = converted(numbers, dtype, q_rank=48 if with_query_rank else None, **CASES[name])
    np.testing.assert_allclose(found, numbers["out"], rtol=0, atol=EXACT[dtype])
    np.testing.assert_allclose(kept, 1, atol=1e-6)


def test_the_gqa_layer_gives_the_oracles_output(golden, x64):
    numbers = load(golden, "mla_truncated")
    found = run(layer_of(numbers), numbers["x"], source_of(numbers))
    np.testing.assert_allclose(found, numbers["out"], rtol=0, atol=1e-9)


def test_phase_shifted_heads_need_the_complex_rotation(golden, no_latent_norms, x64):
    numbers = load(golden, "mla_rank1_complex")
    found, _ = converted(numbers, pca="real")
    np.testing.assert_allclose(relative(found, numbers["out"]), numbers["rel_error_real_pca"], rtol=1e-6)


@pytest.mark.parametrize("pca", ["real", "complex"])
def test_the_oracles_rotation_and_ratio(golden, pca):
    numbers = load(golden, "mla_truncated")
    source, layer = source_of(numbers), layer_of(numbers)
    rotation = key_rotation(layer["k"], numbers["x_calib"], source, pca)
    np.testing.assert_allclose(rotation.energy, numbers[f"energy.{pca}"], rtol=1e-9)
    half = source.rotary_dim // 2
    parts = rotation.matrix.reshape(4, 2, half, 4, 2, half)
    leading = np.einsum("gajbj->jgab", parts[:, :, :, 0])  # [n/2, G, part of the key, part of the component]
    unit = leading[..., 0, 0] + 1j * leading[..., 1, 0]
    np.testing.assert_allclose(
        unit[:, :, None] * unit[:, None].conj(), numbers[f"leading_projector.{pca}"], rtol=0, atol=1e-9
    )
    rest = rotation.matrix[:, :, 1:].reshape(4, 8, 24)
    keys = np.einsum("Dgi,gin->Dn", layer["k"][..., :8], rest)
    latent = np.concatenate([keys, layer["k"][..., 8:].reshape(96, -1), layer["v"].reshape(96, -1)], axis=1)
    np.testing.assert_allclose(
        balance_ratio(latent, numbers["x_calib"], source), numbers[f"balance_ratio.{pca}"], rtol=1e-9
    )


@BOTH
@pytest.mark.parametrize("pca", ["real", "complex"])
def test_the_oracles_output_where_only_rope_is_cut(golden, no_latent_norms, pca, dtype):
    numbers = load(golden, "mla_truncated")
    with jax.enable_x64(dtype == "float64"):
        found, kept = converted(numbers, dtype, pca=pca)
    np.testing.assert_allclose(found, numbers[f"out_untruncated.{pca}"], rtol=0, atol=EXACT[dtype])
    assert kept.latent == pytest.approx(1) and kept.rope < 0.97


@pytest.mark.parametrize("pca", ["real", "complex"])
def test_truncated_errors_are_within_the_oracles_bounds(golden, no_latent_norms, x64, pca):
    numbers = load(golden, "mla_truncated")
    bounds = np.maximum(numbers[f"rel_error_kv.{pca}"], numbers[f"rel_error_kv_nobalance.{pca}"])
    for rank, bound in zip(numbers["kv_ranks"], bounds, strict=True):
        found, _ = converted(numbers, pca=pca, kv_rank=min(int(rank), 96))
        assert relative(found, numbers["out"]) <= 1.1 * bound, f"latent rank {rank}"
    for rank, bound in zip(numbers["q_ranks"], numbers[f"rel_error_q.{pca}"], strict=True):
        found, _ = converted(numbers, pca=pca, q_rank=min(int(rank), 96))
        assert relative(found, numbers["out"]) <= 1.1 * bound, f"query rank {rank}"


def test_the_latent_norms_weight_is_the_best_scalar(golden):
    numbers = load(golden, "latent_norm_init")
    x, w = numbers["x"], numbers["W_a"].T
    weight = latent_weight(w, x)
    np.testing.assert_allclose(weight, numbers["weight"], rtol=1e-12)
    z = x @ w
    rms = np.sqrt(np.mean(z**2, axis=1, keepdims=True) + numbers["eps"])
    error = lambda scalar: relative(z / rms * scalar, z)  # noqa: E731
    np.testing.assert_allclose(error(weight), numbers["rel_error"], rtol=1e-9)
    np.testing.assert_allclose(error(np.mean(1 / rms)), numbers["rel_error_mean_rsqrt"], rtol=1e-9)
    np.testing.assert_allclose(error(1.0), numbers["rel_error_ones"], rtol=1e-9)
    assert error(weight) < min(error(np.mean(1 / rms)), error(1.0), error(0.99 * weight), error(1.01 * weight))


def test_with_latent_norms_the_weight_gives_the_smallest_error(golden, x64):
    """In a whole layer, exact without them: the mean of the RMS against that of its inverse, and against 1."""
    numbers = load(golden, "mla_full_nkv1")
    source = source_of(numbers)
    target = target_of(source, q_rank=48)
    layer, _ = gqa_to_mla(layer_of(numbers), numbers["x_calib"], source, target)
    errors = {}
    for name, change in (("rms", lambda w: w), ("rsqrt", lambda w: 1 / w), ("ones", np.ones_like)):
        other = layer | {norm: change(layer[norm]) for norm in ("q_a_norm", "kv_a_norm")}
        errors[name] = relative(run(other, numbers["x"], target), numbers["out"])
    assert errors["rms"] < min(errors["rsqrt"], errors["ones"]), errors


@pytest.mark.parametrize("yarn", [Yarn(4.0, 64, mscale=1.0, mscale_all_dim=1.0), Yarn(4.0, 64)])
def test_yarn_is_carried_over(golden, no_latent_norms, x64, yarn):
    numbers = load(golden, "mla_full_nkv1")
    source = source_of(numbers, rope_scaling=yarn)
    target = target_of(source)
    layer, _ = gqa_to_mla(layer_of(numbers), numbers["x_calib"], source, target)
    wanted = run(layer_of(numbers), numbers["x"], source)
    np.testing.assert_allclose(run(layer, numbers["x"], target), wanted, rtol=0, atol=1e-6)


def test_a_large_moments_subspace_keeps_what_its_eigenvectors_keep(monkeypatch):
    rng = np.random.default_rng(0)
    scales = 1 / np.arange(1, 301)  # a slow fall, as of activations
    mixed = (rng.normal(size=(900, 300)) * scales) @ np.linalg.qr(rng.normal(size=(300, 300)))[0]
    moment_XX = mixed.T @ mixed / 900
    _, best = principal(moment_XX, 40)
    monkeypatch.setattr("ling_jax.migrate.transmla.DENSE", 10)
    basis, kept = principal(moment_XX, 40)
    np.testing.assert_allclose(basis.T @ basis, np.eye(40), atol=1e-10)
    assert best - 2e-4 < kept <= best + 1e-12


def test_sizes_that_do_not_fit_are_refused_with_sizes_that_do(golden):
    numbers = load(golden, "mla_truncated")
    source = source_of(numbers)
    x, layer = numbers["x_calib"], layer_of(numbers)
    with pytest.raises(ValueError, match="kv_lora_rank is 97; the source's layers have rank 96, the largest"):
        mla_config(source, target_of(source, kv_rank=97))
    with pytest.raises(ValueError, match="q_lora_rank is 200; the source's layers have rank 96"):
        mla_config(source, target_of(source, q_rank=200))
    with pytest.raises(ValueError, match="rope_dim is 16; MLA has one rope key, which needs rotary_dim 8"):
        mla_config(source, target_of(source, components=2))
    with pytest.raises(ValueError, match="nope_dim is 8; from heads of 16 dims it is that"):
        check_sizes(source, dataclasses.replace(target_of(source), nope_dim=8))
    with pytest.raises(ValueError, match="50 calibration tokens; q_lora_rank 64 needs at least 64 of them"):
        gqa_to_mla(layer, x[:50], source, target_of(source, kv_rank=32, q_rank=64))
    with pytest.raises(ValueError, match="calibration token 7 holds NaN or infinity"):
        gqa_to_mla(layer, np.where(np.arange(400)[:, None] == 7, np.nan, x), source, target_of(source))
    with pytest.raises(ValueError, match="the layer has QK-norm; fuse it first"):
        gqa_to_mla(layer | {"q_norm": np.ones(16)}, x, source, target_of(source))
    with pytest.raises(ValueError, match="pca is 'komplex', did you mean 'complex'"):
        gqa_to_mla(layer, x, source, target_of(source), pca="komplex")
    with pytest.raises(ValueError, match="biases"):
        check_sizes(dataclasses.replace(source, qkv_bias=True), target_of(source))
