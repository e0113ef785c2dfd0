"""The part of a cache that one layer reads and writes (docs/architecture.md §5, §6).

New tokens are written first and read with the old ones, straight from the stacked arrays: so the compiler writes into
the array that it was given and never copies a cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LayerCache(NamedTuple):
    leaves: dict[str, jax.Array]  # of all layers of a run, stacked [repeats, count, B, …]
    place: tuple[jax.Array | int, jax.Array | int]  # this layer's


def read(cache: LayerCache, name: str):
    return cache.leaves[name][cache.place]


def put_state(cache: LayerCache, name: str, new):
    return cache._replace(leaves=cache.leaves | {name: cache.leaves[name].at[cache.place].set(new)})


def put_tokens(cache: LayerCache, name: str, new_BT, slots_BT):
    """The cache with new tokens in their slots; slots past the end, such as those of padding, are dropped."""
    rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
    old = cache.leaves[name]
    new = old.at[*cache.place, rows_B1, slots_BT].set(new_BT.astype(old.dtype), mode="drop")
    return cache._replace(leaves=cache.leaves | {name: new})
