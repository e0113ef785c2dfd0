"""How an array gets to devices of another mesh that shares none with its own: in pieces, from device to device."""

import itertools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

Box = tuple[tuple[int, int], ...]  # [start, stop) of every dimension


def copy_to(x: jax.Array, place: NamedSharding) -> jax.Array:
    """The array on devices of this process that it does not lie on.

    A device gets what it will hold and nothing else; no array passes through the host. `jax.device_put` would bring the
    whole array to the host wherever the meshes cut it differently.
    """
    sources: dict[Box, list[jax.Array]] = {}
    for shard in x.addressable_shards:
        sources.setdefault(box_of(shard.index, x.shape), []).append(shard.data)
    targets = place.devices_indices_map(x.shape).items()
    parts = [_part(sources, box_of(index, x.shape), device, i) for i, (device, index) in enumerate(targets)]
    return jax.make_array_from_single_device_arrays(x.shape, place, parts)


def box_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    """The box that slices select of an array of this shape."""
    return tuple(piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True))


def intersection(a: Box, b: Box) -> Box | None:
    """The box of all that is in both; None where nothing is."""
    both = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return both if all(start < stop for start, stop in both) else None


def volume(box: Box | None) -> int:
    """How many numbers are in a box."""
    return 0 if box is None else math.prod(stop - start for start, stop in box)


def _part(sources: dict[Box, list[jax.Array]], wanted: Box, device: jax.Device, number: int) -> jax.Array:
    """A box of the array on a device. Of equal sources each target takes another one, so that all links are used."""
    pieces: dict[tuple[int, ...], jax.Array] = {}  # by their first places
    for box, copies in sources.items():
        if both := intersection(box, wanted):
            data = copies[number % len(copies)]
            if both != box:
                data = data[tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(both, box, strict=True))]
            pieces[tuple(start for start, _ in both)] = jax.device_put(data, device)
    return _joined(pieces, len(wanted))


def _joined(pieces: dict[tuple[int, ...], jax.Array], rank: int) -> jax.Array:
    """The array that the pieces of a grid make up: joined along the last axis, then along the one before."""
    for axis in reversed(range(rank)):
        rows = itertools.groupby(sorted(pieces), key=lambda start: start[:axis])
        pieces = {start: _concatenate([pieces[piece] for piece in row], axis) for start, row in rows}
    return pieces[()]


def _concatenate(pieces: list[jax.Array], axis: int) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
