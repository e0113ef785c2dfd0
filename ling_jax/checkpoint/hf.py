"""Hugging Face folders (config.json + safetensors) <-> parameters."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ling_jax.checkpoint.hf_config import from_hf, to_hf
from ling_jax.checkpoint.names import ALIASES, IGNORED, Slot, slots
from ling_jax.config import ModelConfig
from ling_jax.files import new_folder
from ling_jax.model.lightning import log_decays
from ling_jax.model.transformer import model_spec
from ling_jax.spec import Leaf, named_leaves

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_SHARD_BYTES = 5 * 2**30


def load_hf(path, *, dtype=None):
    """(params, config) of a Hugging Face folder of the official format.

    Arrays are on the host. `dtype` is for both the parameters and `config.compute_dtype`; None keeps what is stored
    and computes in the config's `torch_dtype`. The slope convention is the config's `slope_layer_offset`, else what a
    stored `*.slope` tensor fits, else 0.

    Raises FileNotFoundError or ValueError, naming the file or tensor, before anything large is read.
    """
    folder = Path(path)
    hf = read_config(folder)
    with Tensors(folder) as tensors:
        config = config_of(hf, tensors, dtype)
        places = slots(model_spec(config), config)
        check_tensors(tensors, places, folder)
        return _read_params(tensors, places, config, dtype), config


def load_hf_config(path, *, dtype=None) -> ModelConfig:
    """The config that `load_hf` gives, without the parameters."""
    hf = read_config(Path(path))
    with Tensors(Path(path)) as tensors:
        return config_of(hf, tensors, dtype)


def config_of(hf: dict, tensors: "Tensors", dtype) -> ModelConfig:
    """The config of a folder: what its file says, and the slope convention that it or its tensors tell."""
    config = from_hf(hf)
    if dtype is not None:
        config = dataclasses.replace(config, compute_dtype=dtype)
    if "slope_layer_offset" not in hf:
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
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {folder} is not a Hugging Face model folder")
    return _read_json(file)


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected an object")
    return content


class Tensors:
    """The tensors of a folder by canonical name: shapes at once, values on demand."""

    def __init__(self, folder: Path):
        self._files = {file: _open(file) for file in _weight_files(folder)}
        self._place = {}
        for file, opened in self._files.items():
            self._place |= {_canonical(name): (file, name) for name in opened.keys()}  # noqa: SIM118

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._files.clear()

    def names(self) -> set[str]:
        return set(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._place[name]
        return tuple(self._files[file].get_slice(stored).get_shape())

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        file, stored = self._place[name]
        return self._files[file].get_slice(stored)[rows]


def _canonical(name: str) -> str:
    for official, alias in ALIASES.items():
        name = name.replace(alias, official)
    return name


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        names = sorted(set(_read_json(index)["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors")) or [folder / SINGLE_FILE]
    for file in files:
        if not file.is_file():
            listed = f", though {INDEX_FILE} lists it" if index.is_file() else ""
            raise FileNotFoundError(f"{file} is missing{listed}; the folder's download or copy is incomplete")
    return files


def _open(file: Path):
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise ValueError(
            f"{file} ({size} bytes) is not a whole safetensors file: {error}; copy or download it again"
        ) from error


def check_tensors(tensors: Tensors, places: list[Slot], folder: Path) -> None:
    """Raises ValueError where a tensor is missing, belongs to nothing or has another shape."""
    expected: dict[str, tuple[int, ...]] = {}
    for slot in places:
        rows = expected.get(slot.name, (0,))[0] + slot.official[0]
        expected[slot.name] = (rows, *slot.official[1:])
    found = {name for name in tensors.names() if not IGNORED.search(name)}
    if missing := sorted(expected.keys() - found):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing that config.json asks for: {_some(missing)}")
    if unexpected := sorted(found - expected.keys()):
        raise ValueError(f"{folder}: {len(unexpected)} tensors belong to no part of the model: {_some(unexpected)}")
    for name, shape in expected.items():
        if tensors.shape(name) != shape:
            raise ValueError(f"{folder}: {name} is {tensors.shape(name)}; config.json makes it {shape}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _read_params(tensors: Tensors, places: list[Slot], config: ModelConfig, dtype):
    spec = model_spec(config)
    shapes = {path: leaf.shape for path, leaf in named_leaves(spec).items()}
    arrays: dict[str, np.ndarray] = {}
    for slot in places:
        value = tensors.read(slot.name, slice(slot.row, slot.row + slot.official[0]))
        if slot.leaf not in arrays:
            kept = np.dtype(dtype) if dtype is not None else value.dtype
            arrays[slot.leaf] = np.empty(shapes[slot.leaf], kept)
        arrays[slot.leaf][slot.index] = from_official(value, slot)
    structure = jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, Leaf))
    return jax.tree.unflatten(structure, [arrays[path] for path in shapes])


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
    """The convention that a stored slope tensor fits; 0 without one."""
    stored = [name for name in tensors.names() if name.endswith(".slope")]
    stored.sort(key=lambda name: int(name.split(".")[2]))
    for name in stored[-1:]:  # the last layers differ most
        layer = int(name.split(".")[2])
        value = np.abs(np.asarray(tensors.read(name), np.float64)).reshape(-1)
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
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


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
