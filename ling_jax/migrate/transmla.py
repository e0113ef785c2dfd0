"""Conversion of GQA layers without QK-norm to MLA layers (report §2.1.3, step 3c: TransMLA for partial RoPE).

At each rotated frequency j, the keys of the G heads are G complex numbers c_g = k_j + i·k_{j+n/2} (half pairing), and
RoPE multiplies all of them by one phase. So RoPE commutes with a unitary rotation of the heads, z = U^H c. With U from
the principal components of E[c c^H], the first z has most of the energy and becomes the single rope key of MLA. The
other components lose RoPE and join the unrotated dims; these and the values form the latent, truncated to its principal
components. The queries follow from Re(conj(q) c_g) = Σ_m Re(conj(conj(U_gm) q) z_m).

Apart from latent norms, the result is exact if the ranks truncate nothing (`largest_ranks`) and either there is one
key/value head or the rope keys of the heads are multiples of each other. Otherwise the error is the part that lost RoPE
plus the part that the ranks truncate. All code is numpy on the host and works on the weights of one layer and its
normed inputs at calibration tokens.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from ling_jax.config import ModelConfig
from ling_jax.messages import nearest
from ling_jax.model.mla import LATENT_NORM_EPS, softmax_scale
from ling_jax.spec import Params

PCAS = ("complex", "real")
CHUNK = 2048  # calibration tokens per matrix product
DENSE = 2048  # moments up to this size use a full eigendecomposition: 6 s on two cores, 24 s at twice the size
OVERSAMPLING, ITERATIONS = 1.1, 5  # of the subspace iteration for larger ones; our choice


class Kept(NamedTuple):
    """The share of the calibration tokens' energy (sum of squares) that a conversion keeps, 0 to 1."""

    rope: float  # energy of the rotated dims of keys in the rope key
    latent: float  # energy of position-free keys and values in the latent
    query: float  # energy of queries in their low rank; 1 without a query rank


def mla_config(source: ModelConfig, target: ModelConfig) -> ModelConfig:
    """`source` (GQA, fused) with MLA layers of the target's sizes instead of its GQA layers.

    Raises ValueError with the sizes that would fit if the target's do not.
    """
    sizes = {name: getattr(target, name) for name in ("q_lora_rank", "kv_lora_rank", "nope_dim", "rope_dim", "v_dim")}
    config = dataclasses.replace(source, full_attention="mla", num_kv_heads=0, gqa_qk_norm=True, **sizes)
    if config.rope_dim != source.rotary_dim:
        raise ValueError(
            f"rope_dim is {config.rope_dim}; MLA has one rope key, which needs rotary_dim {source.rotary_dim}"
        )
    check_sizes(source, config)
    return config


def check_sizes(source: ModelConfig, target: ModelConfig) -> None:
    """Raises ValueError with the size that would fit if `source`'s GQA layers cannot become the target's MLA."""
    for name in ("nope_dim", "v_dim"):
        if getattr(target, name) != source.head_dim:
            raise ValueError(f"{name} is {getattr(target, name)}; from heads of {source.head_dim} dims it is that")
    for name, most in largest_ranks(source, target).items():
        if (rank := getattr(target, name)) is not None and rank > most:
            raise ValueError(f"{name} is {rank}; the source's layers have rank {most}, the largest that it can be")
    if source.qkv_bias or source.out_bias:
        raise ValueError("the source has biases (qkv_bias, out_bias); MLA's queries have none to take them up")


def largest_ranks(source: ModelConfig, target: ModelConfig) -> dict[str, int]:
    """The ranks at which nothing is truncated: of the position-free keys and values together, and of the queries."""
    kv = 2 * source.num_kv_heads * source.head_dim - target.rope_dim
    return {
        "kv_lora_rank": min(source.hidden_size, kv),
        "q_lora_rank": min(source.hidden_size, source.num_heads * source.head_dim),
    }


def gqa_to_mla(
    params: Params, x_ND: np.ndarray, source: ModelConfig, target: ModelConfig, *, pca: str = "complex"
) -> tuple[Params, Kept]:
    """(parameters of an MLA mixer, kept energy) from those of one GQA mixer without QK-norm.

    Args:
      params: q [D, H, K], k and v [D, G, K], out [H, K, D].
      x_ND: the layer's normed inputs at calibration tokens, without padding.
      target: nope_dim and v_dim are K; rope_dim is `rotary_dim` times the components per frequency that keep RoPE. More
        than one component is for tests only: the rope table would have to repeat.
      pca: "complex" uses a unitary U; "real" an orthogonal one, as in TransMLA, which keeps less energy.

    The algebra is float64; results have the dtype of `params`. Raises ValueError if sizes do not fit, or calibration
    tokens are not finite or fewer than the ranks.
    """
    if "q_norm" in params:
        raise ValueError("the layer has QK-norm; fuse it first")
    check_sizes(source, target)
    _check_calibration(x_ND, target)
    rotation = key_rotation(params["k"], x_ND, source, pca)
    components = target.rope_dim // source.rotary_dim
    rope_DP, latent_DX, up_XGK = _split(params, rotation.matrix, components, source)
    ratio = balance_ratio(latent_DX, x_ND, source)
    num_keys = latent_DX.shape[1] - source.num_kv_heads * source.head_dim
    scale_X = np.concatenate([np.full(num_keys, ratio), np.ones(latent_DX.shape[1] - num_keys)])
    basis_XR, latent_kept = principal(moment(latent_DX / scale_X, x_ND), target.kv_lora_rank)
    down_DR = (latent_DX / scale_X) @ basis_XR
    kv_b_RGK = np.einsum("XR,XGK->RGK", basis_XR * scale_X[:, None], up_XGK)
    group = source.num_heads // source.num_kv_heads
    converted = {
        "kv_a": np.concatenate([down_DR, rope_DP], axis=1),
        "kv_a_norm": np.full(target.kv_lora_rank, mean_rms(down_DR, x_ND)),
        "kv_b": np.repeat(kv_b_RGK, group, axis=1),
    }
    queries, query_kept = _queries(params["q"], x_ND, rotation.matrix[:, :, :components], source, target)
    dtype = np.asarray(params["q"]).dtype
    converted = {name: leaf.astype(dtype) for name, leaf in (converted | queries).items()}
    energy = rotation.energy.sum()
    kept = float(rotation.energy[:, :components].sum() / energy) if energy else 1.0
    return converted | {"out": np.asarray(params["out"])}, Kept(kept, latent_kept, query_kept)


def _check_calibration(x_ND: np.ndarray, target: ModelConfig) -> None:
    ranks = {name: getattr(target, name) or 0 for name in ("kv_lora_rank", "q_lora_rank")}
    name = max(ranks, key=ranks.get)
    if len(x_ND) < ranks[name]:
        raise ValueError(f"{len(x_ND)} calibration tokens; {name} {ranks[name]} needs at least {ranks[name]} of them")
    for start in range(0, len(x_ND), CHUNK):
        if not (finite := np.isfinite(x_ND[start : start + CHUNK]).all(axis=1)).all():
            raise ValueError(f"calibration token {start + int(np.argmin(finite))} holds NaN or infinity at this layer")


class Rotation(NamedTuple):
    """The rotation among key/value heads."""

    matrix: np.ndarray  # [G, n, G, n] real and orthogonal: rotated dims of keys [G, n] to components [M, n]
    energy: np.ndarray  # [n/2, G] mean squares of the components, descending


def key_rotation(key_DGK: Any, x_ND: np.ndarray, source: ModelConfig, pca: str) -> Rotation:
    """The rotation among heads that commutes with RoPE and orders the components by energy.

    Second moments are uncentred and use keys before RoPE, which does not change E[c c^H].
    """
    if pca not in PCAS:
        raise ValueError(f"pca is {pca!r}{nearest(str(pca), PCAS)}; it is one of {', '.join(PCAS)}")
    heads, half = source.num_kv_heads, source.rotary_dim // 2
    rotary_DX = np.asarray(key_DGK, np.float64)[..., : 2 * half].reshape(len(key_DGK), -1)
    real = moment(rotary_DX, x_ND).reshape(heads, 2, half, heads, 2, half)
    same_frequency = np.einsum("gajhbj->jabgh", real)  # [n/2, part, part, G, G]
    hermitian = same_frequency[:, 0, 0] + same_frequency[:, 1, 1]
    if pca == "complex":
        hermitian = hermitian + 1j * (same_frequency[:, 1, 0] - same_frequency[:, 0, 1])
    energy, unitary = np.linalg.eigh(hermitian)
    energy, unitary = energy[:, ::-1], unitary[:, :, ::-1]  # [n/2, G, M]

    def diagonal(values):
        return np.einsum("jgm,ji->gjmi", values, np.eye(half))

    matrix = np.zeros((heads, 2, half, heads, 2, half))
    matrix[:, 0, :, :, 0] = matrix[:, 1, :, :, 1] = diagonal(unitary.real)
    matrix[:, 1, :, :, 0], matrix[:, 0, :, :, 1] = diagonal(unitary.imag), -diagonal(unitary.imag)
    return Rotation(matrix.reshape(heads, 2 * half, heads, 2 * half), energy)


def _split(params: Params, rotation: np.ndarray, components: int, source: ModelConfig):
    """(weights of the rope key [D, rope], of the untruncated latent [D, X], from it to keys and values [X, G, 2K]).

    X holds the components without RoPE, then the unrotated dims of keys, then values.
    """
    heads, rotary, dim = source.num_kv_heads, source.rotary_dim, source.head_dim
    key_DGK, value_DGK = (np.asarray(params[name], np.float64) for name in ("k", "v"))
    parts_DMn = np.einsum("Dgi,gimn->Dmn", key_DGK[..., :rotary], rotation)
    hidden = len(key_DGK)
    free = [parts_DMn[:, components:], key_DGK[..., rotary:], value_DGK]
    latent_DX = np.concatenate([part.reshape(hidden, -1) for part in free], axis=1)
    rest, unrotated, values = (int(np.prod(part.shape[1:])) for part in free)
    up_XGK = np.zeros((rest + unrotated + values, heads, 2 * dim))
    up_XGK[:rest, :, :rotary] = np.moveaxis(rotation[:, :, components:].reshape(heads, rotary, rest), 2, 0)
    up_XGK[rest : rest + unrotated, :, rotary:dim] = np.eye(unrotated).reshape(unrotated, heads, dim - rotary)
    up_XGK[rest + unrotated :, :, dim:] = np.eye(values).reshape(values, heads, dim)
    return interleaved(parts_DMn[:, :components]).reshape(hidden, -1), latent_DX, up_XGK


def _queries(query_DHK: Any, x_ND, rotation: np.ndarray, source: ModelConfig, target: ModelConfig):
    """(parameters of the queries, kept energy): all K dims unchanged, then the dims against the rope key.

    `rotation` is [G, n, components, n]. A factor compensates for the target's softmax scale, YaRN's included.
    """
    query_DHK = np.asarray(query_DHK, np.float64)
    hidden, heads, dim = query_DHK.shape
    by_head = np.repeat(rotation, heads // source.num_kv_heads, axis=0)
    scale = dim**-0.5 / softmax_scale(target)

    def widened(query_XHK):
        rope_XHMn = np.einsum("Xhi,himn->Xhmn", query_XHK[..., : source.rotary_dim], by_head)
        rope_XHP = interleaved(rope_XHMn).reshape(len(query_XHK), heads, -1)
        return scale * np.concatenate([query_XHK, rope_XHP], axis=-1)

    if target.q_lora_rank is None:
        return {"q": widened(query_DHK)}, 1.0
    flat_DX = query_DHK.reshape(hidden, -1)
    basis_XR, kept = principal(moment(flat_DX, x_ND), target.q_lora_rank)
    down_DR = flat_DX @ basis_XR
    norm = np.full(target.q_lora_rank, mean_rms(down_DR, x_ND))
    return {"q_a": down_DR, "q_a_norm": norm, "q_b": widened(basis_XR.T.reshape(-1, heads, dim))}, kept


def interleaved(x: np.ndarray) -> np.ndarray:
    """`x` with its last axis reordered from half pairing (j, j + n/2) to interleaved (2j, 2j + 1)."""
    half = x.shape[-1] // 2
    return np.stack([x[..., :half], x[..., half:]], axis=-1).reshape(x.shape)


def projected(weight_DX: np.ndarray, x_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Yields x · weight as float64 for `CHUNK` tokens at a time; products use the dtype of x, at least float32."""
    dtype = np.promote_types(x_ND.dtype, np.float32)
    weight_DX = weight_DX.astype(dtype)
    for start in range(0, len(x_ND), CHUNK):
        yield (x_ND[start : start + CHUNK].astype(dtype) @ weight_DX).astype(np.float64)


def moment(weight_DX: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    """[X, X] float64 mean of the outer products of x · weight, uncentred."""
    total = np.zeros((weight_DX.shape[1],) * 2)
    for y_NX in projected(weight_DX, x_ND):
        total += y_NX.T @ y_NX
    return total / len(x_ND)


def balance_ratio(latent_DX: np.ndarray, x_ND: np.ndarray, source: ModelConfig) -> float:
    """Mean norm of position-free keys over that of values; keys are divided by it before the joint PCA."""
    num_keys = latent_DX.shape[1] - source.num_kv_heads * source.head_dim
    norms = np.zeros(2)
    for y_NX in projected(latent_DX, x_ND):
        norms += [np.linalg.norm(part, axis=1).sum() for part in (y_NX[:, :num_keys], y_NX[:, num_keys:])]
    return float(norms[0] / norms[1]) if norms.all() else 1.0


def mean_rms(weight_DX: np.ndarray, x_ND: np.ndarray) -> float:
    """Mean over tokens of the RMS of x · weight: the scalar w that minimises the mean square of norm(z)·w - z.

    Σ |z|² (1 - w/rms)² = d · Σ (rms - w)². (TransMLA takes the mean of 1/rms, the inverse quantity.)
    """
    squares = [np.mean(y_NX**2, axis=1) for y_NX in projected(weight_DX, x_ND)]
    return float(np.mean(np.sqrt(np.concatenate(squares) + LATENT_NORM_EPS)))


def principal(moment_XX: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """(orthonormal basis [X, rank] of the largest eigenvectors, share of the trace that it keeps).

    Moments larger than `DENSE` use subspace iteration with extra columns. Its share matches that of the best subspace
    to a few digits, enough for a choice from samples.
    """
    size, trace = len(moment_XX), np.trace(moment_XX)
    wide = int(rank * OVERSAMPLING)
    if size <= DENSE or wide > size // 2:
        values, vectors = np.linalg.eigh(moment_XX)
    else:
        basis = _orthonormal(np.random.default_rng(0).normal(size=(size, wide)))
        for _ in range(ITERATIONS):
            basis = _orthonormal(moment_XX @ basis)
        values, inner = np.linalg.eigh(basis.T @ (moment_XX @ basis))
        vectors = basis @ inner[:, -rank:]
    return vectors[:, ::-1][:, :rank], float(values[-rank:].sum() / trace) if trace else 1.0


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns: by Cholesky of their Gram matrix, or by QR if they are nearly dependent."""
    try:
        lower = np.linalg.cholesky(columns.T @ columns)
    except np.linalg.LinAlgError:
        return np.linalg.qr(columns)[0]
    return scipy.linalg.solve_triangular(lower, columns.T, lower=True).T
