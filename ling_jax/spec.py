"""Parameters are declared once: a spec is a nested dict of `Leaf`, and all else is a tree-map over it."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Spec = dict[str, Any]
Params = dict[str, Any]
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: its shape, one logical axis name (or None) per dimension, how it starts.

    `trainable=False` marks what gradients do not train: the optimiser never sees it, so it has no moments and no weight
    decay. These are the router's expert bias, whose gradient `forward` stops and which the train step replaces, and MTP
    modules whose loss has no weight.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: Any = jnp.float32
    trainable: bool = True

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"Leaf: shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name others")


def normal(std: float) -> Initializer:
    """Gaussian with standard deviation `std`."""
    return lambda key, shape, dtype: (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def ones(key, shape, dtype):
    del key
    return jnp.ones(shape, dtype)


def zeros(key, shape, dtype):
    del key
    return jnp.zeros(shape, dtype)


def tree_map(function, spec: Spec, *rest):
    """`jax.tree.map` with a `Leaf` as the leaf."""
    return jax.tree.map(function, spec, *rest, is_leaf=lambda x: isinstance(x, Leaf))


def path_name(path) -> str:
    """A tree path as text: `segments/0/0_lightning_dense/mixer/q`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree) -> dict[str, Any]:
    """Every leaf of a tree of arrays or of a spec under its path's name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Leaf))
    return {path_name(path): leaf for path, leaf in leaves}


def tree_of(spec: Spec, leaves) -> Any:
    """The tree of a spec's form with other leaves, in the order of `named_leaves`."""
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, Leaf)), list(leaves))


def init(key: jax.Array, spec: Spec) -> Params:
    """Random parameters. A leaf's key depends on its path alone, so adding a leaf changes no other."""

    def leaf(path, leaf):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return leaf.init(leaf_key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec, is_leaf=lambda x: isinstance(x, Leaf))


def abstract(spec: Spec, *, dtype=None):
    """The same tree as `jax.ShapeDtypeStruct`s; `dtype` overrides the floating leaves' own."""
    return tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), spec)


def stack(spec: Spec, sizes: tuple[int, ...], axes: tuple[str | None, ...]) -> Spec:
    """The spec with leading dimensions added to every leaf (layers scanned over)."""
    return tree_map(lambda leaf: dataclasses.replace(leaf, shape=(*sizes, *leaf.shape), axes=(*axes, *leaf.axes)), spec)


def frozen(spec: Spec) -> Spec:
    """The spec with no leaf that gradients train."""
    return tree_map(lambda leaf: dataclasses.replace(leaf, trainable=False), spec)


def trainable(spec: Spec):
    """A tree of bools: what gradients train."""
    return tree_map(lambda leaf: leaf.trainable, spec)


def count(spec: Spec) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in named_leaves(spec).values())


def partition(tree, mask):
    """Splits a tree in two by a tree of bools; each half holds None where the other holds a leaf."""
    chosen = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)
    others = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask)
    return chosen, others


def combine(chosen, others):
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda x: x is None)
