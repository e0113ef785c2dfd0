"""Which rows a kernel's steps multiply by which group's matrix.

Tiles of rows lie on a fixed raster; a tile that several groups share is visited once for each of them. So the steps are
at most the tiles of all rows and one more for each further group, and a group without rows has none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TILES = (512, 256, 128)  # rows; our choice: 512 read each matrix and each row seldom enough for the matrix units
TILE_BYTES = 8 * 2**20  # in VMEM, twice


class Plan(NamedTuple):
    """Of the S steps that there may be, the first `count` are."""

    group: jax.Array  # [S] int32
    tile: jax.Array  # [S] int32, never descending
    bounds: jax.Array  # [E + 1] int32: the rows of group e are bounds[e] to bounds[e + 1]
    count: jax.Array | int  # steps; an int is a grid that is known when the kernel is compiled


def row_tile(rows: int, groups: int, row_bytes: int) -> int:
    """The largest tile that a group's rows fill on average; a smaller one where groups are small wastes less."""
    fits = lambda tile: tile * groups <= rows and tile * row_bytes <= TILE_BYTES  # noqa: E731
    return next(filter(fits, TILES), TILES[-1])


def plan_steps(loads_E, rows: int, tile: int) -> Plan:
    """The steps over `rows` rows, of which `loads` [E] int32 belong to each group in turn and the last ones to none."""
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
