"""The window of keys that a query attends to, and the blocks of keys in it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LOG_ZERO = -1e30  # log of zero weight; finite, so that differences are finite


class Window(NamedTuple):
    """Query t attends to keys first[t] … last[t]; both may lie outside of the existing keys."""

    first: jax.Array  # [B, T] int32
    last: jax.Array  # [B, T] int32


class Blocks(NamedTuple):
    """Half-open ranges of key blocks for each block of queries, [B, N] int32 each."""

    start: jax.Array  # blocks with a key of some query
    stop: jax.Array
    whole_start: jax.Array  # blocks whose keys every query attends to
    whole_stop: jax.Array


def document_window(docs_BT: jax.Array | None, shape_BT: tuple[int, int]) -> Window:
    """The causal window inside documents: each token and the earlier ones of its document; padding (0): itself only.

    docs [B, T] int32; None: each row is one document.
    """
    at_BT = jnp.broadcast_to(jnp.arange(shape_BT[1], dtype=jnp.int32), shape_BT)
    if docs_BT is None:
        return Window(jnp.zeros_like(at_BT), at_BT)
    begins_BT = (docs_BT == 0) | (docs_BT != jnp.pad(docs_BT, ((0, 0), (1, 0)))[:, :-1])
    return Window(lax.cummax(jnp.where(begins_BT, at_BT, 0), axis=1), at_BT)


def visible_blocks(window: Window, queries: int, keys: int, length: int) -> Blocks:
    """The Blocks for block sizes `queries` and `keys`; `length` is the number of keys."""
    first_BNC, last_BNC = (x.reshape(len(x), -1, queries) for x in window)
    blocks = Blocks(
        start=first_BNC.min(axis=2) // keys,
        stop=last_BNC.max(axis=2) // keys + 1,
        whole_start=-(-first_BNC.max(axis=2) // keys),
        whole_stop=(last_BNC.min(axis=2) + 1) // keys,
    )
    return Blocks(*(jnp.clip(x, 0, length // keys).astype(jnp.int32) for x in blocks))


def flat(*tables_BN: jax.Array) -> jax.Array:
    """The tables in one vector, the densest layout in scalar memory: table n's [b, i] is at (n B + b) N + i."""
    return jnp.concatenate([table.reshape(-1) for table in tables_BN])


def query_blocks(blocks: Blocks, count: int) -> tuple[jax.Array, jax.Array]:
    """(start, stop), [B, S] int32 each: the range of query blocks that attend to each of `count` key blocks."""
    at_S = jnp.arange(count)
    seen_BNS = (blocks.start[..., None] <= at_S) & (at_S < blocks.stop[..., None])
    start, behind = jnp.argmax(seen_BNS, axis=1), jnp.argmax(seen_BNS[:, ::-1], axis=1)
    stop = jnp.where(seen_BNS.any(axis=1), seen_BNS.shape[1] - behind, start)
    return start.astype(jnp.int32), stop.astype(jnp.int32)
