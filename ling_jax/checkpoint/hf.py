"""Hugging Face folders (config.json + safetensors) <-> parameters."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from ling_jax.checkpoint.fit import check_sizes, check_tensors
from ling_jax.checkpoint.hf_config import from_hf, to_hf
from ling_jax.checkpoint.index import INDEX_FILE, SINGLE_FILE
from ling_jax.checkpoint.names import Slot, slots
from ling_jax.checkpoint.safetensors_file import DTYPES
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.config import ModelConfig
from ling_jax.files import new_folder, read_object
from ling_jax.model.lightning import log_decays
from ling_jax.model.transformer import model_spec
from ling_jax.spec import Leaf, named_leaves

MAX_SHARD_BYTES = 5 * 2**30


def load_hf(path, *, dtype=None):
    """(params, config) of a Hugging Face folder of the official format.

    Arrays are on the host. `dtype` is for both the parameters and `config.compute_dtype`; None keeps what is stored
    and computes in the config's `torch_dtype`, which FP8 weights are dequantised to (docs/checkpoints.md). The slope
    convention is the config's `slope_layer_offset`, else what a stored `*.slope` tensor fits, else 0. What is odd about
    the folder, weights that are not finite among it, is said on stderr.

    Raises FileNotFoundError, PermissionError or ValueError, naming the file or tensor, before anything large is read.
    """
    folder = Path(path)
    hf = read_config(folder)
    with Tensors(folder, hf) as tensors:
        config = config_of(hf, tensors, dtype)
        places = slots(model_spec(config), config)
        check_tensors(tensors, places, config)
        return _read_params(tensors, places, config, dtype), config


def load_hf_config(path, *, dtype=None) -> ModelConfig:
    """The config that `load_hf` gives, without the parameters."""
    hf = read_config(Path(path))
    with Tensors(Path(path), hf) as tensors:
        return config_of(hf, tensors, dtype)


def config_of(hf: dict, tensors: Tensors, dtype) -> ModelConfig:
    """The config of a folder: what its file says, and the slope convention that it or its tensors tell."""
    try:
        config = from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{tensors.folder}: {error}") from None
    check_sizes(config, tensors)
    if dtype is not None:
        config = dataclasses.replace(config, compute_dtype=dtype)
    if hf.get("slope_layer_offset") is None:
        config = dataclasses.replace(config, slope_layer_offset=_stored_slope_offset(tensors, config))
    return config


def save_hf(params, config: ModelConfig, path) -> None:
    """Writes a folder that `load_hf` and the official code read; shards of at most 5 GiB with an index.

    `slope_layer_offset` stands in config.json; 0 says that the official HF code, which assumes -1, needs a patch.
    The folder appears whole or not at all; an existing one is an error.
    """
    folder = Path(path)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; save into a new folder")
    with new_folder(folder) as partial:
        write_hf(params, config, partial)


def write_hf(params, config: ModelConfig, folder: Path) -> None:
    """What `save_hf` writes, into a folder that is there."""
    (folder / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n")
    _write_shards(hf_tensors(params, config), folder)


def hf_tensors(params, config: ModelConfig) -> dict[str, np.ndarray]:
    """{official name: array in the official layout}; works on any tree of the parameters' shape, such as gradients."""
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    pieces: dict[str, list[np.ndarray]] = {}
    for slot in slots(model_spec(config), config):
        pieces.setdefault(slot.name, []).append(to_official(leaves[slot.leaf][slot.index], slot))
    return {name: np.concatenate(rows) if len(rows) > 1 else rows[0] for name, rows in pieces.items()}


def read_config(folder: Path) -> dict:
    """The folder's config.json; errors name the file."""
    file = folder / "config.json"
    try:
        return read_object(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file} is missing: {folder} is not a Hugging Face model folder") from None


def _read_params(tensors: Tensors, places: list[Slot], config: ModelConfig, dtype):
    spec = model_spec(config)
    shapes = {path: leaf.shape for path, leaf in named_leaves(spec).items()}
    dtypes = (
        {path: np.dtype(dtype) for path in shapes} if dtype is not None else _stored_dtypes(tensors, places, config)
    )
    arrays = {path: np.empty(shape, dtypes[path]) for path, shape in shapes.items()}
    for slot in places:
        value = tensors.read(slot.name, slice(slot.row, slot.row + slot.official[0]), dtypes[slot.leaf])
        arrays[slot.leaf][slot.index] = from_official(value, slot)
    tensors.report_nonfinite()
    structure = jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, Leaf))
    return jax.tree.unflatten(structure, list(arrays.values()))


def _stored_dtypes(tensors: Tensors, places: list[Slot], config: ModelConfig) -> dict[str, np.dtype]:
    """Of each leaf; the wider one where its tensors have several, so that no value changes."""
    found: dict[str, np.dtype] = {}
    for slot in places:
        stored = tensors.dtype(slot.name, config.compute_dtype)
        found[slot.leaf] = np.promote_types(found.get(slot.leaf, stored), stored)
    return found


def from_official(value: np.ndarray, slot: Slot) -> np.ndarray:
    """A slot's rows of an official tensor in our layout."""
    return (value.T if _is_transposed(slot) else value).reshape(slot.shape)


def to_official(value: np.ndarray, slot: Slot) -> np.ndarray:
    """The inverse of `from_official`."""
    if not _is_transposed(slot):
        return np.ascontiguousarray(value).reshape(slot.official)
    return np.ascontiguousarray(value.reshape(slot.official[::-1]).T)


def _is_transposed(slot: Slot) -> bool:
    return len(slot.official) == 2 and slot.leaf != "embed"


def _stored_slope_offset(tensors: Tensors, config: ModelConfig) -> int:
    """The convention that a stored slope of a Lightning layer fits; 0 without one."""
    lightning = [n for n in range(config.num_layers) if not config.is_softmax_layer(n)]
    slopes, names = {f"model.layers.{n}.attention.slope": n for n in lightning}, tensors.names()
    stored = [name for name in slopes if name in names and tensors.stored_dtype(name) in DTYPES]
    for name in stored[-1:]:  # the last layers differ most
        layer = slopes[name]
        value = np.abs(tensors.read(name, slice(None), np.float64)).reshape(-1)
        for offset in (0, -1):
            expected = -log_decays(dataclasses.replace(config, slope_layer_offset=offset))[layer]
            if value.shape == expected.shape and np.allclose(value, expected, rtol=5e-3):
                return offset
        raise ValueError(f"{name} fits neither slope convention of layer {layer} (slope_layer_offset 0 or -1)")
    return 0


def _write_shards(tensors: dict[str, np.ndarray], folder: Path) -> None:
    shards = list(split_shards(tensors))
    if len(shards) == 1:
        write_shard(tensors, folder / SINGLE_FILE)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = shard_name(number, len(shards))
        write_shard(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    write_index(weight_map, sum(value.nbytes for value in tensors.values()), folder)


def write_shard(tensors: dict[str, np.ndarray], file: Path) -> None:
    """The library makes files that only their owner reads; these are readable as the umask says."""
    file.touch()
    mode = file.stat().st_mode
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)


def shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(weight_map: dict[str, str], total_size: int, folder: Path) -> None:
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def split_shards(tensors: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The tensors in order, cut where the next would pass `MAX_SHARD_BYTES`."""
    shard, size = {}, 0
    for name, value in tensors.items():
        if shard and size + value.nbytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name], size = value, size + value.nbytes
    yield shard
