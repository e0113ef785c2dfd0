"""All that a step changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import partition_spec, shardings


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # batches consumed: the data position
    bad_steps: jax.Array  # of them, those whose loss or gradient was not finite and that changed nothing
    params: Any
    opt_state: Any  # None where `params` are not trained


def create_state(params, optimizer: optax.GradientTransformation, trainable) -> TrainState:
    """The state before step 0; `trainable` is a tree of bools over the parameters."""
    trained, _ = specs.partition(params, trainable)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(step=zero, bad_steps=zero, params=params, opt_state=optimizer.init(trained))


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """NamedShardings of the whole state; the optimiser's moments lie as their parameters do."""
    spec = model_spec(config)
    params = shardings(spec, mesh)
    abstract = jax.eval_shape(lambda p: create_state(p, optimizer, specs.trainable(spec)), specs.abstract(spec))
    by_path = {name: partition_spec(leaf.axes) for name, leaf in specs.named_leaves(spec).items()}
    replicated = NamedSharding(mesh, PartitionSpec())

    def moment(path, leaf):
        name = specs.path_name(path)
        found = [axes for parameter, axes in by_path.items() if name.endswith("/" + parameter)]
        return NamedSharding(mesh, max(found, key=len)) if found and leaf.ndim else replicated

    opt_state = jax.tree_util.tree_map_with_path(moment, abstract.opt_state)
    return TrainState(step=replicated, bad_steps=replicated, params=params, opt_state=opt_state)
