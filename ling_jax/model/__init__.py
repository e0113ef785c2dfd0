"""The model as pure functions over nested dicts of arrays: `init`, `forward`, `loss`, decoding with a cache.

Axis letters of array names and einsums: B batch, T tokens, S keys' tokens, D model, H heads, G key/value heads of
GQA, K key dim, V value dim, W vocabulary, R latent rank, E experts, k chosen experts, F ffn, C chunk, N chunks,
L layers.
"""

from ling_jax.model.cache import Cache as Cache
from ling_jax.model.cache import init_cache as init_cache
from ling_jax.model.layers import layer_plan as layer_plan
from ling_jax.model.transformer import ForwardOutput as ForwardOutput
from ling_jax.model.transformer import forward as forward
from ling_jax.model.transformer import forward_with_cache as forward_with_cache
from ling_jax.model.transformer import init as init
from ling_jax.model.transformer import loss as loss
from ling_jax.model.transformer import model_spec as model_spec
