"""The embedding's lookup where the table lies."""

import jax
from jax.sharding import PartitionSpec

from ling_jax.parallel.sharding import RULES, one_device, partition_spec, token_axes


def look_up(table_WD, tokens_BT, dtype):
    """[B, T, D] the tokens' rows of the table, in `dtype`.

    On a mesh every device has some columns of all rows. It looks all tokens of its neighbours up in these, and what
    it found goes back to whom it belongs: a token's width moves once, where the whole table would be many times that.
    """
    if one_device():
        return table_WD.astype(dtype)[tokens_BT]
    axes = token_axes(tokens_BT.shape)
    tokens = PartitionSpec(*axes)

    def on_device(table_WD, tokens_BT):
        table_WD = jax.lax.all_gather(table_WD, RULES["vocab"], tiled=True)
        x_MD = _exchanged(table_WD, tokens_BT.reshape(-1), (*axes[0], *axes[1]), dtype)
        return x_MD.reshape(*tokens_BT.shape, -1)

    return jax.shard_map(
        on_device, in_specs=(partition_spec(("vocab", "embed")), tokens), out_specs=tokens, check_vma=False
    )(table_WD, tokens_BT)


def _exchanged(table_WD, tokens_M, axes: tuple[str, ...], dtype):
    """[M, D] for the tokens of one device, which are others' along `axes`."""
    embed = RULES["embed"]
    among = tuple(axis for axis in embed if axis in axes)
    all_M = jax.lax.all_gather(tokens_M, among, tiled=True) if among else tokens_M
    columns_MD = table_WD[all_M].astype(dtype)
    if among == embed:
        return jax.lax.all_to_all(columns_MD, embed, split_axis=0, concat_axis=1, tiled=True)
    # Few tokens, the same on several devices.
    x_MD = jax.lax.all_gather(columns_MD, embed, axis=1, tiled=True)
    first = jax.lax.axis_index(among) * len(tokens_M) if among else 0
    return jax.lax.dynamic_slice_in_dim(x_MD, first, len(tokens_M))
