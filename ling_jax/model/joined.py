"""Matrices with one input, joined for serving: one product instead of several (docs/engine.md)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.spec import Params

JOINED = "joined"  # in place of the matrices


def join(params: Params, names: tuple[str, ...]) -> Params:
    """The parameters with the matrices `names` [D, size, …] side by side as one, [D, all sizes, …]."""
    rest = {name: leaf for name, leaf in params.items() if name not in names}
    return rest | {JOINED: jnp.concatenate([params[name] for name in names], axis=1)}


def project(params: Params, x_BTD: jax.Array, sizes: Mapping[str, int]) -> list[jax.Array]:
    """x times each of the matrices [D, size, …] of these names and sizes, [B, T, size, …], joined or not."""
    if JOINED not in params:
        return [_product(x_BTD, params[name]) for name in sizes]
    ends = np.cumsum(list(sizes.values()))
    return jnp.split(_product(x_BTD, params[JOINED]), ends[:-1], axis=2)


def _product(x_BTD, w_DX):
    return jnp.einsum("BTD,D...->BT...", x_BTD, w_DX.astype(x_BTD.dtype))
