"""Orbax checkpoints of a run: asynchronous saves, the newest whole one restored onto any mesh."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ling_jax import spec as specs
from ling_jax.checkpoint.nonfinite import count_nonfinite, report_nonfinite
from ling_jax.config import ModelConfig, Yarn
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import shardings

CHUNK_BYTES = 64 * 2**20  # our choice


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there and cannot be read."""


@dataclasses.dataclass(frozen=True)
class _Newest:
    """An Orbax policy: the newest `keep` checkpoints stay, and as many of those at multiples of `every`."""

    keep: int
    every: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = {*steps[-self.keep :], *[step for step in steps if step % self.every == 0][-self.keep :]}
        return [step in stay for step in steps]


def open_manager(folder, *, keep: int, every: int = 1) -> ocp.CheckpointManager:
    """Checkpoints below `folder` (any path of epath, gs:// too); the newest `keep` stay.

    So do as many at multiples of `every`: those that signals add in between push none of them out.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Newest(keep, every),
        create=True,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(epath.Path(folder).resolve(), options=options)  # it takes no relative path


def save(manager: ocp.CheckpointManager, step: int, state, model: ModelConfig, **records: dict[str, Any]) -> None:
    """Starts the save of a state under its step, with JSON objects by name; returns when the arrays are copied."""
    records = {"meta": {"model": dataclasses.asdict(model)}} | records
    items = {name: ocp.args.JsonSave(record) for name, record in records.items()}
    state_item = ocp.args.StandardSave(state, save_args=jax.tree_util.tree_map_with_path(_chunks, state))
    manager.save(step, args=ocp.args.Composite(state=state_item, **items))


def _chunks(path, leaf) -> ocp.SaveArgs:
    """Large leaves are stored layer by layer, so that one layer can be read without the others."""
    stacked = 2 if "segments" in (names := specs.path_name(path).split("/")) else int("mtp" in names)
    if stacked >= jnp.ndim(leaf):
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=tuple(range(stacked)))


def restore_record(manager: ocp.CheckpointManager, name: str) -> dict[str, Any]:
    """A JSON object that the newest checkpoint was saved with."""
    arguments = ocp.args.Composite(**{name: ocp.args.JsonRestore()})
    return manager.restore(manager.latest_step(), args=arguments)[name]


def restore(manager: ocp.CheckpointManager, abstract_state, step: int | None = None):
    """The state of `step` (None: the newest), laid out as `abstract_state`'s shardings say.

    Raises DamagedCheckpoint where it cannot be read. Bytes that changed inside a file are not noticed: Orbax keeps no
    sums.
    """
    step = manager.latest_step() if step is None else step
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
    older = [other for other in manager.all_steps() if other < step]
    advice = f"; remove that folder to go on from {max(older)}" if older else "; no older one is there"
    with _damage(epath.Path(manager.directory) / str(step), advice):
        return manager.restore(step, args=arguments)["state"]


def save_params(folder, params, model: ModelConfig) -> None:
    """Writes parameters alone as step 0 of a new checkpoints folder, which `load_params` reads."""
    with open_manager(folder, keep=1) as manager:
        if manager.latest_step() is not None:
            raise FileExistsError(f"{folder} holds checkpoints already; save into a new folder")
        save(manager, 0, {"params": params}, model)


def load_params(folder, step: int | None = None, *, mesh: jax.sharding.Mesh | None = None) -> tuple[Any, ModelConfig]:
    """(parameters as they are stored, config) of a run's checkpoints folder, on this host's first device or a mesh.

    Weights that are not finite are named on stderr. Raises FileNotFoundError where there is none, ValueError where the
    mesh cannot split a parameter, and DamagedCheckpoint where it cannot be read.
    """
    folder = epath.Path(folder).resolve()
    config, step = load_config(folder, step)
    state = folder / str(step) / "state"
    with _damage(state):
        # Not the checkpointer's own `metadata`: it warns of a file that only a checkpoint without a manager has.
        stored = ocp.PyTreeCheckpointHandler().metadata(state).tree["params"]
    abstract = {"params": _abstract(config, stored, mesh)}
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_by_itself())
    with ocp.Checkpointer(handler, multiprocessing_options=_by_itself()) as checkpointer, _damage(state):
        params = checkpointer.restore(state, args=arguments)["params"]
    report_nonfinite(state, {name: _count_nonfinite(leaf) for name, leaf in specs.named_leaves(params).items()})
    return params, config


def _count_nonfinite(leaf: jax.Array) -> int:
    """Of what this process holds, every element once."""
    return sum(count_nonfinite(np.asarray(s.data)) for s in leaf.addressable_shards if s.replica_id == 0)


@contextlib.contextmanager
def _damage(folder: epath.Path, advice: str = "") -> Iterator[None]:
    """Whatever goes wrong in the block, of many kinds by what is damaged, as DamagedCheckpoint."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DamagedCheckpoint(f"{folder} cannot be read: {type(error).__name__}: {reason}{advice}") from error


def load_config(folder, step: int | None = None) -> tuple[ModelConfig, int]:
    """(config, step) of a checkpoint, the newest where `step` is None.

    Raises FileNotFoundError where there is none, and DamagedCheckpoint where its record of the model cannot be read.
    """
    folder = epath.Path(folder).resolve()
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=_by_itself())
    with ocp.CheckpointManager(folder, options=options) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise FileNotFoundError(f"{folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        with _damage(folder / str(step) / "meta"):
            meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            return config_from_json(meta["model"]), step


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """For what a process reads without the others: it may be the only one that does."""
    host = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host_{host}"
    )


def _abstract(config: ModelConfig, stored, mesh: jax.sharding.Mesh | None):
    spec = model_spec(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = specs.tree_map(lambda leaf: device, spec) if mesh is None else shardings(spec, mesh)

    def leaf(declared, found, sharding):
        return jax.ShapeDtypeStruct(declared.shape, found.dtype, sharding=sharding)

    return specs.tree_map(leaf, spec, stored, placed)


def config_from_json(fields: dict[str, Any]) -> ModelConfig:
    """Raises an error of any kind where the fields are not those of a model."""
    if not isinstance(json.loads(fields.get("hf_source") or "{}"), dict):
        raise ValueError("hf_source is no JSON object")
    scaling = fields.get("rope_scaling")
    return ModelConfig(**(fields | {"rope_scaling": Yarn(**scaling) if scaling else None}))
