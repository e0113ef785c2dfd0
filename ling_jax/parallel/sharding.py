"""One mesh, one table: logical axis names of arrays -> axes of the mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax.spec import Leaf, named_leaves, path_name, tree_map

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

# Logical axis -> mesh axes. What is not named here, and None, is not split.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "tokens": ("context",),  # the ranks of a row, neighbours in its order (`parallel.context`)
    "vocab": ("expert", "tensor"),
    "embed": ("fsdp", "context"),  # ranks have the same weights: each stores a part
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "experts": ("expert",),
}


def make_mesh(sizes: dict[str, int] | None = None, devices=None) -> jax.sharding.Mesh:
    """A mesh over all devices; axes not named have size 1, one may be -1 for "the rest".

    Devices of several slices, which a slower network joins, are split along `data`: gradients cross it, and sums
    of a few numbers.
    Raises ValueError where an axis is unknown, the sizes do not fill the devices, or `data` does not split the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": -1} if sizes is None else dict(sizes)
    for axis in sizes.keys() - set(MESH_AXES):
        raise ValueError(f"mesh axis {axis!r} is unknown; the axes are {', '.join(MESH_AXES)}")
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"mesh axis {axis!r} has size {size}; expected at least 1, or -1 for the rest")
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = [len(devices) // known if sizes.get(axis, 1) == -1 else sizes.get(axis, 1) for axis in MESH_AXES]
    if np.prod(shape) != len(devices) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh {sizes} does not fill {len(devices)} devices; one axis may be -1 for the rest")
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    slices = slices_of(devices)
    if shape[0] % slices:
        raise ValueError(
            f"mesh axis 'data' has size {shape[0]}; the devices are {slices} slices, and it must split them"
        )
    # Along the torus where the sizes allow it; an axis that is part of one of the torus' is better than none.
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        in_slice, of_slices = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
        placed = mesh_utils.create_hybrid_device_mesh(in_slice, of_slices, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, MESH_AXES, axis_types)


def slices_of(devices) -> int:
    """How many slices the devices of TPUs belong to. (JAX calls the hosts of GPUs so too: any axis may cross these.)"""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) if axis else None for axis in axes))


def shardings(spec, mesh: jax.sharding.Mesh):
    """NamedShardings of a parameter spec. Raises ValueError where a dimension cannot be split evenly."""
    for name, leaf in named_leaves(spec).items():
        _check_splits(name, leaf, mesh)
    return tree_map(lambda leaf: NamedSharding(mesh, partition_spec(leaf.axes)), spec)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Of [batch, tokens, …] arrays."""
    return NamedSharding(mesh, partition_spec(("batch", "tokens")))


def one_device() -> bool:
    """Whether no mesh of several devices is in scope: nothing is split then."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def split_axes(axis: str, size: int, mesh) -> tuple[str, ...]:
    """The mesh axes of a logical axis that split a dimension of this size evenly: a few rows lie on fewer devices."""
    axes = ()
    for mesh_axis in RULES[axis]:
        if size % mesh.shape[mesh_axis] == 0:
            axes, size = (*axes, mesh_axis), size // mesh.shape[mesh_axis]
    return axes


def constrain(x, axes: tuple[str | None, ...]):
    """Asks the compiler to lay an array out by its logical axes; nothing where no mesh is set or it does not split."""
    if one_device():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    split = (split_axes(axis, size, mesh) if axis else None for axis, size in zip(axes, x.shape, strict=True))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*split))


def gathered(params, spec, dtype):
    """Weights as they are computed with: whole along `embed`, in `dtype` (the router's in its own).

    They are stored in parts along `embed`, and without this the compiler may as well move activations. The gradient is
    laid out as the weight is stored. Experts go on as they are: `experts.expert_parallel` gathers them.
    """
    if one_device():
        return params

    def compute_layout(path, leaf, x):
        if "embed" not in leaf.axes or "experts" in leaf.axes:
            return x
        return _gathered(x, leaf.axes, x.dtype if path_name(path).endswith("router") else dtype)

    return jax.tree_util.tree_map_with_path(compute_layout, spec, params, is_leaf=lambda x: isinstance(x, Leaf))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, axes: tuple[str | None, ...], dtype):
    computed = tuple(None if axis == "embed" else axis for axis in axes)
    return constrain(constrain(x, axes).astype(dtype), computed)


def _gathered_fwd(x, axes, dtype):
    return _gathered(x, axes, dtype), jnp.zeros(0, x.dtype)


def _gathered_bwd(axes, dtype, like, grad):
    del dtype
    return (constrain(grad, axes).astype(like.dtype),)


_gathered.defvjp(_gathered_fwd, _gathered_bwd)


def token_axes(shape_BT: tuple[int, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the mesh in scope that split tokens: their rows, and each row."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(split_axes(axis, size, mesh) for axis, size in zip(("batch", "tokens"), shape_BT, strict=True))


def local(size: int, axis: str) -> int:
    """How much of a dimension a device of the mesh in scope has, if it can be split evenly; else all."""
    return size // ways(axis) if size % ways(axis) == 0 else size


def per_device(function, in_axes, out_axes):
    """`function` run by each device of the mesh in scope on its parts, for what the compiler cannot split: kernels.

    The axes are those of its arguments and results, a tuple of (size, logical axis or None) for every array, or None
    where there is no array; dimensions that cannot be split evenly are not.
    """
    if one_device():
        return function

    def specs(axes):
        if axes is None:
            return None
        split = [axis if axis and size % ways(axis) == 0 else None for size, axis in axes]
        return partition_spec(tuple(split))

    in_specs, out_specs = (tuple(map(specs, axes)) for axes in (in_axes, out_axes))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def ways(axis: str) -> int:
    """How many ways the mesh in scope splits a logical axis."""
    return 1 if one_device() else mesh_ways(axis, jax.sharding.get_abstract_mesh())


def mesh_ways(axis: str | None, mesh) -> int:
    """How many ways a mesh splits a logical axis; None is not split."""
    return math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES.get(axis, ()))


def _check_splits(name: str, leaf, mesh: jax.sharding.Mesh) -> None:
    for size, axis in zip(leaf.shape, leaf.axes, strict=True):
        if size % (split := mesh_ways(axis, mesh)):
            raise ValueError(
                f"parameter {name}: axis {axis!r} of size {size} cannot be split {split} ways "
                f"(mesh axes {', '.join(RULES[axis])} of {dict(mesh.shape)})"
            )
