"""The embedding's lookup where the table lies."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ling_jax.parallel.sharding import RULES, one_device, partition_spec, token_axes, ways


def look_up(table_WD, tokens_BT, dtype):
    """[B, T, D] the tokens' rows of the table, in `dtype`.

    On a mesh every device has some columns of some rows. For many tokens it gathers its columns of all rows, looks all
    tokens of its neighbours up in these, and what it found goes back to whom it belongs: a token's width moves once,
    where the whole table would be many times that. Few tokens go to the rows instead.
    """
    if one_device():
        return table_WD.astype(dtype)[tokens_BT]
    axes = token_axes(tokens_BT.shape)
    tokens = PartitionSpec(*axes)

    def on_device(table_WD, tokens_BT):
        split = (*axes[0], *axes[1])
        few = tokens_BT.size * ways("embed") < len(table_WD)  # of one part of the vocabulary
        found = _from_rows if few else _from_table
        return found(table_WD, tokens_BT.reshape(-1), split, dtype).reshape(*tokens_BT.shape, -1)

    return jax.shard_map(
        on_device, in_specs=(partition_spec(("vocab", "embed")), tokens), out_specs=tokens, check_vma=False
    )(table_WD, tokens_BT)


def _from_table(table_WD, tokens_M, axes: tuple[str, ...], dtype):
    table_WD = jax.lax.all_gather(table_WD, RULES["vocab"], tiled=True)
    return _exchanged(lambda tokens_M: table_WD[tokens_M].astype(dtype), tokens_M, axes)


def _from_rows(table_WD, tokens_M, axes: tuple[str, ...], dtype):
    """Every device looks the tokens of its neighbours along the vocabulary up in its rows, and the sum goes back."""
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
    """[M, D] for the tokens of one device, which are others' along `axes`, of the columns that each device finds."""
    embed = RULES["embed"]
    among = tuple(axis for axis in embed if axis in axes)
    columns_MD = find(jax.lax.all_gather(tokens_M, among, tiled=True) if among else tokens_M)
    if among == embed:
        return jax.lax.all_to_all(columns_MD, embed, split_axis=0, concat_axis=1, tiled=True)
    # Few tokens, the same on several devices.
    x_MD = jax.lax.all_gather(columns_MD, embed, axis=1, tiled=True)
    first = jax.lax.axis_index(among) * len(tokens_M) if among else 0
    return jax.lax.dynamic_slice_in_dim(x_MD, first, len(tokens_M))
