"""The programs of a run, compiled ahead of its first step, and its state at the start."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ling_jax import data, model
from ling_jax import spec as specs
from ling_jax.checkpoint import orbax
from ling_jax.config import ModelConfig
from ling_jax.parallel.exchange import compiler_options
from ling_jax.parallel.sharding import batch_sharding, num_shards, partition_spec
from ling_jax.spec import Params
from ling_jax.train.config import LoopConfig
from ling_jax.train.spikes import empty_history
from ling_jax.train.state import GuardedState, TrainState, create_state, guarded
from ling_jax.train.step import make_eval_step, make_train_step


def random_state(
    seed: int,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    abstract: GuardedState,
    trainable: Any = None,
) -> GuardedState:
    """The state before step 0 with random parameters, laid out as `abstract` says.

    `trainable` is a tree of bools; None: all parameters that the spec declares so.
    """
    trainable = specs.trainable(model.model_spec(config)) if trainable is None else trainable
    return _first_state(lambda key: model.init(key, config), jax.random.key(seed), trainable, optimizer, abstract)


def state_of(
    params: Params,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    trainable: Any = None,
) -> TrainState:
    """`random_state` with these parameters as master weights, cast to the spec's dtypes.

    Of parameters on the host each device gets its part only.
    """
    wanted = jax.tree.map(lambda leaf: leaf.dtype, abstract.params)

    def cast(params: Params) -> Params:
        return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, wanted)

    params = jax.tree.map(_on_mesh, params, abstract.params)
    trainable = specs.trainable(model.model_spec(config)) if trainable is None else trainable
    return _first_state(cast, params, trainable, optimizer, abstract)


def restored_state(manager: orbax.Manager, abstract: GuardedState) -> GuardedState:
    """The state of the newest checkpoint.

    The history of spikes is empty if the window has changed, or if the checkpoint's version had no history.
    Raises DamagedCheckpoint where it cannot be read.
    """
    wanted, (_, found) = abstract.spikes.values.shape[1], orbax.stored_shapes(manager).get("spikes/values", (2, 0))
    if wanted == found:
        return orbax.restore(manager, abstract)
    empty = jax.device_put(empty_history(wanted), abstract.step.sharding)
    if not found:
        earlier = TrainState(abstract.step, abstract.skipped_steps, abstract.params, abstract.opt_state)
        return guarded(orbax.restore(manager, earlier), empty)
    values = jax.ShapeDtypeStruct((2, found), jnp.float32, sharding=abstract.step.sharding)
    state = orbax.restore(manager, abstract.replace(spikes=abstract.spikes.replace(values=values)))
    return state.replace(spikes=empty.replace(skipped=state.spikes.skipped))


def _first_state(make_params, argument, trainable, optimizer, abstract: TrainState) -> TrainState:
    """The state before step 0, computed directly on the devices where it stays."""

    def create(argument) -> TrainState:
        state = create_state(make_params(argument), optimizer, trainable)
        return guarded(state, empty_history(abstract.spikes.values.shape[1])) if is_guarded else state

    is_guarded = isinstance(abstract, GuardedState)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # This program runs once, and on a CPU LLVM takes longer to optimise it than it runs.
    on_cpu = next(iter(jax.tree.leaves(shardings)[0].device_set)).platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(create, out_shardings=shardings, compiler_options=options)(argument)


def _on_mesh(leaf, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The leaf on the mesh. A jax array is there already, or on the one device of a small model."""
    if isinstance(leaf, jax.Array):
        return leaf
    return jax.make_array_from_callback(leaf.shape, wanted.sharding, lambda index: leaf[index])


def device_rows(rows: int, microbatches: int, mesh: jax.sharding.Mesh) -> int:
    """Number of rows with padding, such that each microbatch splits evenly over the devices of the batch axis."""
    multiple = microbatches * num_shards("batch", mesh)
    return -(-rows // multiple) * multiple


def host_rows(rows: int, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Indices [n], ascending, of the rows that this process's devices hold of a batch of `rows` (`device_rows`)."""
    by_row = jax.sharding.NamedSharding(mesh, partition_spec(("batch",)))
    held = by_row.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def _abstract_batch(mesh, rows: int, length: int):
    row = data.empty_row(1, 0)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((rows, length), x.dtype, sharding=sharding) for name, x in row.items()}


def compile_train_step(
    config: ModelConfig,
    train: LoopConfig,
    length: int,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: jax.sharding.Mesh,
    trainable: Any = None,
) -> jax.stages.Compiled:
    """The compiled program `step(state, batch) -> (state, metrics)` for rows of `length`; it donates the state."""
    begun = time.perf_counter()
    compiled = lower_train_step(config, train, length, optimizer, abstract, mesh, trainable).compile()
    memory = compiled.memory_analysis()
    scratch = f", {memory.temp_size_in_bytes / 1e9:.2f} GB of scratch memory" if memory else ""
    print(f"compiled the training step in {time.perf_counter() - begun:.1f} s{scratch}", flush=True)
    return compiled


def lower_train_step(
    config: ModelConfig,
    train: LoopConfig,
    length: int,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: jax.sharding.Mesh,
    trainable: Any = None,
) -> jax.stages.Lowered:
    """The program of `compile_train_step` before compilation; the devices of the mesh may be absent."""
    step = make_train_step(
        config,
        optimizer,
        microbatches=train.microbatches,
        router_bias_rate=train.router_bias_rate,
        trainable=trainable,
    )
    batch = _abstract_batch(mesh, device_rows(train.batch_size, train.microbatches, mesh), length)
    return lower_step(step, abstract, batch, mesh)


def lower_step(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
    """The program of `step(state, batch) -> (state, metrics)` before compilation; it donates the state.

    `state` and `batch` are trees of ShapeDtypeStructs with shardings.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(mesh):
        options = compiler_options(mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
        return jitted.lower(state, batch)


def compile_eval_step(
    config: ModelConfig, train: LoopConfig, length: int, abstract: TrainState, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
    """The compiled program `step(params, batch) -> LossSums` for as many rows as a microbatch has."""
    rows = device_rows(train.batch_size // train.microbatches, 1, mesh)
    batch = _abstract_batch(mesh, rows, length)
    with jax.set_mesh(mesh):
        jitted = jax.jit(make_eval_step(config), compiler_options=compiler_options(mesh))
        return jitted.lower(abstract.params, batch).compile()
