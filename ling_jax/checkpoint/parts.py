"""A model part by part: the interface of the readers and writers of all formats.

A part is a leaf of the parameters and an index into its leading dimensions: a layer, an expert, or a band of a matrix.
A layer is the tree that `model.layers.layer_spec` declares; MTP depth d is layer `num_layers` + d, with the tree of
`model.mtp.mtp_spec`. Leaves outside of layers have their names in the parameters: `embed`, `final_norm`, `head`.
"""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ling_jax.checkpoint.chunks import Index
from ling_jax.config import ModelConfig
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.model.layers import layer_numbers
from ling_jax.model.transformer import model_spec
from ling_jax.spec import Params, named_leaves, tree_of

TOP = ("embed", "final_norm", "head")


class LayerLeaf(NamedTuple):
    """One layer's part of a stacked leaf."""

    leaf: str  # path in the parameters
    index: tuple[int, ...]


class Part(NamedTuple):
    """Values of a leaf at an index of its leading dimensions."""

    leaf: str
    index: Index
    values: Any


def layer_leaves(config: ModelConfig) -> list[dict[str, LayerLeaf]]:
    """{name in the layer: its part of a stacked leaf} of every layer; MTP depths follow the other layers."""
    layers: list[dict[str, LayerLeaf]] = [{} for _ in range(config.num_layers + config.mtp_depth)]
    numbers = layer_numbers(config)
    for path in named_leaves(model_spec(config)):
        parts = path.split("/")
        if parts[0] == "segments":
            for index, layer in np.ndenumerate(numbers[parts[1], parts[2]]):
                layers[layer]["/".join(parts[3:])] = LayerLeaf(path, index)
        elif parts[0] == "mtp":
            for depth in range(config.mtp_depth):
                layers[config.num_layers + depth]["/".join(parts[1:])] = LayerLeaf(path, (depth,))
    return layers


class _Parts:
    """The config, the dtypes and the layers of a model."""

    def __init__(self, config: ModelConfig, dtypes: Mapping[str, np.dtype]):
        self.config = config
        self.dtypes = dtypes  # of every leaf, by its path in the parameters
        self._layers = layer_leaves(config)


class Reader(_Parts, abc.ABC):
    """A model that is read part by part; several threads may read."""

    @abc.abstractmethod
    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        """A part of a leaf, in the leaf's dtype and our layout."""

    @abc.abstractmethod
    def report_nonfinite(self, where: str = "") -> None:
        """Warns once about NaN and infinity in the parts that were read since the last call."""

    def as_stored(self, value: np.ndarray, leaf: str, index: Index = ()) -> np.ndarray:
        """A part of another model with the same shapes, rounded as this model's storage rounds it.

        It returns `value` itself where the storage holds every number of its dtype.
        """
        wider = np.promote_types(value.dtype, self.dtypes[leaf]) == self.dtypes[leaf]
        return value if wider else value.astype(self.dtypes[leaf])

    def is_quantised(self, leaf: str, index: Index = ()) -> bool:
        """Whether a part within one layer and expert is stored as FP8."""
        return False

    def top(self, name: str) -> np.ndarray:
        """A leaf outside of layers (`TOP`)."""
        value = self.read(name)
        self.report_nonfinite()
        return value

    def layer(self, number: int) -> Params:
        """The parameters of a layer."""
        leaves = {name: self.read(*part) for name, part in self._layers[number].items()}
        self.report_nonfinite(f"layer {number}: ")
        return traverse_util.unflatten_dict(leaves, sep="/")


class TreeReader(Reader):
    """Reads parameters in memory."""

    def __init__(self, params: Params, config: ModelConfig):
        self._leaves = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
        super().__init__(config, {path: leaf.dtype for path, leaf in self._leaves.items()})

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        return self._leaves[leaf][index]

    def report_nonfinite(self, where: str = "") -> None:
        """Warns of nothing: the loader of the parameters has warned."""


class Writer(_Parts, abc.ABC):
    """A model that is written part by part, in any order; several threads may write.

    If several processes write a model, each makes a writer, writes its share (`transfer.own_share`), and closes the
    writer, which waits for the others.
    """

    peers: Peers = ALONE  # the processes that write

    @abc.abstractmethod
    def write(self, parts: Iterable[Part]) -> None:
        """Writes parts in our layout. Each is written once."""

    def is_written(self, leaf: str, index: Index) -> bool:
        """Whether an earlier, interrupted writer has written a part."""
        return False

    def file_number(self, leaf: str, index: Index) -> int | None:
        """The number of the file of a part, which only one process may write; None: any process may write any part."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Completes the model; call it when every part is written."""

    def top(self, name: str, array: Any) -> None:
        """Writes a leaf outside of layers (`TOP`)."""
        self.write([Part(name, (), array)])

    def layer(self, number: int, params: Params) -> None:
        """Writes the parameters of a layer. Raises ValueError where the tree has other leaves than the layer."""
        leaves, declared = named_leaves(params), self._layers[number]
        if leaves.keys() != declared.keys():
            other = sorted(leaves.keys() ^ declared.keys())
            raise ValueError(f"layer {number}: {other} are in only one of it and spec")
        self.write(Part(*declared[name], leaf) for name, leaf in leaves.items())


class TreeWriter(Writer):
    """Writes into memory."""

    def __init__(self, config: ModelConfig, dtypes: Mapping[str, np.dtype]):
        super().__init__(config, dtypes)
        self._spec = model_spec(config)
        self._leaves = {path: np.empty(leaf.shape, dtypes[path]) for path, leaf in named_leaves(self._spec).items()}

    @property
    def params(self) -> Params:
        return tree_of(self._spec, self._leaves.values())

    def write(self, parts: Iterable[Part]) -> None:
        for part in parts:
            self._leaves[part.leaf][part.index] = part.values

    def close(self) -> None:
        """Does nothing."""
