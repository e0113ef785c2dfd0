"""Loads a model from a reader onto a mesh: each process reads the parts of its own devices, leaf by leaf."""

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
    """The parameters in the reader's dtypes, on the mesh.

    Besides the parts of its devices a process holds one layer of one leaf. Raises ValueError where the mesh cannot
    split a parameter evenly.
    """
    spec = model_spec(reader.config)
    shapes = {path: leaf.shape for path, leaf in named_leaves(spec).items()}
    placed = named_leaves(shardings(spec, mesh))
    dims = {mapping.leaf: row_dim(mapping) for mapping in tensor_mappings(spec, reader.config)}

    def leaf(path: str) -> jax.Array:
        @functools.cache  # several devices may hold the same part
        def part(*bounds: tuple[int, int]) -> np.ndarray:
            return read_block(reader, path, bounds, dims[path])

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            return part(*(slice_.indices(size)[:2] for slice_, size in zip(index, shapes[path], strict=True)))

        return jax.make_array_from_callback(shapes[path], placed[path], of_device, dtype=reader.dtypes[path])

    params = tree_of(spec, [leaf(path) for path in shapes])
    reader.report_nonfinite()
    return params


def read_block(reader: Reader, path: str, bounds: tuple[tuple[int, int], ...], dim: int) -> np.ndarray:
    """The block of a leaf within `bounds`, [begin, end) of each dimension, read layer by layer and expert by expert.

    `dim` is the dimension of the official rows after the stacked ones. It reads only the rows within the bounds.
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
