"""Parameter specs: nested dicts of `Leaf`. Initial values, shardings and abstract trees are tree-maps over a spec."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp

Spec = dict[str, Any]
Params = dict[str, Any]
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
# What a parameter is, where more depends on it than its shape: weight decay, dtypes of computation, FLOPs, reports.
Role = Literal["matrix", "embed", "head", "experts", "router", "router_bias", "norm", "bias"]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: shape, one logical axis name (or None) per dimension, initializer, dtype and role.

    With `trainable=False` the optimiser skips the leaf: it has no moments and no weight decay. Such leaves are the
    expert bias of routers, which the train step updates by a rule of its own, and MTP modules with loss weight 0.

    Raises ValueError if `axes` does not name every dimension.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: Any = jnp.float32
    trainable: bool = True
    role: Role = "matrix"

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"Leaf: shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes} name others")

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies: weight decay applies to these leaves, and norms and biases are none of them."""
        return self.role not in ("norm", "bias", "router_bias")

    @property
    def is_wide(self) -> bool:
        """Whether computation reads it in its own dtype where others are cast to the compute dtype."""
        return self.role in ("head", "router", "router_bias", "bias")


def normal(std: float) -> Initializer:
    """Initializer that draws a Gaussian with standard deviation `std` in float32 and casts it."""
    return lambda key, shape, dtype: (std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initializer: all ones."""
    del key
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initializer: all zeros."""
    del key
    return jnp.zeros(shape, dtype)


def tree_map(function: Callable[..., Any], spec: Spec, *rest: Any) -> Any:
    """`jax.tree.map` that stops at `Leaf` objects."""
    return jax.tree.map(function, spec, *rest, is_leaf=lambda x: isinstance(x, Leaf))


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as text: `segments/0/0_lightning_dense/mixer/q`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """{path name: leaf} of a tree of arrays or of a spec."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Leaf))
    return {path_name(path): leaf for path, leaf in leaves}


def tree_of(spec: Spec, leaves: Iterable[Any]) -> Any:
    """A tree with the structure of `spec` and the given leaves, in the order of `named_leaves`."""
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=lambda x: isinstance(x, Leaf)), list(leaves))


def init(key: jax.Array, spec: Spec) -> Params:
    """Random parameters. The key of a leaf depends only on its path, so a new leaf does not change the others."""

    def leaf(path, leaf):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
        return leaf.init(leaf_key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf, spec, is_leaf=lambda x: isinstance(x, Leaf))


def abstract(spec: Spec, *, dtype: Any = None) -> Any:
    """The spec as a tree of `jax.ShapeDtypeStruct`; `dtype` replaces the dtype of every leaf."""
    return tree_map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), spec)


def stack(spec: Spec, sizes: tuple[int, ...], axes: tuple[str | None, ...]) -> Spec:
    """The spec with leading dimensions added to every leaf, for layers that a scan runs over."""
    return tree_map(lambda leaf: dataclasses.replace(leaf, shape=(*sizes, *leaf.shape), axes=(*axes, *leaf.axes)), spec)


def frozen(spec: Spec) -> Spec:
    """The spec with every leaf marked as not trainable."""
    return tree_map(lambda leaf: dataclasses.replace(leaf, trainable=False), spec)


def trainable(spec: Spec) -> Any:
    """A tree of bools: whether gradients train each leaf."""
    return tree_map(lambda leaf: leaf.trainable, spec)


def count(spec: Spec) -> int:
    """Number of parameters (scalars)."""
    return sum(math.prod(leaf.shape) for leaf in named_leaves(spec).values())


def partition(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Splits a tree by a tree of bools into two; each holds None where the other holds a leaf."""
    chosen = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)
    others = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask)
    return chosen, others


def combine(chosen: Any, others: Any) -> Any:
    """The inverse of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda x: x is None)
