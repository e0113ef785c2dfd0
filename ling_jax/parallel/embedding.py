"""Embedding lookup on a sharded table."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from ling_jax.parallel.sharding import RULES, num_shards, one_device, partition_spec, token_axes


def look_up(table_WD: jax.Array, tokens_BT: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The table's rows of the tokens, [B, T, D] in `dtype`; table [W, D], tokens [B, T] integers.

    On a mesh each device stores some columns of some rows. For many tokens, a device gathers its columns of all rows,
    looks up the tokens of its `embed` neighbours and sends the results back: D numbers move per token, far fewer than
    the whole table has. For few tokens, each device looks them up in its own rows, and a sum joins the results.
    """
    if one_device():
        return table_WD.astype(dtype)[tokens_BT]
    axes = token_axes(tokens_BT.shape)
    tokens = PartitionSpec(*axes)

    def on_device(table_WD, tokens_BT):
        split = (*axes[0], *axes[1])
        few = tokens_BT.size * num_shards("embed") < len(table_WD)  # the rows that a device stores
        found = _from_rows if few else _from_table
        return found(table_WD, tokens_BT.reshape(-1), split, dtype).reshape(*tokens_BT.shape, -1)

    return jax.shard_map(
        on_device, in_specs=(partition_spec(("vocab", "embed")), tokens), out_specs=tokens, check_vma=False
    )(table_WD, tokens_BT)


def _from_table(table_WD, tokens_M, axes: tuple[str, ...], dtype):
    table_WD = jax.lax.all_gather(table_WD, RULES["vocab"], tiled=True)
    return _exchanged(lambda tokens_M: table_WD[tokens_M].astype(dtype), tokens_M, axes)


def _from_rows(table_WD, tokens_M, axes: tuple[str, ...], dtype):
    """Each device looks up the tokens of its vocabulary neighbours in its own rows; the results are summed."""
    others = tuple(axis for axis in RULES["vocab"] if axis in axes)
    same = tuple(axis for axis in RULES["vocab"] if axis not in axes)
    first = jax.lax.axis_index(RULES["vocab"]) * len(table_WD)

    def rows(tokens_M):
        at_M = tokens_M - first
        here_M1 = ((at_M >= 0) & (at_M < len(table_WD)))[:, None]
        return jnp.where(here_M1, table_WD[jnp.clip(at_M, 0, len(table_WD) - 1)], 0).astype(dtype)

    all_M = jax.lax.all_gather(tokens_M, others, tiled=True) if others else tokens_M
    x_MD = jax.lax.psum(_exchanged(rows, all_M, axes), same)
    return jax.lax.psum_scatter(x_MD, others, tiled=True) if others else x_MD


def _exchanged(find, tokens_M, axes: tuple[str, ...]):
    """[M, D] for a device's tokens, from the columns that `find` gives on each device; `axes` split the tokens."""
    embed = RULES["embed"]
    among = tuple(axis for axis in embed if axis in axes)
    columns_MD = find(jax.lax.all_gather(tokens_M, among, tiled=True) if among else tokens_M)
    if among == embed:
        return jax.lax.all_to_all(columns_MD, embed, split_axis=0, concat_axis=1, tiled=True)
    # Several devices hold the same tokens.
    x_MD = jax.lax.all_gather(columns_MD, embed, axis=1, tiled=True)
    first = jax.lax.axis_index(among) * len(tokens_M) if among else 0
    return jax.lax.dynamic_slice_in_dim(x_MD, first, len(tokens_M))
