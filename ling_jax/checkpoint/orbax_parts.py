"""Orbax checkpoints read and written part by part, so that memory never holds a whole leaf."""

import collections
import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint.path import atomicity

from ling_jax import spec as specs
from ling_jax.checkpoint import manifest, orbax
from ling_jax.checkpoint.chunks import Index, chunk_numbers, chunk_shape
from ling_jax.checkpoint.nonfinite import count_nonfinite, report_nonfinite
from ling_jax.checkpoint.parts import Part, Reader, Writer
from ling_jax.config import ModelConfig
from ling_jax.distributed.peers import ALONE, Peers, all_peers
from ling_jax.files import read_object
from ling_jax.model import model_spec
from ling_jax.partials import write_reason
from ling_jax.paths import SCHEME, is_remote, resolved

# No cache: written chunks are not read again.
NO_CACHE = {"cache_pool": {"total_bytes_limit": 0}}
ORBAX_RECORD = "_METADATA"  # file in the state folder with the format of the arrays
DATABASE = "ocdbt.process_{}"  # Orbax's name for the database of a process (`manifest.OF_PROCESS`)
# LZ4 after a bit shuffle compresses bfloat16 weights to 76 %. Orbax's choice, zstd of level 1, compresses them to 78 %
# and takes half as long again (measured on normal numbers).
COMPRESSOR = {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 2}


class OrbaxReader(Reader):
    """Reads a checkpoint in a run's checkpoints folder, the newest if `step` is None.

    It reads checkpoints of any devices and in any of Orbax's formats. Raises as `orbax.load_config`, and
    DamagedCheckpoint where a leaf cannot be read or has another shape than in the model.
    """

    def __init__(self, folder: epath.PathLike, step: int | None = None, *, verify: bool = True):
        """`verify` as in `orbax.load_config`."""
        config, step = orbax.load_config(folder, step, verify=verify)
        self._state, context = resolved(folder) / str(step) / "state", tensorstore.Context(NO_CACHE)
        leaves, stored = specs.named_leaves(model_spec(config)), self._stored_specs(config)
        opened = {path: tensorstore.open(stored[path], open=True, context=context) for path in leaves}
        self._arrays = {path: self._result(path, array) for path, array in opened.items()}
        for path, leaf in leaves.items():
            if (found := self._arrays[path].shape) != leaf.shape:
                raise orbax.DamagedCheckpoint(f"{self._state}: {path} is {found}; its model makes it {leaf.shape}")
        super().__init__(config, {path: array.dtype.numpy_dtype for path, array in self._arrays.items()})
        self._nonfinite: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        array = self._arrays[leaf]
        value = np.asarray(self._result(leaf, (array[index] if index else array).read()))
        count = count_nonfinite(value)
        with self._lock:
            self._nonfinite[leaf] += count
        return value

    def report_nonfinite(self, where: str = "") -> None:
        report_nonfinite(self._state, {where + name: count for name, count in self._nonfinite.items()})
        self._nonfinite.clear()

    def _stored_specs(self, config: ModelConfig) -> dict[str, dict[str, Any]]:
        """The tensorstore spec of every leaf, in the format of the checkpoint's record."""
        with orbax.damage(self._state):
            orbax.stored_params(self._state, config)
            record = read_object(self._state / ORBAX_RECORD)
        form = {
            "driver": "zarr3" if record.get("use_zarr3") else "zarr",
            # If chunks of zeros are stored too, a missing chunk is damage: the checkpoint is being removed.
            "fill_missing_data_reads": not record.get("store_array_data_equal_to_fill_value"),
        }
        stored = {path: zarr(self._state, path) | form for path in specs.named_leaves(model_spec(config))}
        if record.get("use_ocdbt") is False:
            stored = {p: spec | {"kvstore": _base(self._state / stored_name(p))} for p, spec in stored.items()}
        return stored

    def _result(self, leaf: str, future: tensorstore.Future):
        with orbax.damage(self._state, leaf=leaf):
            return future.result()


class OrbaxWriter(Writer):
    """Writes step 0 of a checkpoints folder, which `orbax.load_params` and Orbax itself restore.

    Orbax writes the structure, with scalars as leaves. Then each leaf is created anew with its own shape, in the chunks
    of `orbax.save`, and filled part by part. `folder` is new or holds the parts of an interrupted writer of the same
    config and dtypes (`is_written`).

    Process 0 creates the leaves. Each other process commits to a database of its own, as in a save of Orbax, and
    `close` merges these by copying references. One database for all would give the same result on a local disk, at the
    same rate with commits of 64 MB. But a third of small commits is retried and leaves an unused file, some network
    file systems have no locks, and an object store takes one new version of a database's manifest per second.
    """

    def __init__(self, folder: Path, config: ModelConfig, dtypes: Mapping[str, np.dtype], *, peers: Peers = ALONE):
        super().__init__(config, dtypes)
        self.peers, leaves = peers, specs.named_leaves(model_spec(config))
        self._state = resolved(folder) / "0" / "state"
        if not peers.index:
            if not (self._state.parent / manifest.FILE_NAME).exists():
                scalars = [np.zeros((), dtypes[path]) for path in leaves]
                params = specs.tree_of(model_spec(config), scalars)
                orbax.save_params(folder, params, config, by_itself=all_peers().count > 1)
            if is_remote(self._state):  # the folder is no checkpoint until it is whole
                self._commit_file.unlink(missing_ok=True)
        self._shapes = {path: leaf.shape for path, leaf in leaves.items()}
        self._chunks = {path: chunk_shape(path, self._shapes[path], dtypes[path].itemsize) for path in leaves}
        if not peers.index:
            self._arrays = self._open(dtypes)
        peers.wait("arrays")
        if peers.index:
            self._arrays = self._open_own(self._state / DATABASE.format(peers.index))
        self._done = set().union(*map(_keys, [self._state, *_databases(self._state)]))

    def write(self, parts: Iterable[Part]) -> None:
        """Writes parts in one commit, which makes one file.

        Parts of whole chunks are never read back. Several threads may write at once. Raises OSError.
        """
        commit = tensorstore.Transaction()
        for part in parts:
            array = self._arrays[part.leaf].with_transaction(commit)
            place = array[part.index] if part.index else array
            place.write(np.asarray(part.values), can_reference_source_data_indefinitely=True).result()
        self._commit(commit)

    def is_written(self, leaf: str, index: Index) -> bool:
        numbers = chunk_numbers(self._shapes[leaf], self._chunks[leaf], index)
        keys = (".".join(map(str, number)) or "0" for number in numbers)
        return all(f"{stored_name(leaf)}/{key}" in self._done for key in keys)

    def close(self) -> None:
        """Merges the databases, checks that no chunk is missing, and writes the manifest that readers compare."""
        self.peers.wait("parts")
        if not self.peers.index:
            _merge(self._state)
            self._check_whole()
        manifest.write(self._state.parent, self.peers)
        if is_remote(self._state) and not self.peers.index:
            self._commit_file.write_text("This checkpoint is whole.\n")

    @property
    def _commit_file(self):
        """The file that marks a folder in a store as a whole checkpoint."""
        return self._state.parent / atomicity.COMMIT_SUCCESS_FILE

    def _check_whole(self) -> None:
        """Raises RuntimeError where a chunk is missing."""
        found = collections.Counter(key.rpartition("/")[0] for key in _keys(self._state))
        for path, shape in self._shapes.items():
            chunks = math.prod(-(-size // step) for size, step in zip(shape, self._chunks[path], strict=True))
            if (stored := found[stored_name(path)] - 1) != chunks:  # besides the metadata
                raise RuntimeError(f"{self._state}: {path} has {stored} of {chunks} chunks; the others are not written")

    def _open(self, dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
        context = tensorstore.Context(NO_CACHE)
        arrays = {path: self._array(path, context) for path in self._shapes}
        new = [path for path, array in arrays.items() if array.shape != self._shapes[path]]
        commit = tensorstore.Transaction(atomic=True)  # one file for all of them, or none
        for path in new:
            metadata = {"chunks": self._chunks[path], "compressor": COMPRESSOR}
            spec = zarr(self._state, path) | {"metadata": metadata, "store_data_equal_to_fill_value": True}
            how = {"dtype": dtypes[path], "shape": self._shapes[path], "create": True, "delete_existing": True}
            tensorstore.open(spec, transaction=commit, context=context, **how).result()
        self._commit(commit)
        return arrays | {path: self._array(path, context) for path in new}

    def _open_own(self, database: Path) -> dict[str, Any]:
        """The same arrays with another database for their values."""
        context, arrays = tensorstore.Context(NO_CACHE), {}
        for path in self._shapes:
            spec = self._array(path, context).spec().to_json() | {"kvstore": zarr(database, path)["kvstore"]}
            arrays[path] = tensorstore.open(spec | {"open": True, "assume_metadata": True}, context=context).result()
        return arrays

    def _commit(self, commit: tensorstore.Transaction) -> None:
        try:
            commit.commit_async().result()
        except Exception as error:  # tensorstore has error types of its own
            raise OSError(f"{self._state} cannot be written: {write_reason(error)}") from error

    def _array(self, path: str, context: tensorstore.Context):
        spec = zarr(self._state, path) | {"store_data_equal_to_fill_value": True}
        with orbax.damage(self._state, leaf=path, advice="; start anew with --noresume"):
            return tensorstore.open(spec, context=context).result()


def stored_name(path: str) -> str:
    """Orbax's name for a leaf of the parameters."""
    return ".".join(["params", *path.split("/")])


def zarr(state: Path, path: str) -> dict[str, Any]:
    """The tensorstore spec of a leaf in the state folder of a checkpoint."""
    return {"driver": "zarr", "kvstore": _place(state) | {"path": f"{stored_name(path)}/"}}


def _place(state: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": _base(state)}


def _base(folder: Path) -> dict[str, Any]:
    """The key-value store of a folder. A local one is no URL, because its path may contain % and #."""
    if is_remote(folder):
        bucket, _, path = str(folder).removeprefix(SCHEME).partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
    return {"driver": "file", "path": f"{folder}/"}


def _databases(state: Path) -> list[Path]:
    """The existing databases of processes other than process 0, which has the state's own."""
    found = (path for path in state.iterdir() if manifest.OF_PROCESS.fullmatch(path.name))
    return [path for path in found if path.name != DATABASE.format(0) and (path / "manifest.ocdbt").exists()]


def _keys(database: Path) -> set[str]:
    return {key.decode() for key in tensorstore.KvStore.open(_place(database)).result().list().result()}


def _merge(state: Path) -> None:
    """Copies the databases of single processes into the state's own, in one commit."""
    context = tensorstore.Context()
    whole = tensorstore.KvStore.open(_place(state), context=context).result()
    with tensorstore.Transaction(atomic=True) as commit:
        for database in _databases(state):
            part = tensorstore.KvStore.open(_place(database), context=context).result()
            part.experimental_copy_range_to(whole.with_transaction(commit)).result()
