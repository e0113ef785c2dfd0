"""A model on disk one layer at a time: read from a workdir or a Hugging Face folder, written as the latter.

A layer is the tree that `model.layers.layer_spec` declares; MTP depth d is layer `num_layers` + d, with the tree of
`model.mtp.mtp_spec`. What belongs to no layer has its name in the parameters: `embed`, `final_norm`, `head`.
"""

import collections
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorstore
from flax import traverse_util

from ling_jax.checkpoint import hf, orbax
from ling_jax.checkpoint.fit import check_tensors
from ling_jax.checkpoint.hf_config import to_hf
from ling_jax.checkpoint.index import is_workdir
from ling_jax.checkpoint.names import Slot, slots
from ling_jax.checkpoint.nonfinite import count_nonfinite, report_nonfinite
from ling_jax.checkpoint.tensors import Tensors
from ling_jax.config import ModelConfig
from ling_jax.model.layers import layer_numbers
from ling_jax.model.transformer import model_spec
from ling_jax.spec import Params, named_leaves

TOP = ("embed", "final_norm", "head")


class Place(NamedTuple):
    """Where one layer's part of a stacked leaf is."""

    leaf: str  # path in the parameters
    index: tuple[int, ...]


def layer_places(config: ModelConfig) -> list[dict[str, Place]]:
    """For every layer, MTP depths behind the others: name in the layer -> its place."""
    layers: list[dict[str, Place]] = [{} for _ in range(config.num_layers + config.mtp_depth)]
    numbers = layer_numbers(config)
    for path in named_leaves(model_spec(config)):
        parts = path.split("/")
        if parts[0] == "segments":
            for index, layer in np.ndenumerate(numbers[parts[1], parts[2]]):
                layers[layer]["/".join(parts[3:])] = Place(path, index)
        elif parts[0] == "mtp":
            for depth in range(config.mtp_depth):
                layers[config.num_layers + depth]["/".join(parts[1:])] = Place(path, (depth,))
    return layers


class LayerReader(Protocol):
    config: ModelConfig

    def top(self, name: str) -> np.ndarray: ...

    def layer(self, number: int) -> Params: ...


class TreeReader:
    """Of parameters in memory."""

    def __init__(self, params: Params, config: ModelConfig):
        self.config = config
        self._leaves, self._layers = named_leaves(params), layer_places(config)

    def top(self, name: str) -> np.ndarray:
        return np.asarray(self._leaves[name])

    def layer(self, number: int) -> Params:
        return _tree({name: self._leaves[p.leaf][p.index] for name, p in self._layers[number].items()})


class OrbaxReader:
    """Of a checkpoint in a run's checkpoints folder, the newest if `step` is None. Large leaves are stored by layer."""

    def __init__(self, folder, step: int | None = None):
        self.config, step = orbax.load_config(folder, step)
        self._state, self._layers = Path(folder).absolute() / str(step) / "state", layer_places(self.config)

    def top(self, name: str) -> np.ndarray:
        return self._reported({name: self._read(name, ())})[name]

    def layer(self, number: int) -> Params:
        return _tree(self._reported({name: self._read(*place) for name, place in self._layers[number].items()}, number))

    def _reported(self, leaves: dict[str, np.ndarray], layer: int | None = None) -> dict[str, np.ndarray]:
        """The leaves, after a warning where they hold NaN or infinity."""
        where = "" if layer is None else f"layer {layer}: "
        report_nonfinite(self._state, {where + name: count_nonfinite(array) for name, array in leaves.items()})
        return leaves

    def _read(self, leaf: str, index: tuple[int, ...]) -> np.ndarray:
        name = ".".join(["params", *leaf.split("/")])
        place = {"driver": "ocdbt", "base": f"file://{self._state}", "path": f"{name}/"}
        stored = tensorstore.open({"driver": "zarr", "kvstore": place}, open=True).result()
        return np.asarray(stored[index].read().result() if index else stored.read().result())


class HfReader:
    """Of a Hugging Face folder; raises as `load_hf` where it is not whole."""

    def __init__(self, folder):
        content = hf.read_config(Path(folder))
        self._tensors = Tensors(Path(folder), content)
        self.config = hf.config_of(content, self._tensors, None)
        places = slots(model_spec(self.config), self.config)
        check_tensors(self._tensors, places, self.config)
        self._layers, self._slots = layer_places(self.config), _by_place(places, self.config)

    def top(self, name: str) -> np.ndarray:
        value = self._read(Place(name, ()))
        self._tensors.report_nonfinite()
        return value

    def layer(self, number: int) -> Params:
        values = {name: self._read(place) for name, place in self._layers[number].items()}
        self._tensors.report_nonfinite()
        return _tree(values)

    def _read(self, place: Place) -> np.ndarray:
        parts = []
        for slot in self._slots[place]:
            stored = self._tensors.dtype(slot.name, self.config.compute_dtype)
            rows = self._tensors.read(slot.name, slice(slot.row, slot.row + slot.official[0]), stored)
            parts.append(hf.from_official(rows, slot))
        # Experts are tensors of their own; all else is one.
        return np.stack(parts) if len(self._slots[place][0].index) > len(place.index) else parts[0]


def open_layers(path, step: int | None = None) -> LayerReader:
    """Of a run's workdir (checkpoints/) or a Hugging Face folder."""
    folder = Path(path).expanduser()
    return OrbaxReader(folder / "checkpoints", step) if is_workdir(folder) else HfReader(folder)


class HfWriter:
    """Fills a folder that is there with the files of `save_hf`, in shards of a layer each; `close` writes the index."""

    def __init__(self, folder: Path, config: ModelConfig):
        self._folder, self._layers = folder, layer_places(config)
        self._slots = _by_place(slots(model_spec(config), config), config)
        self._shards: list[list[str]] = []
        self._bytes = 0
        (folder / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n")

    def top(self, name: str, array: Any) -> None:
        self._write({Place(name, ()): array})

    def layer(self, number: int, params: Params) -> None:
        """Raises ValueError where the tree is not that of the layer."""
        leaves, places = named_leaves(params), self._layers[number]
        if leaves.keys() != places.keys():
            raise ValueError(f"layer {number}: {sorted(leaves.keys() ^ places.keys())} are in only one of it and spec")
        self._write({places[name]: leaf for name, leaf in leaves.items()})

    def close(self) -> None:
        weight_map = {}
        for number, names in enumerate(self._shards, start=1):
            file = hf.shard_name(number, len(self._shards))
            self._partial(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        hf.write_index(weight_map, self._bytes, self._folder)

    def _write(self, leaves: dict[Place, Any]) -> None:
        pieces = [(slot, place) for place in leaves for slot in self._slots[place]]
        tensors: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        for slot, place in sorted(pieces, key=lambda piece: (piece[0].name, piece[0].row)):
            value = np.asarray(leaves[place])[slot.index[len(place.index) :]]
            if value.shape != slot.shape:
                raise ValueError(f"{slot.name}: {slot.leaf} is {value.shape}; the config makes it {slot.shape}")
            tensors[slot.name].append(hf.to_official(value, slot))
        whole = {name: np.concatenate(rows) if len(rows) > 1 else rows[0] for name, rows in tensors.items()}
        for shard in hf.split_shards(whole):
            self._shards.append(list(shard))
            self._bytes += sum(value.nbytes for value in shard.values())
            hf.write_shard(shard, self._partial(len(self._shards)))

    def _partial(self, number: int) -> Path:
        return self._folder / f"shard-{number}.partial"


def _by_place(places: list[Slot], config: ModelConfig) -> dict[Place, list[Slot]]:
    """The official tensors of every place, in the order of experts."""
    depth = {place.leaf: len(place.index) for layer in layer_places(config) for place in layer.values()}
    found: dict[Place, list[Slot]] = collections.defaultdict(list)
    for slot in sorted(places, key=lambda slot: slot.index):
        found[Place(slot.leaf, slot.index[: depth.get(slot.leaf, 0)])].append(slot)
    return found


def _tree(leaves: dict[str, Any]) -> Params:
    return traverse_util.unflatten_dict(leaves, sep="/")
