"""A model from a reader onto a mesh: each process reads what its own devices hold, one leaf after the other."""

import functools
import itertools

import jax
import numpy as np

from ling_jax.checkpoint.chunks import Shape, stacked_dims
from ling_jax.checkpoint.names import row_dim, tensor_mappings
from ling_jax.checkpoint.parts import Reader
from ling_jax.model.transformer import model_spec
from ling_jax.parallel.sharding import shardings
from ling_jax.spec import Params, named_leaves, tree_of


def load_onto(reader: Reader, mesh: jax.sharding.Mesh) -> Params:
    """The parameters in the reader's dtypes. Raises ValueError where the mesh cannot split one evenly.

    A process holds its devices' part and a layer's part of one leaf beside it, whatever the size of the model.
    """
    spec = model_spec(reader.config)
    shapes = {path: leaf.shape for path, leaf in named_leaves(spec).items()}
    placed = named_leaves(shardings(spec, mesh))
    dims = {mapping.leaf: row_dim(mapping) for mapping in tensor_mappings(spec, reader.config)}

    def leaf(path: str) -> jax.Array:
        @functools.cache  # devices may hold the same part
        def part(*bounds: tuple[int, int]) -> np.ndarray:
            return read_block(reader, path, bounds, dims[path])

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            return part(*(slice_.indices(size)[:2] for slice_, size in zip(index, shapes[path], strict=True)))

        return jax.make_array_from_callback(shapes[path], placed[path], of_device, dtype=reader.dtypes[path])

    params = tree_of(spec, [leaf(path) for path in shapes])
    reader.report_nonfinite()
    return params


def read_block(reader: Reader, path: str, bounds: tuple[tuple[int, int], ...], dim: int) -> np.ndarray:
    """The numbers of a leaf between [begin, end) of each dimension, by layers and experts.

    `dim` is the dimension behind these that official rows follow: only the wanted rows are read, and then cut.
    """
    depth = stacked_dims(path)
    stacked, rest = bounds[:depth], [slice(*bound) for bound in bounds[depth:]]
    shape: Shape = tuple(end - begin for begin, end in bounds)
    out = np.empty(shape, reader.dtypes[path])
    for position in itertools.product(*(range(*bound) for bound in stacked)):
        rows = reader.read(path, (*position, *[slice(None)] * dim, *rest[dim : dim + 1]))
        to = tuple(at - begin for at, (begin, _) in zip(position, stacked, strict=True))
        out[to] = rows[(*rest[:dim], *[slice(None)] * len(rest[dim : dim + 1]), *rest[dim + 1 :])]
    return out
