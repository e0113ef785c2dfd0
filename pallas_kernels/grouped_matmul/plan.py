"""The steps of a grouped matmul: which tile of rows multiplies which group's matrix.

Tiles of rows are fixed; a tile with rows of several groups has one step for each of them. So there are at most as many
steps as tiles plus groups minus one, and a group without rows has none:

    tiles   |   0   |   1   |   2   |   3   |
    groups  |    0     | 1 |       2        |
    steps   (0, 0) (0, 1) (1, 1) (2, 1) (2, 2) (2, 3), each (group, tile)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TILES = (512, 256, 128)  # rows; our choice: with 512 the matrix units are the limit, not the reads of matrices and rows
TILE_BYTES = 8 * 2**20  # in VMEM, double-buffered


class Plan(NamedTuple):
    """At most S steps, of which the first `count` run."""

    group: jax.Array  # [S] int32
    tile: jax.Array  # [S] int32, ascending
    bounds: jax.Array  # [E + 1] int32: the rows of group e are bounds[e] to bounds[e + 1]
    count: jax.Array | int  # number of steps; an int if it is known at compile time


def row_tile(rows: int, groups: int, row_bytes: int) -> int:
    """Rows of a tile: the largest size that an average group fills, since small groups waste less in small tiles."""

    def fits(tile: int) -> bool:
        return tile * groups <= rows and tile * row_bytes <= TILE_BYTES

    return next(filter(fits, TILES), TILES[-1])


def plan_steps(loads_E: jax.Array, rows: int, tile: int) -> Plan:
    """The steps over `rows` rows: the first loads[0] belong to group 0, and so on; the last rows to no group.

    loads [E] int32, `tile` rows per tile.
    """
    ends_E = jnp.cumsum(loads_E, dtype=jnp.int32)
    starts_E = ends_E - loads_E
    tiles_E = (ends_E + tile - 1) // tile - starts_E // tile
    tiles_E = jnp.where(loads_E > 0, tiles_E, 0)
    last_step_E = jnp.cumsum(tiles_E, dtype=jnp.int32)
    steps_S = np.arange(-(-rows // tile) + len(loads_E), dtype=np.int32)
    group_S = jnp.sum(steps_S[:, None] >= last_step_E, axis=1, dtype=jnp.int32)
    group_S = jnp.minimum(group_S, len(loads_E) - 1)
    of_group_SE = group_S[:, None] == np.arange(len(loads_E))
    shift_S = jnp.sum(jnp.where(of_group_SE, starts_E // tile - (last_step_E - tiles_E), 0), axis=1, dtype=jnp.int32)
    bounds = jnp.concatenate([jnp.zeros(1, jnp.int32), ends_E])
    return Plan(group_S, jnp.minimum(steps_S + shift_S, (rows - 1) // tile), bounds, last_step_E[-1])
