"""The facts about a batch of tokens that every layer needs: documents, padding, cache slots, rotary tables."""

from typing import NamedTuple

import jax

from ling_jax.model.rope import RopeTable

PAGE_SIZE = 16  # tokens; our choice: of short requests little is left empty, and it divides every chunk
PAST_END = 2**30  # a place past the end of any cache: what is written there is dropped


class ContextSplit(NamedTuple):
    """Facts about whole rows that a rank needs when the mesh axis `context` splits every row among R ranks."""

    docs: jax.Array  # [B, T] int32 document numbers of whole rows, the same on every rank
    between: jax.Array  # [B, R, R] int32 of `live_between`; each rank holds its own row


class Places(NamedTuple):
    """Where a cache stores tokens: [B, T] int32 each. A block past the end of the cache stores nothing (padding)."""

    block: jax.Array
    offset: jax.Array


class Pages(NamedTuple):
    """Rows whose tokens lie in pages of a pool, and how they share sequences (docs/engine.md).

    A mesh splits the rows, states and pages among D = `num_shards("batch")` parts: pages and states of a row are
    numbered in its own part. Without a mesh D is 1.
    """

    table: jax.Array  # [B, n] int32 pages of each row's sequence, in order; page 0 where it has none: that stays zero
    state: jax.Array  # [B] int32 place of each row's state
    fresh: jax.Array  # [B] bool: the row begins its sequence, the state before it is zero
    # [D] bool ([] where D is 1): no two rows of a part are of the same sequence; only rows of one token may share one.
    distinct: jax.Array


class TokenInfo(NamedTuple):
    """Built by `transformer.make_token_info`; the same for all layers."""

    docs: jax.Array | None  # [B, T] int32 document numbers, 0 for padding; None: each row is one document
    live: jax.Array  # [B, T] bool, false for padding
    places: Places | None  # in the cache; None without a cache
    last_visible: jax.Array | None  # [B, T] int32 position; None: the cache was empty, tokens see each other alone
    rope: RopeTable  # of Lightning and GQA heads
    rotation: RopeTable | None  # the same table as the Lightning layer's kernel wants it; None where it does not run
    latent_rope: RopeTable  # of MLA's rotated dims
    split: ContextSplit | None = None  # None: every device has whole rows
    pages: Pages | None = None  # None: each row of the cache is a sequence
