"""What a model keeps of the tokens it has read (docs/architecture.md §5, §6).

A Lightning layer keeps one state whatever the length; a softmax layer keeps keys and values, MLA only its latent.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model.layers import layer_plan
from ling_jax.model.mla import latent_width
from ling_jax.spec import Leaf, Spec, stack, zeros


@flax.struct.dataclass
class Cache:
    """Of B rows with room for S tokens each; a row's tokens take the slots 0, 1, … in order, padding takes none."""

    layers: Any  # {segment: {run: leaves of the layer's kind, stacked [repeats, count, B, …]}}
    length: jax.Array  # [B] int32 tokens that each row has
    room: int = flax.struct.field(pytree_node=False)  # S
    empty: bool = flax.struct.field(pytree_node=False)  # nothing to attend to yet: the first call is a plain forward


def cache_spec(config: ModelConfig, batch_size: int, max_length: int, dtype) -> Spec:
    """Every array of a cache but the lengths, with its logical axes."""
    c, wide = config, jnp.promote_types(dtype, jnp.float32)
    state = Leaf((batch_size, c.num_heads, c.head_dim, c.head_dim), ("batch", "heads", None, None), zeros, wide)
    heads = Leaf((batch_size, max_length, c.num_kv_heads, c.head_dim), ("batch", None, "kv_heads", None), zeros, dtype)
    kinds = {"lightning": {"state": state}, "gqa": {"key": heads, "value": heads}}
    if c.softmax == "mla":
        kinds["mla"] = {"latent": Leaf((batch_size, max_length, latent_width(c)), ("batch", None, None), zeros, dtype)}
    return {
        str(index): {
            name: stack(kinds[run.kind.mixer], (segment.repeats, run.count), (None, None))
            for name, run in segment.named_runs()
        }
        for index, segment in enumerate(layer_plan(config))
    }


def init_cache(config: ModelConfig, batch_size: int, max_length: int, *, dtype=None) -> Cache:
    """An empty cache for `batch_size` rows of at most `max_length` tokens.

    `dtype` is of keys, values and latents (None: the compute dtype); Lightning states are at least float32. Raises
    ValueError where `max_length` passes the model's context.
    """
    if not 1 <= max_length <= config.max_length:
        raise ValueError(f"max_length is {max_length}; the model's context is {config.max_length} tokens")
    spec = cache_spec(config, batch_size, max_length, jnp.dtype(dtype or config.compute_dtype))
    layers = specs.init(jax.random.key(0), spec)
    return Cache(layers=layers, length=jnp.zeros(batch_size, jnp.int32), room=max_length, empty=True)


def slots_of(cache: Cache, live_BT):
    """[B, T] where each live token goes; padding goes past every end."""
    return jnp.where(live_BT, cache.length[:, None] + jnp.cumsum(live_BT, axis=1, dtype=jnp.int32) - 1, 2**30)
