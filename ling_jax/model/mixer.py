"""What a kind of sequence mixing consists of; `layers.MIXERS` has one record for each kind."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from ling_jax.config import ModelConfig
from ling_jax.model.layer_cache import LayerCache
from ling_jax.model.token_info import TokenInfo
from ling_jax.spec import Params, Spec


class CacheSizes(NamedTuple):
    """What a layer's part of a cache has room for. `model.init_cache` has one block for each sequence."""

    sequences: int
    blocks: int  # of tokens
    block_size: int
    dtype: DTypeLike  # of what is stored for each token; states are in at least float32


def no_constants(config: ModelConfig) -> dict[str, np.ndarray]:
    """The constants of a kind that has none."""
    del config
    return {}


def as_stored(params: Params, config: ModelConfig) -> Params:
    """The weights of a kind that serves them as they are."""
    del config
    return params


class Mixer(NamedTuple):
    """A kind of layer, without its feed-forward part.

    `forward(params, x, info, cache, config)` is the mixer of the layer's normed input x [B, T, D]: (y [B, T, D], the
    cache with these tokens or None). `params` hold the leaves of `spec` and this layer's part of `constants`.
    """

    spec: Callable[[ModelConfig], Spec]
    forward: Callable[
        [Params, jax.Array, TokenInfo, LayerCache | None, ModelConfig], tuple[jax.Array, LayerCache | None]
    ]
    cache_spec: Callable[[ModelConfig, CacheSizes], Spec]  # of one layer
    flops: Callable[[ModelConfig, int], float]  # training FLOPs of a token in rows of this length, matmul weights apart
    constants: Callable[[ModelConfig], dict[str, np.ndarray]] = no_constants  # {name: [L, …]}, one entry for each layer
    serve: Callable[[Params, ModelConfig], Params] = as_stored  # a layer's weights as a CPU decodes by them fastest
