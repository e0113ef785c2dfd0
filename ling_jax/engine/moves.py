"""How an array that lies on one mesh gets to another mesh over the same devices, without being gathered whole.

Both meshes are seen as one whose axes are prime factors, called digits: mesh axes of 8 and 4 are digits of 2. A
dimension's size is split into digits as well; each lies on a digit of the mesh (the devices have different values) or
in the device's memory. A move changes that in three steps, each at most once:

    permute     digits that lie on another digit of the mesh afterwards: a device gets the block of another one
    exchange    digits of the mesh and digits in memory change places: one all-to-all
    gather      digits of the mesh that no dimension uses afterwards: one all-gather
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ling_jax.parallel.sharding import RULES


@dataclasses.dataclass(frozen=True)
class Digits:
    """Two meshes over the same devices as one. Raises ValueError where they share no digits (`of_meshes`)."""

    mesh: Mesh  # of the digits, in the order of the first mesh's devices
    source: dict[str, tuple[str, ...]]  # axis of the first mesh -> its digits, the slowest first
    target: dict[str, tuple[str, ...]]


@dataclasses.dataclass
class Digit:
    """A part of a dimension's size, and where it lies: on a digit of the mesh, or in memory (None)."""

    size: int
    source: str | None
    target: str | None


def primes(size: int) -> list[int]:
    """The prime factors, the smallest first."""
    for factor in range(2, math.isqrt(size) + 1):
        if size % factor == 0:
            return [factor, *primes(size // factor)]
    return [size] if size > 1 else []


def digits_of(mesh: Mesh) -> tuple[Mesh, dict[str, tuple[str, ...]]]:
    """(the mesh with an axis for each digit, {axis: its digits})."""
    sizes = {axis: primes(size) for axis, size in mesh.shape.items()}
    names = iter(f"d{number}" for number in itertools.count())
    of_axis = {axis: tuple(next(names) for _ in factors) for axis, factors in sizes.items()}
    shape = [factor for factors in sizes.values() for factor in factors]
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    return Mesh(mesh.devices.reshape(shape), [name for group in of_axis.values() for name in group], kinds), of_axis


def of_meshes(source: Mesh, target: Mesh) -> Digits:
    """The digits of both. Raises ValueError where a digit of the target is none of the source."""
    mesh, of_source = digits_of(source)
    places = {device: place for place, device in np.ndenumerate(mesh.devices)}
    other, of_target = digits_of(target)
    where = np.array([places[device] for device in other.devices.flat]).reshape(*other.devices.shape, -1)
    found = {}
    for axis, name in enumerate(other.axis_names):
        value = np.indices(other.devices.shape)[axis]
        same = [i for i in range(where.shape[-1]) if np.array_equal(where[..., i], value)]
        if not same:
            raise ValueError(
                f"mesh {dict(target.shape)} cuts the devices of {dict(source.shape)} at other places, so that weights "
                f"would have to be gathered whole; make it with `engine_mesh`, or with sizes that are powers of two"
            )
        found[name] = mesh.axis_names[same[0]]
    return Digits(mesh, of_source, {axis: tuple(found[name] for name in names) for axis, names in of_target.items()})


def dimension(size: int, axis: str | None, digits: Digits) -> list[Digit]:
    """The digits of a dimension with this logical axis. Raises ValueError where both meshes cut it in other places."""
    source, target = (_splitting(size, axis, names, digits.mesh) for names in (digits.source, digits.target))
    found = []
    for of_source, of_target in itertools.zip_longest(source, target):
        factors = {digits.mesh.shape[name] for name in (of_source, of_target) if name is not None}
        if len(factors) > 1:
            raise ValueError(f"axis {axis!r} of size {size} is cut by {factors} at one place; use powers of two")
        found.append(Digit(factors.pop(), of_source, of_target))
    return found


def _splitting(size: int, axis: str | None, names: dict[str, tuple[str, ...]], mesh: Mesh) -> list[str]:
    """The digits that split a dimension, as `sharding.split_axes` says for the mesh whose digits are `names`."""
    found: list[str] = []
    for mesh_axis in RULES.get(axis, ()):
        ways = math.prod(mesh.shape[name] for name in names[mesh_axis])
        if size % ways == 0:
            found, size = [*found, *names[mesh_axis]], size // ways
    return found


def partition(dimensions: Sequence[Sequence[Digit]], end: str) -> PartitionSpec:
    """The PartitionSpec of the array on the mesh of digits; `end` is "source" or "target"."""
    names = (tuple(n for digit in digits if (n := getattr(digit, end)) is not None) for digits in dimensions)
    return PartitionSpec(*(group or None for group in names))


def move(x: jax.Array, axes: Sequence[str | None], digits: Digits) -> jax.Array:
    """`x` with these logical axes, as the source mesh has it, to the layout of the target mesh; inside a `jax.jit`."""
    dims = [dimension(size, axis, digits) for size, axis in zip(x.shape, axes, strict=True)]
    specs = partition(dims, "source"), partition(dims, "target")
    x = jax.lax.with_sharding_constraint(x, NamedSharding(digits.mesh, specs[0]))
    whole = x.shape

    def on_device(x):
        if x.dtype.itemsize != 2:
            return _moved(x, dims, whole, digits.mesh)
        # As integers: XLA on a CPU would send bfloat16 as float32.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint16)
        return jax.lax.bitcast_convert_type(_moved(bits, dims, whole, digits.mesh), x.dtype)

    return jax.shard_map(on_device, mesh=digits.mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)(x)


def _moved(x, dims: list[list[Digit]], whole: tuple[int, ...], mesh: Mesh):
    every = [digit for digits in dims for digit in digits]
    rest = [size // math.prod(digit.size for digit in digits) for size, digits in zip(whole, dims, strict=True)]
    shape, order = [], []  # of the array with an axis for each digit; the axes in memory, behind all digits
    for digits, size in zip(dims, rest, strict=True):
        order += [*(len(shape) + i for i in range(len(digits)))]
        shape += [*(1 if digit.source else digit.size for digit in digits), size]
    others = [i for i in range(len(shape)) if i not in order]
    x = x.reshape(shape).transpose(*order, *others)  # [digit, digit, …, rest, rest, …]
    lies = {number: digit.source for number, digit in enumerate(every)}
    after, sender = _permutation(every, mesh)
    index = jax.lax.axis_index(mesh.axis_names)
    receiver = np.argsort(sender)
    coordinates = np.array(np.unravel_index(receiver, mesh.devices.shape))
    for number, digit in enumerate(every):  # what the receiver does not keep is not sent
        if digit.source is None and digit.target not in after.values():
            wanted = jnp.asarray(coordinates[mesh.axis_names.index(digit.target)])[index]
            x, lies[number] = jax.lax.dynamic_slice_in_dim(x, wanted, 1, axis=number), digit.target
    if np.any(sender != np.arange(mesh.size)):
        x = jax.lax.ppermute(x, mesh.axis_names, [(int(v), w) for w, v in enumerate(sender)])
    lies |= after
    x = _exchanged(x, every, lies, mesh)
    back = np.argsort([*order, *others])
    sizes = [1 if digit.target else digit.size for digit in every]
    x = x.reshape(*sizes, *rest).transpose(*back)
    split = (math.prod(digit.size for digit in digits if digit.target) for digits in dims)
    return x.reshape([size // parts for size, parts in zip(whole, split, strict=True)])


def _permutation(every: list[Digit], mesh: Mesh) -> tuple[dict[int, str], np.ndarray]:
    """({number of a digit on the mesh: where it lies afterwards}, the device from which each one gets its block)."""
    split = {number: digit for number, digit in enumerate(every) if digit.source}
    after = {number: digit.target for number, digit in split.items() if digit.target}
    for number, digit in split.items():  # in memory in the end: it stays where it is, or makes room
        if digit.target is None and digit.source not in after.values():
            after[number] = digit.source
    for number, digit in split.items():
        if number not in after:
            free = [n for n in mesh.axis_names if mesh.shape[n] == digit.size and n not in after.values()]
            after[number] = next((n for n in free if n in {d.target for d in every}), free[0])
    places = np.array(np.unravel_index(np.arange(mesh.size), mesh.devices.shape))
    row = {name: places[i] for i, name in enumerate(mesh.axis_names)}
    numbers = sorted(split)
    has = list(zip(*(row[split[n].source] for n in numbers), strict=True)) or [()] * mesh.size
    wants = list(zip(*(row[after[n]] for n in numbers), strict=True)) or [()] * mesh.size
    sender, holders = np.full(mesh.size, -1), {}
    for device in range(mesh.size):  # who has its block keeps it
        if has[device] == wants[device]:
            sender[device] = device
        else:
            holders.setdefault(has[device], []).append(device)
    for device in np.flatnonzero(sender < 0):
        sender[device] = holders[wants[device]].pop(0)
    return after, sender


def _exchanged(x, every: list[Digit], lies: dict[int, str | None], mesh: Mesh):
    """`x` after the exchange and the gather; its first axes are the digits."""
    wanted = {digit.target: number for number, digit in enumerate(every) if lies[number] is None and digit.target}
    leaving = {lies[number]: number for number, digit in enumerate(every) if lies[number] and digit.target is None}
    names = [name for name in mesh.axis_names if name in wanted and name in leaving]
    if names:
        x = _through_front(x, [wanted[n] for n in names], [leaving[n] for n in names], lambda x: _all_to_all(x, names))
    names = [name for name in mesh.axis_names if name in leaving and name not in wanted]
    if names:
        x = _through_front(x, [leaving[n] for n in names], [leaving[n] for n in names], lambda x: _all_gather(x, names))
    return x


def _through_front(x, given: list[int], taken: list[int], collective):
    """`collective` of the axes `given`, joined in front, whose result's digits are the axes `taken`."""
    sizes = [x.shape[axis] for axis in given]
    rest = [axis for axis in range(x.ndim) if axis not in given]
    front = x.transpose(*given, *rest)
    shape = front.shape[len(given) :]
    found, digits = collective(front.reshape(math.prod(sizes), *shape))
    found = found.reshape(*digits, *shape)
    if given == taken:
        return found.transpose(*np.argsort([*given, *rest]))
    # The axes `taken` had size 1 on this device; the axes `given` have it now.
    places = [rest.index(axis) + len(given) for axis in taken]
    found = jnp.squeeze(found, places)
    left = [axis for axis in rest if axis not in taken]
    found = jnp.expand_dims(found, tuple(range(found.ndim, found.ndim + len(given))))
    return found.transpose(*np.argsort([*taken, *left, *given]))


def _all_to_all(x, names):
    sizes = [jax.lax.axis_size(name) for name in names]
    return jax.lax.all_to_all(x, tuple(names), split_axis=0, concat_axis=0, tiled=True), sizes


def _all_gather(x, names):
    sizes = [jax.lax.axis_size(name) for name in names]
    return jax.lax.all_gather(x, tuple(names), axis=0, tiled=True), sizes
