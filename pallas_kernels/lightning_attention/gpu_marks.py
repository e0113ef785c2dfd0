"""The documents in the chunks of the GPU kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.documents import document_ids

CHUNK = 64  # tokens; our choice: tiles of 128 columns fit in the shared memory of an sm_80; not timed


class Marks(NamedTuple):
    """Documents of rows of N chunks. `first` owns the state before a chunk, `last` the state after it."""

    docs: jax.Array  # [B, N * CHUNK] int32 document numbers, 0 for padding
    counts: jax.Array  # [B, N * CHUNK] int32 live tokens of the chunk up to this one
    first: jax.Array  # [B, N] int32
    last: jax.Array  # [B, N] int32
    total: jax.Array  # [B, N] int32 live tokens of the chunk


def marks_of(segment_ids: jax.Array | None, batch: int, length: int) -> Marks:
    """The marks of segment ids [B, T] (None: each row is one document), padded to whole chunks."""
    ids = jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids
    docs_BNC = document_ids(jnp.pad(ids, ((0, 0), (0, -length % CHUNK)))).reshape(batch, -1, CHUNK)
    counts_BNC = jnp.cumsum(docs_BNC > 0, axis=2, dtype=jnp.int32)
    last_BN = jnp.maximum(jax.lax.cummax(docs_BNC.max(axis=2), axis=1), 1)  # the initial state belongs to the first
    first_BN = jnp.pad(last_BN, ((0, 0), (1, 0)), constant_values=1)[:, :-1]

    def flat(x):
        return x.reshape(batch, -1)

    return Marks(flat(docs_BNC), flat(counts_BNC), first_BN, last_BN, counts_BNC[..., -1])


def rows_where(own_C: jax.Array, x: jax.Array) -> jax.Array:
    """x [C, D] with zeros where `own_C` is false, NaN included."""
    return jnp.where(own_C[:, None], x, jnp.zeros_like(x))
