"""The facts about a batch of tokens that every layer needs: documents, padding, cache slots, rotary tables."""

from typing import NamedTuple

import jax

from ling_jax.model.rope import RopeTable


class ContextSplit(NamedTuple):
    """Facts about whole rows that a rank needs when the mesh axis `context` splits every row among R ranks."""

    docs: jax.Array  # [B, T] int32 document numbers of whole rows, the same on every rank
    between: jax.Array  # [B, R, R] int32 of `live_between`; each rank holds its own row


class TokenInfo(NamedTuple):
    """Built by `transformer.make_token_info`; the same for all layers."""

    docs: jax.Array | None  # [B, T] int32 document numbers, 0 for padding; None: each row is one document
    live: jax.Array  # [B, T] bool, false for padding
    slots: jax.Array | None  # [B, T] int32 cache slot of each token; None without a cache
    last_visible_slot: jax.Array | None  # [B, T] int32; None: the cache was empty, tokens attend to each other alone
    rope: RopeTable  # of Lightning and GQA heads
    rotation: RopeTable | None  # the same table as the Lightning layer's kernel wants it; None where it does not run
    latent_rope: RopeTable  # of MLA's rotated dims
    split: ContextSplit | None = None  # None: every device has whole rows
