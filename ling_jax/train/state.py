"""The state of training, which a step changes, and its size."""

import math
import os
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax import spec as specs
from ling_jax.checkpoint.steps import newest_step
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import shardings
from ling_jax.paths import is_remote
from ling_jax.preflight import address_space_left, check_space, stored_bytes
from ling_jax.spec import Params
from ling_jax.train.spikes import SpikeHistory, empty_history


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # batches consumed: the data position
    skipped_steps: jax.Array  # those of them that changed nothing: their loss or gradient was not finite, or a spike
    params: Any
    opt_state: Any  # None where `params` are not trained


@flax.struct.dataclass
class GuardedState(TrainState):
    """The state of the training loop, which skips spikes (ling_jax.train.spikes)."""

    spikes: SpikeHistory


def create_state(params: Params, optimizer: optax.GradientTransformation, trainable: Any) -> TrainState:
    """The state before step 0; `trainable` is a tree of bools over the parameters."""
    trained, _ = specs.partition(params, trainable)
    step, skipped_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)  # two buffers, because both are donated
    return TrainState(step=step, skipped_steps=skipped_steps, params=params, opt_state=optimizer.init(trained))


def guarded(state: TrainState, spikes: SpikeHistory) -> GuardedState:
    """The state with this history."""
    return GuardedState(state.step, state.skipped_steps, state.params, state.opt_state, spikes)


def next_state(
    state: TrainState,
    optimizer: optax.GradientTransformationExtraArgs,
    grads: Params,
    trained: Params,
    frozen: Params,
    good: jax.Array,
) -> tuple[TrainState, Params]:
    """(the state after a step, the updates of the `trained` parameters by their gradients `grads`).

    `frozen` are the other parameters after the step. A step that is not `good` (a bool scalar) changes the two counts
    only, and its updates are 0.
    """
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, trained, good=good)
    after = state.replace(
        step=state.step + 1,
        skipped_steps=state.skipped_steps + ~good,
        params=specs.combine(optax.apply_updates(trained, updates), frozen),
        opt_state=opt_state,
    )
    return after, updates


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    trainable: Any = None,
    *,
    spike_window: int | None = 128,
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings; the optimiser's moments have those of their parameters.

    `trainable` is a tree of bools; None: all that the spec declares so. The optimiser has no state of other leaves.
    Without a `spike_window` the state is a plain TrainState, else a GuardedState.

    Raises ValueError where the mesh cannot split a parameter evenly.
    """
    spec = model_spec(config)
    trainable = specs.trainable(spec) if trainable is None else trainable

    def create(params) -> TrainState:
        state = create_state(params, optimizer, trainable)
        return state if spike_window is None else guarded(state, empty_history(spike_window))

    abstract = jax.eval_shape(create, specs.abstract(spec))
    by_path = {f"/{name}": sharding for name, sharding in specs.named_leaves(shardings(spec, mesh)).items()}
    replicated = NamedSharding(mesh, PartitionSpec())

    def placed(path, leaf):
        name = specs.path_name(path)
        owners = [parameter for parameter in by_path if name.endswith(parameter)]
        sharding = by_path[max(owners, key=len)] if owners and leaf.ndim else replicated
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, abstract)


def state_bytes(abstract: Any) -> int:
    """Bytes on one device of a tree of ShapeDtypeStructs with shardings."""
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    return sum(sizes)


def device_memory(mesh: jax.sharding.Mesh) -> float:
    """Bytes of a device of this host; infinity where the backend does not say.

    CPU devices share the machine's memory, or what `ulimit -v` leaves of it.
    """
    devices = mesh.local_devices
    if devices[0].platform == "cpu":
        return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), address_space_left()) / len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)


def check_memory(abstract: TrainState, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where a device of this host cannot hold its part of the state (`device_memory`)."""
    memory = device_memory(mesh)
    if (needed := state_bytes(abstract)) > memory:
        raise ValueError(
            f"not enough memory: parameters and optimizer take {needed / 1e9:.1f} GB of every device, which has "
            f"{memory / 1e9:.1f} GB; split them over more devices (mesh.fsdp, mesh.expert), or train a smaller model"
        )


def check_disk(abstract: TrainState, workdir: epath.Path, train: Any) -> None:
    """Raises OSError where the workdir's disk lacks space for the kept checkpoints and the one that is written.

    `train` is the config's. Sizes are without compression, which saves a little.
    """
    folder = workdir / "checkpoints"
    if is_remote(workdir) or newest_step(folder) >= train.steps:
        return
    each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    count = min(train.keep + 1, -(-train.steps // train.save_every))
    needed = max(each, count * each - stored_bytes([Path(folder)]))
    check_space(folder, needed, f"{count} checkpoints (train.keep and the one that is written)")
