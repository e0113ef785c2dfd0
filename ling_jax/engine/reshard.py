"""Weights of a trainer's mesh to an engine's mesh: cast where they lie, then moved (docs/engine.md)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.engine import moves
from ling_jax.engine.disjoint import box_of, copy_to, intersection, volume
from ling_jax.engine.memory import MemoryPlan
from ling_jax.engine.weights import cast_digest, check_finite, digest, served, served_spec, serving_dtype
from ling_jax.messages import size_text
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import MESH_AXES, abstract_arrays, mesh_shape, shardings

# Which axes of a trainer's mesh an engine's axis takes devices from, in this order: its own first, so that what it
# splits lies where it was.
TAKES = {"expert": ("expert", "fsdp", "data", "context"), "tensor": ("tensor", "context", "fsdp", "data")}


@dataclasses.dataclass(frozen=True)
class ReshardPlan:
    """What an engine's weights cost. Bytes are those of the device that has the most."""

    moved_bytes: int  # of weights that come into a device from others
    trainer_bytes: int  # that the trainer keeps on a device
    weights_bytes: int  # of the engine
    pool: MemoryPlan | None = None
    device_bytes: float | None = None  # memory of a device
    engines: int = 1  # on a device at a time: a second one evaluates
    apart: bool = False  # whether trainer and engine share no device

    @property
    def engine_bytes(self) -> int:
        """Weights, states and pages on a device."""
        return self.weights_bytes + (self.pool.total_bytes if self.pool else 0)

    @property
    def peak_bytes(self) -> int:
        """Of a device with an engine, and with the trainer where they share it, while new weights stand beside the old
        ones."""
        trainer = 0 if self.apart else self.trainer_bytes
        return trainer + self.weights_bytes + self.engines * self.engine_bytes

    def __str__(self) -> str:
        several = f"{self.engines} x " if self.engines > 1 else ""
        room = f" of {size_text(self.device_bytes)}" if self.device_bytes else ""
        beside = "of trainer, on others" if self.apart else "of trainer +"
        return (
            f"weights to the engine: {size_text(self.moved_bytes)} into each device, "
            f"{size_text(self.trainer_bytes)} {beside} {several}{size_text(self.engine_bytes)} of engine{room}"
        )

    def check(self) -> None:
        """Raises ValueError where trainer and engine do not fit on a device: by how much, and the smallest change."""
        over = self.peak_bytes - (self.device_bytes or math.inf)
        if over <= 0:
            return
        change = "an engine with tensor or expert twice as large halves its weights"
        if self.pool and self.pool.total_bytes > over:
            left = 1 - over / self.pool.total_bytes
            slots = int(left * self.pool.slots / self.pool.parts) * self.pool.parts
            less = f"memory_bytes {self.pool.total_bytes - math.ceil(over)} would do"
            change = f"{less}, with slots {slots} for contexts as long" if slots else f"{less}; {change}"
        new = f"{size_text(self.weights_bytes)} of new weights beside the old ones"
        raise ValueError(f"{self}, and {new}: {size_text(over)} too many; {change}")


def engine_mesh(trainer: Mesh, sizes: Mapping[str, int]) -> Mesh:
    """A mesh for an engine of these sizes (data, expert, tensor; one may be -1) over a trainer's devices.

    An axis of the engine takes the devices along the same axis of the trainer first, so that few weights move. Raises
    ValueError where the sizes do not fill the devices.
    """
    plain = mesh_like(trainer, sizes)
    mesh, of_axis = moves.digits_of(trainer)
    free, chosen = {axis: list(names) for axis, names in of_axis.items()}, {axis: [] for axis in MESH_AXES}
    for axis, others in TAKES.items():
        left = plain.shape[axis]
        for name in [name for other in others for name in free[other]]:
            if left % mesh.shape[name] == 0 and left > 1:
                left //= mesh.shape[name]
                chosen[axis].append(name)
        if left > 1:
            return plain  # the sizes cut the devices at other places
        free = {other: [name for name in names if name not in chosen[axis]] for other, names in free.items()}
    chosen["data"] = [name for names in free.values() for name in names]
    order = [mesh.axis_names.index(name) for axis in MESH_AXES for name in chosen[axis]]
    return Mesh(mesh.devices.transpose(order).reshape(plain.devices.shape), MESH_AXES, plain.axis_types)


def mesh_like(trainer: Mesh, sizes: Mapping[str, int]) -> Mesh:
    """A mesh of these sizes over the devices in the trainer's order. Raises ValueError as `make_mesh`."""
    shape = mesh_shape(dict(sizes), trainer.size)
    return Mesh(trainer.devices.reshape(shape), MESH_AXES, trainer.axis_types)


def reshard_plan(
    config: ModelConfig,
    trainer: Mesh,
    engine: Mesh,
    *,
    trainer_bytes: int | None = None,
    pool: MemoryPlan | None = None,
    device_bytes: float | None = None,
    engines: int = 1,
) -> ReshardPlan:
    """The plan of `reshard` from the mesh `trainer` to `engine`, from the ranges of the shards.

    `trainer_bytes` is what the trainer has on a device (None: its parameters alone), `pool` the engine's memory and
    `device_bytes` a device's. Raises ValueError where a mesh cannot split the weights, and where `reshard` would.
    """
    moved: dict[Any, int] = dict.fromkeys(engine.devices.flat, 0)
    weights = 0
    spec, devices = served_spec(config), set(trainer.devices.flat)
    if devices == moved.keys():
        digits = moves.of_meshes(trainer, engine)
        for leaf in specs.named_leaves(spec).values():
            for size, axis in zip(leaf.shape, leaf.axes, strict=True):
                moves.dimension(size, axis, digits)
    pairs = zip(*(specs.named_leaves(shardings(spec, mesh)).values() for mesh in (trainer, engine)), strict=True)
    for leaf, (source, target) in zip(specs.named_leaves(spec).values(), pairs, strict=True):
        size = jnp.dtype(serving_dtype(leaf, config)).itemsize
        has, wants = (place.devices_indices_map(leaf.shape) for place in (source, target))
        weights += size * math.prod(target.shard_shape(leaf.shape))
        for device, index in wants.items():
            box = box_of(index, leaf.shape)
            held = intersection(box, box_of(has[device], leaf.shape)) if device in has else None
            moved[device] += size * (volume(box) - volume(held))
    if trainer_bytes is None:
        whole = model_spec(config)
        leaves = zip(*(specs.named_leaves(tree).values() for tree in (whole, shardings(whole, trainer))), strict=True)
        trainer_bytes = sum(4 * math.prod(place.shard_shape(leaf.shape)) for leaf, place in leaves)
    apart = devices.isdisjoint(moved)
    return ReshardPlan(max(moved.values()), trainer_bytes, weights, pool, device_bytes, engines, apart)


def reshard(params: Any, config: ModelConfig, mesh: Mesh) -> Any:
    """The parameters as an engine on this mesh serves them: in the dtypes of `serving_dtype`, without MTP modules.

    Weights of a mesh over the same devices are cast where they lie and move in one program, in which no device gets
    more of a weight than it serves. Those of a mesh that shares no device with the engine's are cast as well and copied
    from device to device. Others are placed one by one. Raises ValueError where names, shapes or numbers are not those
    of a model of this config, or two meshes over the same devices cut them at different places.
    """
    params, spec = served(params, config), served_spec(config)
    source = _mesh_of(params, spec)
    if source == mesh:
        copy = _cast(params, config)
    elif source is not None and set(source.devices.flat) == set(mesh.devices.flat):
        copy = _rewrapped(_program(config, source, mesh)(params), spec, mesh)
    elif source is not None and set(source.devices.flat).isdisjoint(mesh.devices.flat):
        copy = jax.tree.map(copy_to, _cast(params, config), shardings(spec, mesh))
    else:
        copy = specs.tree_map(functools.partial(_placed, config), spec, params, shardings(spec, mesh))
    check_finite(copy)
    _check_moved(params, copy, config, source)
    return copy


def _check_moved(params: Any, copy: Any, config: ModelConfig, source: Mesh | None) -> None:
    """Raises ValueError where a move from another mesh changed a bit."""
    moved = source is not None and source != _mesh_of(copy, served_spec(config))
    if moved and cast_digest(params, config) != digest(copy):
        raise ValueError("the weights came to the engine's mesh with other bits; the weights before stay loaded")


@functools.partial(jax.jit, static_argnums=1)
def _cast(params: Any, config: ModelConfig) -> Any:
    """Copies, also where the dtype is the same: a trainer's step uses its own arrays up."""
    return specs.tree_map(lambda leaf, x: jnp.array(x, serving_dtype(leaf, config)), served_spec(config), params)


def lower_reshard(config: ModelConfig, trainer: Mesh, engine: Mesh) -> jax.stages.Lowered:
    """Lowers the program of `reshard` for devices that may be absent; raises ValueError as `reshard`."""
    return _program(config, trainer, engine).lower(abstract_masters(config, trainer))


def abstract_masters(config: ModelConfig, trainer: Mesh) -> Any:
    """The trainer's weights that an engine serves, as ShapeDtypeStructs."""
    return abstract_arrays(served_spec(config), trainer)


@functools.lru_cache(maxsize=8)
def _program(config: ModelConfig, source: Mesh, target: Mesh):
    """The jitted move; its results are arrays of the mesh of digits, of which each device has what it serves."""
    digits, spec = moves.of_meshes(source, target), served_spec(config)
    shardings(spec, target)  # raises ValueError where the mesh does not split a parameter evenly

    def moved(params):
        def leaf(leaf, x):
            return moves.move(x.astype(serving_dtype(leaf, config)), leaf.axes, digits)

        return specs.tree_map(leaf, spec, params)

    return jax.jit(moved)


def _rewrapped(moved: Any, spec: specs.Spec, mesh: Mesh) -> Any:
    """The same shards as arrays of the engine's mesh, whose devices may be in another order."""

    def leaf(leaf, x, place):
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, place, shards)

    return specs.tree_map(leaf, spec, moved, shardings(spec, mesh))


def _mesh_of(params: Any, spec: specs.Spec) -> Mesh | None:
    """The mesh on which all parameters lie as their spec says; None: there is none."""
    leaves = jax.tree.leaves(params)
    place = getattr(leaves[0], "sharding", None)
    if not isinstance(place, NamedSharding):
        return None
    try:
        declared = jax.tree.leaves(shardings(spec, place.mesh))
    except (KeyError, ValueError):  # a mesh of other axes
        return None
    same = (
        isinstance(x, jax.Array) and x.sharding.is_equivalent_to(wanted, x.ndim)
        for x, wanted in zip(leaves, declared, strict=True)
    )
    return place.mesh if all(same) else None


def _placed(config: ModelConfig, leaf: specs.Leaf, x: Any, place: NamedSharding) -> jax.Array:
    """One parameter on the engine's mesh."""
    dtype = serving_dtype(leaf, config)
    if isinstance(x, jax.Array) and (not x.is_fully_addressable or place.is_fully_addressable):
        return jax.device_put(jnp.astype(x, dtype), place)
    whole = np.asarray(x)  # every process has it, and none needs to compare it with the others
    return jax.make_array_from_callback(leaf.shape, place, lambda index: whole[index].astype(dtype))
