"""Weights as the engine serves them."""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.layers import serving_layers
from pallas_kernels.platform import platform

BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # by bytes of a number
PRIME = 16_777_619
UNROLLED_LAYERS = 16  # our choice: of models with more the programs would take minutes to compile


def serving_dtype(leaf: specs.Leaf, config: ModelConfig) -> DTypeLike:
    """The dtype in which generation reads the leaf: the compute dtype; of head, router, biases at least their own."""
    return jnp.promote_types(leaf.dtype, config.compute_dtype) if leaf.is_wide else config.compute_dtype


def served_spec(config: ModelConfig) -> specs.Spec:
    """Spec of the parameters that generation reads: without MTP modules."""
    return {name: leaves for name, leaves in model_spec(config).items() if name != "mtp"}


def serving_copy(params: Any, config: ModelConfig) -> Any:
    """A copy of the parameters on the first device, in the dtypes of `serving_dtype`, MTP modules left out.

    Raises ValueError where names, shapes or numbers are not those of a model of this config.
    """
    params, spec, device = served(params, config), served_spec(config), jax.devices()[0]

    def copied(leaf: specs.Leaf, x):
        return jax.device_put(jnp.array(x, serving_dtype(leaf, config), copy=True), device)

    copy = specs.tree_map(copied, spec, params)
    check_finite(copy)
    return copy


def served(params: Any, config: ModelConfig) -> Any:
    """Those of the parameters that generation reads. Raises ValueError where names or shapes are not the model's."""
    params = {name: leaves for name, leaves in params.items() if name != "mtp"}
    declared, given = specs.named_leaves(served_spec(config)), specs.named_leaves(params)
    if unknown := declared.keys() ^ given.keys():
        raise ValueError(f"the weights do not fit the model: {sorted(unknown)[0]} is in one of them only")
    for name, leaf in declared.items():
        if jnp.shape(given[name]) != leaf.shape:
            raise ValueError(f"weight {name} has shape {jnp.shape(given[name])}; the model's is {leaf.shape}")
    return params


def check_finite(copy: Any) -> None:
    """Raises ValueError where a weight has a value that is not finite."""
    finite = _finite(copy)
    if not all(jax.device_get(jax.tree.leaves(finite))):
        bad = next(name for name, fine in specs.named_leaves(finite).items() if not fine)
        raise ValueError(f"weight {bad} has a value that is not finite; the weights before stay loaded")


def digest(params: Any) -> str:
    """32 hexadecimal digits that depend on each bit of the weights and its place, not on where they lie."""
    return _of_sums(_sums(params))


def cast_digest(params: Any, config: ModelConfig) -> str:
    """The digest that these parameters, those of `served_spec`, have in the dtypes of `serving_dtype`."""
    return _of_sums(_sums_of_cast(params, config))


def decoding_copy(params: Any, config: ModelConfig) -> Any:
    """A `serving_copy` for decoding with a cache: on a CPU, models of few layers have that of `serving_layers`."""
    copy = serving_copy(params, config)
    if platform() == "cpu" and config.num_layers <= UNROLLED_LAYERS:
        return copy | {"segments": _serving_layers(copy["segments"], config)}
    return copy


_serving_layers = jax.jit(serving_layers, static_argnums=1)


@jax.jit
def _finite(params):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)


def _of_sums(sums: Any) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name, value in specs.named_leaves(jax.device_get(sums)).items():
        whole.update(f"{name} {int(value)}\n".encode())
    return whole.hexdigest()


@functools.partial(jax.jit, static_argnums=1)
def _sums_of_cast(params, config: ModelConfig):
    return _sums(specs.tree_map(lambda leaf, x: x.astype(serving_dtype(leaf, config)), served_spec(config), params))


@jax.jit
def _sums(params):
    """Of each leaf a uint32: the sum of its bits, each number times an odd one that its place makes."""

    def of_leaf(x):
        bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize]).astype(jnp.uint32)
        if x.dtype.itemsize == 8:  # two numbers each
            bits = bits.sum(-1, dtype=jnp.uint32)
        place = jnp.uint32(0)
        for axis in range(x.ndim):
            place = place * jnp.uint32(PRIME) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(of_leaf, params)
