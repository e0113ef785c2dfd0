"""Which keys a query sees, and which blocks of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LEAST = -1e30  # the logarithm of no weight at all; finite, so that differences are


class Window(NamedTuple):
    """Query t sees the keys first[t] to last[t]; either may lie outside of the keys that there are."""

    first: jax.Array  # [B, T] int32
    last: jax.Array  # [B, T] int32


class Blocks(NamedTuple):
    """[B, N] int32 each: blocks of keys of every block of queries, from one up to before another."""

    start: jax.Array  # that some query sees some key of
    stop: jax.Array
    whole_start: jax.Array  # that every query sees every key of
    whole_stop: jax.Array


def document_window(docs_BT, shape_BT: tuple[int, int]) -> Window:
    """Each token sees itself and the earlier of its document, of the row where `docs` is None; padding (0) itself."""
    at_BT = jnp.broadcast_to(jnp.arange(shape_BT[1], dtype=jnp.int32), shape_BT)
    if docs_BT is None:
        return Window(jnp.zeros_like(at_BT), at_BT)
    begins_BT = (docs_BT == 0) | (docs_BT != jnp.pad(docs_BT, ((0, 0), (1, 0)))[:, :-1])
    return Window(lax.cummax(jnp.where(begins_BT, at_BT, 0), axis=1), at_BT)


def seen_blocks(window: Window, queries: int, keys: int, length: int) -> Blocks:
    """Of blocks of so many queries and keys; `length` is that of all keys."""
    first_BNC, last_BNC = (x.reshape(len(x), -1, queries) for x in window)
    blocks = Blocks(
        start=first_BNC.min(axis=2) // keys,
        stop=last_BNC.max(axis=2) // keys + 1,
        whole_start=-(-first_BNC.max(axis=2) // keys),
        whole_stop=(last_BNC.min(axis=2) + 1) // keys,
    )
    return Blocks(*(jnp.clip(x, 0, length // keys).astype(jnp.int32) for x in blocks))


def flat(*tables_BN):
    """All in one row of scalars, as their memory has room for most: table n's [b, i] is at (n B + b) N + i."""
    return jnp.concatenate([table.reshape(-1) for table in tables_BN])


def seen_by(blocks: Blocks, count: int):
    """(start, stop), [B, S] each: the blocks of queries between which all lie that see a block of keys."""
    at_S = jnp.arange(count)
    seen_BNS = (blocks.start[..., None] <= at_S) & (at_S < blocks.stop[..., None])
    start, behind = jnp.argmax(seen_BNS, axis=1), jnp.argmax(seen_BNS[:, ::-1], axis=1)
    stop = jnp.where(seen_BNS.any(axis=1), seen_BNS.shape[1] - behind, start)
    return start.astype(jnp.int32), stop.astype(jnp.int32)
