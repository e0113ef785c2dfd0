"""The part of a cache that one layer reads and writes (docs/architecture.md §5, §6).

A layer writes its new tokens into the stacked arrays, then reads old and new tokens from there. So the compiler updates
the arrays in place and never copies a cache.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax

from ling_jax.model.token_info import Places
from ling_jax.parallel.sharding import ArrayAxes, per_device

# Logical axes of a kind's arrays behind (repeat, number): of sequences or blocks "batch", then those of an entry.
LeafAxes = Mapping[str, tuple[str | None, ...]]


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


def leaf_axes(cache: LayerCache, name: str, axes: LeafAxes) -> ArrayAxes:
    """The stacked array `name` as `per_device` takes it."""
    sizes = cache.leaves[name].shape
    return ((1, None), (1, None), *zip(sizes[2:], axes[name], strict=False))


def write_pages(cache: LayerCache, name: str, new_BT: jax.Array, places: Places, axes: LeafAxes) -> LayerCache:
    """`write_tokens` where the places are those of a pool: on a mesh numbered in the part of each row."""
    stacked, (rows, *more) = leaf_axes(cache, name, axes), axes[name]
    place = (new_BT.shape[0], rows), (new_BT.shape[1], None)
    new = (*place, *zip(new_BT.shape[2:], more[1:], strict=False))

    def write(leaf, repeat, number, new_BT, block, offset):
        of_part = LayerCache({name: leaf}, (repeat, number))
        return (write_tokens(of_part, name, new_BT, Places(block, offset)).leaves[name],)

    written = per_device(write, (stacked, (), (), new, place, place), (stacked,))
    (leaf,) = written(cache.leaves[name], *cache.position, new_BT, *places)
    return cache._replace(leaves=cache.leaves | {name: leaf})
