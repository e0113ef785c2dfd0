"""Weights as the engine serves them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.layers import serving_layers
from pallas_kernels.platform import platform

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
