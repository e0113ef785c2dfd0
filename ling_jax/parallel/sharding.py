"""The device mesh and the table that maps logical axis names of arrays to mesh axes."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ling_jax.spec import Leaf, Params, Spec, named_leaves, tree_map

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
AXIS_TYPES = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
ArrayAxes = tuple[tuple[int, str | None], ...]  # (size, logical axis or None) of every dimension

# Logical axis -> mesh axes. Axes that are missing here, and None, are not split.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "tokens": ("context",),  # ranks hold neighbouring parts of a row (`parallel.context`)
    "vocab": ("expert", "tensor"),
    "embed": ("fsdp", "context"),  # context ranks use the same weights, so each stores a part
    "latent": ("fsdp", "context"),  # MLA's ranks: whole along an axis that does not divide them, since they are small
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "experts": ("expert",),
}
GATHERED = ("embed", "latent")  # weights are stored in parts along these and whole for computation


def make_mesh(sizes: dict[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with axes `MESH_AXES` over all devices. Missing axes have size 1; one axis may be -1, "the rest".

    The slower network between slices splits only `data`, so that gradients and sums of a few numbers cross it. Raises
    ValueError if an axis is unknown, the sizes do not fill the devices, or `data` does not split the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape({"data": -1} if sizes is None else sizes, len(devices))
    slices = slices_of(devices)
    if shape[0] % slices:
        raise ValueError(
            f"mesh axis 'data' has size {shape[0]}; the devices are {slices} slices, and it must split them"
        )
    # Mesh axes follow the torus where sizes allow; a mesh axis may be a part of a torus axis.
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        in_slice, of_slices = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
        placed = mesh_utils.create_hybrid_device_mesh(in_slice, of_slices, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, MESH_AXES, AXIS_TYPES)


def abstract_mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    """A mesh of these sizes without devices; missing axes have size 1."""
    return jax.sharding.AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES, axis_types=AXIS_TYPES)


def mesh_shape(sizes: dict[str, int], devices: int) -> list[int]:
    """The size of every axis of a mesh over so many devices. Raises ValueError as `make_mesh`."""
    for axis in sizes.keys() - set(MESH_AXES):
        raise ValueError(f"mesh axis {axis!r} is unknown; the axes are {', '.join(MESH_AXES)}")
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"mesh axis {axis!r} has size {size}; expected at least 1, or -1 for the rest")
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = [devices // known if sizes.get(axis, 1) == -1 else sizes.get(axis, 1) for axis in MESH_AXES]
    if np.prod(shape) != devices or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh {sizes} does not fill {devices} devices; one axis may be -1 for the rest")
    return shape


def all_sizes(devices: int, axes: Sequence[str] = MESH_AXES) -> Iterator[dict[str, int]]:
    """{axis: size} of every mesh of so many devices along these axes."""
    first, *others = axes
    if not others:
        yield {first: devices}
        return
    for size in range(1, devices + 1):
        if devices % size == 0:
            yield from ({first: size} | rest for rest in all_sizes(devices // size, others))


def slices_of(devices: Iterable[jax.Device]) -> int:
    """Number of TPU slices of the devices; 1 on GPUs, whose hosts JAX numbers as slices but any axis may cross."""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) if axis else None for axis in axes))


def shardings(spec: Spec, mesh: AnyMesh) -> Any:
    """NamedShardings of a parameter spec.

    Raises ValueError if the mesh does not split a dimension evenly, unless that is `latent`.
    """
    for name, leaf in named_leaves(spec).items():
        _check_splits(name, leaf, mesh)

    return tree_map(lambda leaf: NamedSharding(mesh, _even_partition(leaf.axes, leaf.shape, mesh)), spec)


def abstract_arrays(spec: Spec, mesh: AnyMesh, dtype: Callable[[Leaf], DTypeLike] = lambda leaf: leaf.dtype) -> Any:
    """The spec as ShapeDtypeStructs on the mesh, whose devices may be absent; `dtype` gives the dtype of each leaf.

    Raises ValueError as `shardings`.
    """

    def abstract(leaf: Leaf, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype(leaf), sharding=sharding)

    return tree_map(abstract, spec, shardings(spec, mesh))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of [batch, tokens, …] arrays."""
    return NamedSharding(mesh, partition_spec(("batch", "tokens")))


def one_device() -> bool:
    """Whether the mesh in scope, if any, has a single device, so that nothing is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def split_axes(axis: str, size: int, mesh: AnyMesh) -> tuple[str, ...]:
    """The mesh axes of a logical axis that together split a dimension of this size evenly."""
    axes: tuple[str, ...] = ()
    for mesh_axis in RULES[axis]:
        if size % mesh.shape[mesh_axis] == 0:
            axes, size = (*axes, mesh_axis), size // mesh.shape[mesh_axis]
    return axes


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """`x` with a sharding constraint by its logical axes; unchanged without a mesh. Uneven dimensions are not split."""
    if one_device():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, _even_partition(axes, x.shape, mesh))


def _even_partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """Dimensions are split as far as the mesh does so evenly."""
    dimensions = zip(axes, shape, strict=True)
    return PartitionSpec(*(split_axes(axis, size, mesh) if axis in RULES else None for axis, size in dimensions))


def gather_weights(params: Params, spec: Spec, dtype: DTypeLike) -> Params:
    """Weights gathered along `GATHERED` and cast to `dtype` (the router keeps its own) for the computation of a layer.

    Weights are stored in parts along these axes; without this constraint the compiler may move activations instead. The
    gradient has the layout of the stored weight. Experts stay split: `experts.expert_parallel` gathers them.
    """
    if one_device():
        return params

    def compute_layout(leaf: Leaf, x):
        if not set(GATHERED) & set(leaf.axes) or leaf.role == "experts":
            return x
        return _gather_weight(x, leaf.axes, x.dtype if leaf.role == "router" else dtype)

    return tree_map(compute_layout, spec, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_weight(x, axes: tuple[str | None, ...], dtype):
    computed = tuple(None if axis in GATHERED else axis for axis in axes)
    return constrain(constrain(x, axes).astype(dtype), computed)


def _gather_weight_fwd(x, axes, dtype):
    return _gather_weight(x, axes, dtype), jnp.zeros(0, x.dtype)


def _gather_weight_bwd(axes, dtype, like, grad):
    del dtype
    return (constrain(grad, axes).astype(like.dtype),)


_gather_weight.defvjp(_gather_weight_fwd, _gather_weight_bwd)


def token_axes(shape_BT: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the mesh in scope that split (rows, the tokens of each row)."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(split_axes(axis, size, mesh) for axis, size in zip(("batch", "tokens"), shape_BT, strict=True))


def shard_size(size: int, axis: str) -> int:
    """Size of a device's part of a dimension on the mesh in scope; the whole size if it does not split evenly."""
    return size // num_shards(axis) if size % num_shards(axis) == 0 else size


def per_device(
    function: Callable[..., Any], in_axes: tuple[ArrayAxes | None, ...], out_axes: tuple[ArrayAxes | None, ...]
) -> Callable[..., Any]:
    """`function` under `shard_map` on the mesh in scope, for kernels, which the compiler cannot split.

    `in_axes` and `out_axes` give (size, logical axis or None) of the dimensions of every array; trailing dimensions may
    be missing, and None stands for no array. Dimensions that the mesh does not split evenly stay whole.
    """
    if one_device():
        return function

    def specs(axes):
        if axes is None:
            return None
        split = [axis if axis and size % num_shards(axis) == 0 else None for size, axis in axes]
        return partition_spec(tuple(split))

    in_specs, out_specs = (tuple(map(specs, axes)) for axes in (in_axes, out_axes))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def num_shards(axis: str | None, mesh: AnyMesh | None = None) -> int:
    """Number of parts into which a mesh (None: the one in scope) splits a logical axis; 1 for None."""
    if mesh is None:
        if one_device():
            return 1
        mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES.get(axis, ()))


def _check_splits(name: str, leaf, mesh: AnyMesh) -> None:
    for size, axis in zip(leaf.shape, leaf.axes, strict=True):
        if axis != "latent" and size % (split := num_shards(axis, mesh)):
            raise ValueError(
                f"parameter {name}: axis {axis!r} of size {size} cannot be split {split} ways "
                f"(mesh axes {', '.join(RULES[axis])} of {dict(mesh.shape)}); their product must divide {size}"
            )
