"""A model of the first layers of another model, to try a port before the hours of the whole."""

import dataclasses

import numpy as np

from ling_jax.checkpoint.chunks import Index
from ling_jax.checkpoint.parts import TOP, LayerLeaf, Reader, layer_leaves
from ling_jax.config import ModelConfig
from ling_jax.model.layers import layer_kind


class FirstLayers(Reader):
    """The first `count` layers of a reader's model, with its MTP layers if `mtp`.

    Raises ValueError where a layer would be of another kind in the smaller model.
    """

    def __init__(self, reader: Reader, count: int, *, mtp: bool):
        self._reader = reader
        config = first_layers(reader.config, count, mtp=mtp)
        old, new = layer_leaves(reader.config), layer_leaves(config)
        self._source: dict[LayerLeaf, LayerLeaf] = {}
        for number, layer in enumerate(new):
            of_source = old[number if number < count else reader.config.num_layers + number - count]
            self._source |= {part: of_source[name] for name, part in layer.items()}
        dtypes = {name: reader.dtypes[name] for name in TOP}
        for part, source in self._source.items():
            dtype = reader.dtypes[source.leaf]
            dtypes[part.leaf] = np.promote_types(dtypes.get(part.leaf, dtype), dtype)
        super().__init__(config, dtypes)

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        if leaf in TOP:
            return self._reader.read(leaf, index)
        depth = 1 if leaf.startswith("mtp/") else 2
        source = self._source[LayerLeaf(leaf, index[:depth])]
        value = self._reader.read(source.leaf, (*source.index, *index[depth:]))
        return value.astype(self.dtypes[leaf], copy=False)

    def report_nonfinite(self, where: str = "") -> None:
        self._reader.report_nonfinite(where)


def first_layers(config: ModelConfig, count: int, *, mtp: bool) -> ModelConfig:
    """The config of the first `count` layers of a model.

    Raises ValueError where the smaller model would have layers of other kinds, naming the counts that work.
    """
    counts = [n for n in range(1, config.num_layers + 1) if _keeps_kinds(config, n)]
    if count not in counts:
        raise ValueError(
            f"--layers={count}: the first layers of this model make one of the same kinds of layers for "
            f"{', '.join(map(str, counts))}"
        )
    return _cut(config, count, config.mtp_depth if mtp else 0)


def _cut(config: ModelConfig, count: int, mtp_depth: int) -> ModelConfig:
    dense = min(config.first_dense_layers, count)
    return dataclasses.replace(config, num_layers=count, first_dense_layers=dense, mtp_depth=mtp_depth)


def _keeps_kinds(config: ModelConfig, count: int) -> bool:
    try:
        cut = _cut(config, count, 0)
    except ValueError:  # such as a group larger than the model
        return False
    return all(layer_kind(cut, n) == layer_kind(config, n) for n in range(count))
