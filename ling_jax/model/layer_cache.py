"""The part of a cache that one layer reads and writes (docs/architecture.md §5, §6).

A layer writes its new tokens into the stacked arrays, then reads old and new tokens from there. So the compiler updates
the arrays in place and never copies a cache.
"""

from typing import NamedTuple

import jax

from ling_jax.model.token_info import Places


class LayerCache(NamedTuple):
    """One layer's part of the stacked arrays of its run."""

    leaves: dict[str, jax.Array]  # of all layers of the run, [repeats, count, B, …]
    position: tuple[jax.Array | int, jax.Array | int]  # (repeat, number) of this layer


def read_leaf(cache: LayerCache, name: str) -> jax.Array:
    """The array `name` of this layer, [B, …]."""
    return cache.leaves[name][cache.position]


def write_state(cache: LayerCache, name: str, new: jax.Array) -> LayerCache:
    """The cache with this layer's array `name` replaced by `new` [B, …]."""
    return cache._replace(leaves=cache.leaves | {name: cache.leaves[name].at[cache.position].set(new)})


def read_pages(cache: LayerCache, name: str, pages_Bn: jax.Array) -> jax.Array:
    """The tokens in pages [B, n] of the array `name` of this layer, [B, n · page size, …]."""
    found = cache.leaves[name].at[*cache.position, pages_Bn].get(mode="clip")  # of padding whatever there is
    return found.reshape(found.shape[0], -1, *found.shape[3:])


def write_tokens(cache: LayerCache, name: str, new_BT: jax.Array, places: Places) -> LayerCache:
    """The cache with `new_BT` [B, T, …] in these places. Those past the end (padding) are dropped."""
    old = cache.leaves[name]
    new = old.at[*cache.position, *places].set(new_BT.astype(old.dtype), mode="drop")
    return cache._replace(leaves=cache.leaves | {name: new})
