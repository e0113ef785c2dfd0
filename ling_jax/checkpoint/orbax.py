"""Orbax checkpoints of a run: asynchronous saves, the newest whole one restored onto any mesh."""

import dataclasses
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ling_jax import spec as specs
from ling_jax.config import ModelConfig, Yarn
from ling_jax.model import model_spec


class DamagedCheckpoint(ValueError):
    """A checkpoint that is there and cannot be read."""


def open_manager(folder, *, keep: int) -> ocp.CheckpointManager:
    """Checkpoints below `folder` (any path of epath, gs:// too); the newest `keep` stay."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(epath.Path(folder).resolve(), options=options)  # it takes no relative path


def save(manager: ocp.CheckpointManager, step: int, state, model: ModelConfig) -> None:
    """Starts the save of a state under its step; returns when the arrays are copied."""
    meta = {"model": dataclasses.asdict(model)}
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))


def restore(manager: ocp.CheckpointManager, abstract_state, step: int | None = None):
    """The state of `step` (None: the newest), laid out as `abstract_state`'s shardings say.

    Raises DamagedCheckpoint where it cannot be read. Bytes that changed inside a file are not noticed: Orbax keeps no
    sums.
    """
    step = manager.latest_step() if step is None else step
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
    try:
        return manager.restore(step, args=arguments)["state"]
    except Exception as error:  # of many kinds, by what is damaged
        reason = (str(error).splitlines() or [""])[0][:200]
        older = [other for other in manager.all_steps() if other < step]
        advice = f"remove that folder to go on from {max(older)}" if older else "no older one is there"
        raise DamagedCheckpoint(
            f"{epath.Path(manager.directory) / str(step)} cannot be read: {type(error).__name__}: {reason}; {advice}"
        ) from error


def load_params(folder, step: int | None = None) -> tuple[Any, ModelConfig]:
    """(parameters on this host's default device, config) of a run's checkpoints folder.

    Raises FileNotFoundError where there is none.
    """
    folder = epath.Path(folder).resolve()
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise FileNotFoundError(f"{folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    config = config_from_json(meta["model"])
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = specs.tree_map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), model_spec(config)
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            folder / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item={"params": abstract},
                restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract}),
                partial_restore=True,
            ),
        )
    return restored["params"], config


def config_from_json(fields: dict[str, Any]) -> ModelConfig:
    scaling = fields.get("rope_scaling")
    return ModelConfig(**(fields | {"rope_scaling": Yarn(**scaling) if scaling else None}))
