"""Orbax checkpoints of a run: saved asynchronously, and restored onto any mesh."""

import asyncio
import contextlib
import dataclasses
import fnmatch
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ling_jax import spec as specs
from ling_jax.checkpoint import chunks, manifest, steps
from ling_jax.checkpoint.failed_saves import Manager
from ling_jax.checkpoint.failed_saves import SaveFailed as SaveFailed
from ling_jax.checkpoint.manifest import META_FILE
from ling_jax.checkpoint.manifest import DamagedCheckpoint as DamagedCheckpoint
from ling_jax.checkpoint.nonfinite import count_nonfinite, report_nonfinite
from ling_jax.config import RENAMED_FIELDS, ModelConfig, Yarn
from ling_jax.distributed.peers import ALONE, Peers, all_peers
from ling_jax.files import read_object
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import shardings
from ling_jax.paths import is_remote, resolved
from ling_jax.spec import Params

RENAMED_LEAVES = {"bad_steps": "skipped_steps"}  # name in older checkpoints -> field of the state


@dataclasses.dataclass(frozen=True)
class _Newest:
    """An Orbax policy that keeps the newest `keep` checkpoints, and the newest `keep` at multiples of `every`."""

    keep: int
    every: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        found = [checkpoint.step for checkpoint in checkpoints]
        stay = {*found[-self.keep :], *[step for step in found if step % self.every == 0][-self.keep :]}
        return [step in stay for step in found]


class _WithManifest(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """An Orbax folder that gets its name when everything is written, the manifest last.

    Process 0 ends a save. The others sum their files in a thread that `save` starts.
    """

    by_itself = False

    @classmethod
    def from_final(cls, final_path, *, checkpoint_metadata_store=None, **options):
        path = super().from_final(final_path, checkpoint_metadata_store=checkpoint_metadata_store, **options)
        path.metadata_store = checkpoint_metadata_store
        return path

    async def finalize(self) -> None:
        await asyncio.to_thread(self._finalize)

    def _finalize(self) -> None:
        if self.metadata_store is not None:
            self.metadata_store.wait_until_finished()  # nothing may be written after the manifest
        folder, final = Path(self.get()), Path(self.get_final())
        (folder / ocp.path.atomicity.COMMIT_SUCCESS_FILE).write_text("This checkpoint is whole.\n")
        if (folder / META_FILE).exists():  # a step, not one of its items
            manifest.write_of_save(folder, ALONE if self.by_itself else all_peers())
        folder.rename(final)
        manifest.flush_folder(final.parent)


class _WithOwnManifest(_WithManifest):
    """The folder of one process among several that saves without the others."""

    by_itself = True


class _InStore(ocp.path.atomicity.CommitFileTemporaryPath):
    """An Orbax folder in a store, which renames no folder: the manifest is written last, before the commit file."""

    by_itself = False

    async def finalize(self) -> None:
        await asyncio.to_thread(self._finalize)

    def _finalize(self) -> None:
        folder = self.get()
        if self._checkpoint_metadata_store is not None:
            self._checkpoint_metadata_store.wait_until_finished()  # nothing may be written after the manifest
        if (folder / META_FILE).exists():  # a step, not one of its items
            manifest.write_of_save(folder, ALONE if self.by_itself else all_peers())
        (folder / ocp.path.atomicity.COMMIT_SUCCESS_FILE).write_text("This checkpoint is whole.\n")


class _OwnInStore(_InStore):
    """The folder of one process among several that saves without the others."""

    by_itself = True


def open_manager(folder: epath.PathLike, *, keep: int, every: int = 1, by_itself: bool = False) -> Manager:
    """The manager of the checkpoints below `folder`, which keeps the newest `keep`.

    It also keeps the newest `keep` at multiples of `every`, so that checkpoints which signals add in between do not
    replace them. `by_itself`: only this one of several processes uses it. Raises as `check_path`.
    """
    folder = epath.Path(resolved(folder))  # Orbax takes no relative path
    check_path(folder)
    multiprocessing, shared, own = {}, _WithManifest, _WithOwnManifest
    if is_remote(folder):
        shared, own = _InStore, _OwnInStore
    if by_itself:
        folder.mkdir(parents=True, exist_ok=True)  # the manager would wait for all processes here
        multiprocessing = {"multiprocessing_options": _by_itself()}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Newest(keep, every),
        temporary_path_class=own if by_itself else shared,
        create=not by_itself,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
        **multiprocessing,
    )
    return Manager(folder, options=options)


def check_path(folder: epath.PathLike) -> None:
    """Raises ValueError where Orbax could not find its own files below a folder.

    Orbax looks for the files of its processes with a glob pattern, and tensorstore takes a backslash for /.
    """
    path = str(epath.Path(resolved(folder)))
    if "\\" in path or not fnmatch.fnmatchcase(path, path):
        raise ValueError(f"Orbax cannot save below {path}: its name has a backslash or [...]; name another folder")


def save(
    manager: Manager,
    step: int,
    state: Any,
    model: ModelConfig,
    *,
    run: dict[str, Any] | None = None,
    **records: dict[str, Any],
) -> None:
    """Starts the save of a state, a tree of arrays, and of JSON objects by name; returns when the arrays are copied.

    It first waits for a save that is still being written, so that memory holds one copy of a state. `run` is the record
    of the run: config, data position, `workdir_sums`. Raises SaveFailed where that save, or the start of this one,
    fails.
    """
    records = {"meta": meta_record(model) | ({"run": run} if run else {})} | records
    items = {name: ocp.args.JsonSave(record) for name, record in records.items()}
    peers = all_peers()
    if peers.index:
        threading.Thread(target=manifest.help_write, args=(peers,), name="sums", daemon=True).start()
    state_item = ocp.args.StandardSave(state, save_args=jax.tree_util.tree_map_with_path(_chunks, state))
    if manager.is_saving_in_progress():
        print("waiting for the save before, which is still being written", flush=True)
    with manager.named_failures():
        manager.save(step, args=ocp.args.Composite(state=state_item, **items))


def meta_record(model: ModelConfig) -> dict[str, Any]:
    """The content of META_FILE: the model, and that the checkpoint has a manifest."""
    return {"model": dataclasses.asdict(model), "has_manifest": True}


def _chunks(path, leaf) -> ocp.SaveArgs:
    """Stores large leaves in chunks of one layer and expert, so that one can be read without the others."""
    stacked = chunks.stacked_dims(specs.path_name(path))
    if stacked >= jnp.ndim(leaf):
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=chunks.CHUNK_BYTES, shard_axes=tuple(range(stacked)))


def restore_record(manager: ocp.CheckpointManager, name: str) -> dict[str, Any]:
    """A JSON object of the newest checkpoint."""
    arguments = ocp.args.Composite(**{name: ocp.args.JsonRestore()})
    return manager.restore(manager.latest_step(), args=arguments)[name]


def stored_shapes(manager: ocp.CheckpointManager, step: int | None = None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the arrays of a checkpoint's state, the newest if `step` is None. Raises DamagedCheckpoint."""
    folder = epath.Path(manager.directory) / str(manager.latest_step() if step is None else step)
    with damage(folder):
        stored = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
        return {name: leaf.shape for name, leaf in specs.named_leaves(stored).items()}


def restore(manager: ocp.CheckpointManager, abstract_state: Any, step: int | None = None) -> Any:
    """The state of `step` (None: the newest), laid out as the shardings of `abstract_state` say.

    `abstract_state` is a dataclass of `jax.ShapeDtypeStruct`s. Raises DamagedCheckpoint where the state cannot be read.
    Changed bytes inside a file are not noticed here, but by `steps.resume_step`.
    """
    step = manager.latest_step() if step is None else step
    stored = stored_shapes(manager, step)
    older_names = {name: older for older, name in RENAMED_LEAVES.items() if older in stored}
    fields = {f.name: getattr(abstract_state, f.name) for f in dataclasses.fields(abstract_state)}
    wanted = {older_names.get(name, name): value for name, value in fields.items()} if older_names else abstract_state
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
    older = [other for other in manager.all_steps() if other < step]
    advice = f"; remove that folder to go on from {max(older)}" if older else "; no older one is there"
    with damage(epath.Path(manager.directory) / str(step), advice=advice):
        found = manager.restore(step, args=arguments)["state"]
    if not older_names:
        return found
    return dataclasses.replace(abstract_state, **{name: found[older_names.get(name, name)] for name in fields})


def save_params(folder: epath.PathLike, params: Params, model: ModelConfig, *, by_itself: bool = False) -> None:
    """Writes parameters only, as step 0 of a new checkpoints folder for `load_params`.

    All processes call it, or with `by_itself` only this one. Raises FileExistsError where it holds checkpoints.
    """
    with open_manager(folder, keep=1, by_itself=by_itself) as manager:
        if manager.latest_step() is not None:
            raise FileExistsError(f"{folder} holds checkpoints already; save into a new folder")
        save(manager, 0, {"params": params}, model)


def load_params(
    folder: epath.PathLike,
    step: int | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    verify: bool = True,
) -> tuple[Params, ModelConfig]:
    """(stored parameters, config) of a run's checkpoints folder, on this host's first device or on a mesh.

    `verify` as in `load_config`. Warns about weights that are not finite. Raises FileNotFoundError without a
    checkpoint, ValueError where the mesh cannot split a parameter, and DamagedCheckpoint where it cannot be read.
    """
    folder = epath.Path(resolved(folder))
    config, step = load_config(folder, step, verify=verify)
    state = folder / str(step) / "state"
    with damage(state):
        stored = stored_params(state, config)
    abstract = {"params": _abstract(config, stored, mesh)}
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_by_itself())
    with ocp.Checkpointer(handler, multiprocessing_options=_by_itself()) as checkpointer, damage(state):
        params = checkpointer.restore(state, args=arguments)["params"]
    report_nonfinite(state, {name: _count_nonfinite(leaf) for name, leaf in specs.named_leaves(params).items()})
    return params, config


def stored_params(state: epath.PathLike, config: ModelConfig) -> Any:
    """The tree of Orbax's metadata of the parameters in the state folder of a checkpoint.

    Raises an error of any type where they are not the parameters of the model.
    """
    # Not the checkpointer's own `metadata`: it warns of a file that only a checkpoint without a manager has.
    stored = ocp.PyTreeCheckpointHandler().metadata(epath.Path(state)).tree["params"]
    names = specs.named_leaves(model_spec(config)).keys()
    if other := sorted(specs.named_leaves(stored).keys() ^ names):
        raise ValueError(f"its parameters are not those of its model: {other[0]} is in only one of them")
    return stored


def _count_nonfinite(leaf: jax.Array) -> int:
    """The number of nonfinite elements that this process holds, without replicas."""
    return sum(count_nonfinite(np.asarray(s.data)) for s in leaf.addressable_shards if s.replica_id == 0)


@contextlib.contextmanager
def damage(folder: epath.PathLike, *, leaf: str = "", advice: str = "") -> Iterator[None]:
    """Turns any error of the block into DamagedCheckpoint: damaged files raise errors of many types."""
    folder = epath.Path(folder)
    try:
        yield
    except Exception as error:
        if not folder.exists():
            gone = (
                "was removed while it was read: a run keeps its newest checkpoints only; start again, for a newer one"
            )
            raise DamagedCheckpoint(f"{folder} {gone}") from None
        reason = (str(error).splitlines() or [""])[0][:200]
        where = f"{folder}: {leaf}" if leaf else folder
        raise DamagedCheckpoint(f"{where} cannot be read: {type(error).__name__}: {reason}{advice}") from error


def load_config(
    folder: epath.PathLike, step: int | None = None, *, verify: bool = True, peers: Peers = ALONE
) -> tuple[ModelConfig, int]:
    """(config, step) of a checkpoint, the newest whole one where `step` is None (`steps.choose_step`).

    `verify` compares all its files with its manifest; each of several `peers`, which all call it, compares a share. A
    step that `load_config` returned need not be verified again. Raises FileNotFoundError without a checkpoint, and
    DamagedCheckpoint where files differ or the record of the model cannot be read.
    """
    folder = epath.Path(resolved(folder))
    step = steps.choose_step(folder, step, verify=verify, peers=peers)
    with damage(folder / str(step) / "meta"):
        return config_from_json(read_object(folder / str(step) / META_FILE)["model"]), step


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """Orbax's options for a process that reads or writes without the others."""
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
    """The ModelConfig of a JSON object. Raises an error of any type where the fields are not those of a model."""
    if not isinstance(json.loads(fields.get("hf_source") or "{}"), dict):
        raise ValueError("hf_source is no JSON object")
    fields = {RENAMED_FIELDS.get(name, name): value for name, value in fields.items()}
    scaling = fields.get("rope_scaling")
    return ModelConfig(**(fields | {"rope_scaling": Yarn(**scaling) if scaling else None}))
