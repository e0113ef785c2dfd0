"""The decoding cache (docs/architecture.md §5, §6).

A Lightning layer stores one state of fixed size, a GQA layer stores keys and values, an MLA layer its latents.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model.layers import MIXERS, layer_plan
from ling_jax.model.mixer import CacheSizes
from ling_jax.model.token_info import PAGE_SIZE, PAST_END
from ling_jax.spec import Spec, stack


@flax.struct.dataclass
class Cache:
    """A cache of B rows of at most S tokens. The tokens of a row fill slots 0, 1, … in order; padding fills none."""

    layers: Any  # {segment: {run: leaves of the layer's kind, stacked [repeats, count, B, …]}}
    length: jax.Array  # [B] int32 tokens stored so far
    max_length: int = flax.struct.field(pytree_node=False)  # S
    empty: bool = flax.struct.field(pytree_node=False)  # no token is stored yet: the next call needs no cached keys


def cache_spec(config: ModelConfig, batch_size: int, max_length: int, dtype: DTypeLike) -> Spec:
    """Spec of a cache's arrays without the lengths.

    Keys, values and latents have `dtype`, Lightning states at least float32.
    """
    return layers_cache_spec(config, CacheSizes(batch_size, batch_size, max_length, dtype))


def layers_cache_spec(config: ModelConfig, sizes: CacheSizes) -> Spec:
    """{segment: {run: what its kind of layer stores, leaves stacked [repeats, count, …]}}."""
    return {
        str(index): {
            name: stack(MIXERS[run.kind.mixer].cache_spec(config, sizes), (segment.repeats, run.count), (None, None))
            for name, run in segment.named_runs()
        }
        for index, segment in enumerate(layer_plan(config))
    }


def pool_spec(config: ModelConfig, *, states: int, pages: int) -> Spec:
    """Spec of a pool's arrays: so many sequences' states and pages of `PAGE_SIZE` tokens (`forward_with_pages`)."""
    return layers_cache_spec(config, CacheSizes(states, pages, PAGE_SIZE, config.compute_dtype))


def init_cache(config: ModelConfig, batch_size: int, max_length: int, *, dtype: DTypeLike | None = None) -> Cache:
    """An empty cache for `batch_size` rows of at most `max_length` tokens.

    Keys, values and latents have `dtype` (None: the compute dtype), Lightning states at least float32. Raises
    ValueError if `max_length` exceeds the context of the model.
    """
    if not 1 <= max_length <= config.max_length:
        raise ValueError(f"max_length is {max_length}; the model's context is {config.max_length} tokens")
    spec = cache_spec(config, batch_size, max_length, jnp.dtype(dtype or config.compute_dtype))
    layers = specs.init(jax.random.key(0), spec)
    return Cache(layers=layers, length=jnp.zeros(batch_size, jnp.int32), max_length=max_length, empty=True)


def slots_of(cache: Cache, live_BT: jax.Array) -> jax.Array:
    """[B, T] int32 slot of each live token; padding gets one past the end of any cache."""
    return jnp.where(live_BT, cache.length[:, None] + jnp.cumsum(live_BT, axis=1, dtype=jnp.int32) - 1, PAST_END)
