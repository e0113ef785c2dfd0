"""Rows of a tile on a mesh: split for the layers by their part, for draws over all devices (docs/engine.md).

For the layers, a device has the rows of its part. To draw, it has fewer rows and their logits of the whole vocabulary:
softmax, sort and noise of a row are then computed as on one device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ling_jax.model.loss import head_logits
from ling_jax.parallel.sharding import RULES, constrain, num_shards, one_device, partition_spec

MESH_ROWS = *RULES["batch"], "tensor"  # the axes that split the rows to draw


def of_parts(arrays_N: Any) -> Any:
    """The arrays [N, …] with each part's rows on the devices of that part."""
    return jax.tree.map(lambda x: constrain(x, ("batch", *[None] * (x.ndim - 1))), arrays_N)


def on_all(arrays: Any) -> Any:
    """The arrays whole on every device."""
    return jax.tree.map(lambda x: constrain(x, (None,) * x.ndim), arrays)


def draw_axes(rows: int) -> tuple[str, ...]:
    """The axes of the mesh in scope that split `rows` rows to draw: also `tensor`, where it does so evenly."""
    per_part = rows // num_shards("batch")
    return MESH_ROWS if per_part % num_shards("heads") == 0 else RULES["batch"]


def row_logits(head_DW: jax.Array, hidden_ND: jax.Array) -> jax.Array:
    """Logits [N, W], split by `draw_axes`, of hidden states of parts.

    A device multiplies by its own columns of the head, for all rows of its `expert` neighbours, and sends each row's
    logits to the device that draws it.
    """
    if one_device():
        return head_logits(head_DW, hidden_ND[:, None])[:, 0]
    axes = draw_axes(len(hidden_ND))

    def on_device(head_DW, hidden_ND):
        hidden_ND = jax.lax.all_gather(hidden_ND, "expert", tiled=True)
        logits_NW = head_logits(head_DW, hidden_ND[:, None])[:, 0]
        if axes == MESH_ROWS:
            return jax.lax.all_to_all(logits_NW, RULES["vocab"], split_axis=0, concat_axis=1, tiled=True)
        logits_NW = jax.lax.all_gather(logits_NW, "tensor", axis=1, tiled=True)
        return jax.lax.all_to_all(logits_NW, "expert", split_axis=0, concat_axis=1, tiled=True)

    in_specs = partition_spec(("embed", "vocab")), partition_spec(("batch", None))
    return jax.shard_map(on_device, in_specs=in_specs, out_specs=PartitionSpec(axes), check_vma=False)(
        head_DW, hidden_ND
    )


def by_rows(function: Callable[..., Any], logits_NW: jax.Array, *arrays_N: Any) -> Any:
    """`function(logits, *arrays)` on the devices that draw; all arrays, and those returned, are [N, …]."""
    if one_device():
        return function(logits_NW, *arrays_N)
    split = PartitionSpec(draw_axes(len(logits_NW)))
    in_specs = (split,) * (1 + len(arrays_N))
    return jax.shard_map(function, in_specs=in_specs, out_specs=split, check_vma=False)(logits_NW, *arrays_N)


def hold(held_XW: jax.Array, place_N: jax.Array, logits_NW: jax.Array) -> jax.Array:
    """`held` with the rows' logits in these places; a place past the end is dropped."""
    if one_device():
        return held_XW.at[place_N].set(logits_NW, mode="drop")
    axes = draw_axes(len(logits_NW))

    def on_device(held_XW, place_N, logits_NW):
        own_XW = jnp.zeros_like(held_XW).at[place_N].set(logits_NW, mode="drop")
        given_X = jnp.zeros(len(held_XW), jnp.int32).at[place_N].set(1, mode="drop")
        new_XW, given_X = jax.lax.psum((own_XW, given_X), axes)
        return jnp.where(given_X[:, None] > 0, new_XW, held_XW)

    split, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(on_device, in_specs=(whole, split, split), out_specs=whole, check_vma=False)(
        held_XW, place_N, logits_NW
    )
