"""The programs of a run, compiled ahead of its first step, and its state at the start."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import data, model
from ling_jax import spec as specs
from ling_jax.checkpoint import orbax
from ling_jax.config import ModelConfig
from ling_jax.parallel.exchange import compiler_options
from ling_jax.parallel.sharding import batch_sharding, num_shards, partition_spec
from ling_jax.train.config import LoopConfig
from ling_jax.train.spikes import empty_history
from ling_jax.train.state import GuardedState, TrainState, create_state, guarded
from ling_jax.train.step import make_eval_step, make_train_step


def random_state(seed: int, config: ModelConfig, optimizer, abstract: GuardedState, trainable=None) -> GuardedState:
    """The state before step 0 with random parameters."""
    trainable = specs.trainable(model.model_spec(config)) if trainable is None else trainable
    return _first_state(lambda key: model.init(key, config), jax.random.key(seed), trainable, optimizer, abstract)


def state_of(params, config: ModelConfig, optimizer, abstract: GuardedState, trainable=None) -> GuardedState:
    """The state before step 0 with these parameters, as master weights: in the spec's dtypes, whatever was stored.

    Of arrays on the host each device gets its part alone.
    """
    wanted = jax.tree.map(lambda leaf: leaf.dtype, abstract.params)
    cast = lambda params: jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, wanted)  # noqa: E731
    params = jax.tree.map(_on_mesh, params, abstract.params)
    trainable = specs.trainable(model.model_spec(config)) if trainable is None else trainable
    return _first_state(cast, params, trainable, optimizer, abstract)


def restored_state(manager: orbax.Manager, abstract: GuardedState) -> GuardedState:
    """The state of the newest checkpoint.

    The history of spikes begins anew where its window is another, and in checkpoints of earlier versions.
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


def _first_state(make_params, argument, trainable, optimizer, abstract: GuardedState) -> GuardedState:
    """Made where it will lie."""
    window = abstract.spikes.values.shape[1]

    def create(argument) -> GuardedState:
        return guarded(create_state(make_params(argument), optimizer, trainable), empty_history(window))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # This program runs once. On a CPU its random numbers take LLVM longer to optimise than to draw.
    on_cpu = next(iter(jax.tree.leaves(shardings)[0].device_set)).platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(create, out_shardings=shardings, compiler_options=options)(argument)


def _on_mesh(leaf, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The leaf where it will lie. A jax array lies there already, or on one device of a small model."""
    if isinstance(leaf, jax.Array):
        return leaf
    return jax.make_array_from_callback(leaf.shape, wanted.sharding, lambda index: leaf[index])


def device_rows(rows: int, microbatches: int, mesh) -> int:
    """Rows with padding behind them, so that each microbatch splits evenly over the devices of the batch."""
    ways = microbatches * num_shards("batch", mesh)
    return -(-rows // ways) * ways


def host_rows(rows: int, mesh) -> np.ndarray:
    """Places in a batch of so many rows (`device_rows`) that this process's devices hold, in order."""
    by_row = jax.sharding.NamedSharding(mesh, partition_spec(("batch",)))
    held = by_row.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def _abstract_batch(mesh, rows: int, length: int):
    row = data.empty_row(1, 0)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct((rows, length), x.dtype, sharding=sharding) for name, x in row.items()}


def compile_train_step(
    config: ModelConfig, train: LoopConfig, length: int, optimizer, abstract: TrainState, mesh, trainable=None
):
    """`step(state, batch) -> (state, metrics)` as a program for rows of `length`; the state given to it is used up."""
    begun = time.perf_counter()
    compiled = lower_train_step(config, train, length, optimizer, abstract, mesh, trainable).compile()
    memory = compiled.memory_analysis()
    scratch = f", {memory.temp_size_in_bytes / 1e9:.2f} GB of scratch memory" if memory else ""
    print(f"compiled the training step in {time.perf_counter() - begun:.1f} s{scratch}", flush=True)
    return compiled


def lower_train_step(
    config: ModelConfig, train: LoopConfig, length: int, optimizer, abstract: TrainState, mesh, trainable=None
):
    """The program of `compile_train_step`, not yet compiled; the devices of the mesh need not be here."""
    step = make_train_step(
        config,
        optimizer,
        microbatches=train.microbatches,
        router_bias_rate=train.router_bias_rate,
        trainable=trainable,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh):
        options = compiler_options(mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
        return jitted.lower(
            abstract, _abstract_batch(mesh, device_rows(train.batch_size, train.microbatches, mesh), length)
        )


def compile_eval_step(config: ModelConfig, train: LoopConfig, length: int, abstract: TrainState, mesh):
    """`step(params, batch) -> LossSums` as a program, of a microbatch's rows."""
    rows = device_rows(train.batch_size // train.microbatches, 1, mesh)
    batch = _abstract_batch(mesh, rows, length)
    with jax.set_mesh(mesh):
        jitted = jax.jit(make_eval_step(config), compiler_options=compiler_options(mesh))
        return jitted.lower(abstract.params, batch).compile()
