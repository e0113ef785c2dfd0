"""Fusion of the QK-norm of GQA layers into their weights, since MLA has no QK-norm (report §2.1.3, eqs. 1 and 2).

The norm divides each head of a token by its own RMS. The fused layer divides by the RMS over calibration tokens, a
constant of the head that multiplies into the projection together with the norm's weight. The norm precedes RoPE, so
its weight may differ between the two dims of a rotated pair.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ling_jax.config import ModelConfig
from ling_jax.spec import Params


class HeadSquares(NamedTuple):
    """Sums over live tokens of the mean square of each head before its norm, float64 on the host.

    The sums of several batches, or of the parts of a batch on several hosts, add up.
    """

    tokens: int
    q: np.ndarray  # [H]
    k: np.ndarray  # [G]

    def __add__(self, other: "HeadSquares") -> "HeadSquares":
        return HeadSquares(self.tokens + other.tokens, self.q + other.q, self.k + other.k)


def fused_config(config: ModelConfig) -> ModelConfig:
    """The same model without QK-norm in its GQA layers; Lightning layers keep theirs."""
    return dataclasses.replace(config, gqa_qk_norm=False)


def head_squares(params: Params, x_BTD: ArrayLike, live_BT: ArrayLike) -> HeadSquares:
    """The sums of one batch of normed inputs x [B, T, D] of a GQA mixer, over the tokens in `live_BT`."""
    q_BTH, k_BTG = (np.asarray(x, np.float64) for x in _mean_squares(params, x_BTD))
    live_BT = np.asarray(live_BT)
    return HeadSquares(int(live_BT.sum()), q_BTH[live_BT].sum(axis=0), k_BTG[live_BT].sum(axis=0))


@jax.jit
def _mean_squares(params: Params, x_BTD):
    """[q [B, T, H], k [B, T, G]] mean squares in at least float32, sharded like the inputs."""
    means = []
    for name in ("q", "k"):
        y_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, params[name].astype(x_BTD.dtype))
        if (bias := f"{name}_bias") in params:
            y_BTHK = y_BTHK + params[bias].astype(x_BTD.dtype)
        wide = y_BTHK.astype(jnp.promote_types(y_BTHK.dtype, jnp.float32))
        means.append(jnp.mean(jnp.square(wide), axis=-1))
    return means


def fuse_qk_norm(params: Params, squares: HeadSquares, config: ModelConfig) -> Params:
    """The GQA mixer without norms: W · (mean square + eps)^-1/2 ⊙ weight for queries and keys, head by head.

    Over the calibration tokens, the mean square of each head is the same as after the norm. Arrays keep the dtype of
    the projections. Raises ValueError if the statistics have no tokens or are not finite, or the layer has no norms.
    """
    if "q_norm" not in params:
        raise ValueError("the layer has no QK-norm; it is fused already")
    if not squares.tokens:
        raise ValueError("no calibration token was seen; QK fusion needs their mean squares")
    fused = {name: leaf for name, leaf in params.items() if name not in ("q_norm", "k_norm")}
    for name, sums in (("q", squares.q), ("k", squares.k)):
        mean_H = sums / squares.tokens
        if not np.isfinite(mean_H).all():
            head = int(np.flatnonzero(~np.isfinite(mean_H))[0])
            raise ValueError(f"calibration: the mean square of {name} of head {head} is {mean_H[head]}; it is finite")
        factor_HK = (mean_H + config.norm_eps)[:, None] ** -0.5 * np.asarray(params[f"{name}_norm"], np.float64)
        for leaf in {name, f"{name}_bias"} & params.keys():
            value = np.asarray(params[leaf])
            fused[leaf] = (value.astype(np.float64) * factor_HK).astype(value.dtype)
    return fused
