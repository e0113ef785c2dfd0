"""The work of one device in a compiled program, from its HLO text: FLOPs, HBM bytes, collectives.

Operations count once per trip of the loops around them. A loop with a data-dependent trip count counts once; the only
ones here run over chunks of experts' rows, and even loads fill one chunk (`parallel.expert_chunks`). Pallas kernels
count the costs that they declare.
"""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

from pallas_kernels.hlo_bytes import (
    ARRAY,
    Computation,
    Instruction,
    computations,
    hlo_operations,
    shape_bytes,
    walk,
)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
)  # fmt: skip
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # an iota of device numbers: shape and transposition
# bfloat16 passes of the matrix unit for a float32 product, by precision.
PASSES = {"highest": 6, "high": 3}


class Collective(NamedTuple):
    """All collectives of one kind along the same mesh axes."""

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int  # received by a device


class Work(NamedTuple):
    """The work of one device in one run of the program."""

    flops: float
    matrix_unit_flops: float  # float32 products count as their bfloat16 passes
    hbm_bytes: float
    collectives: tuple[Collective, ...]
    network_bytes: int  # received by a device from other slices
    open_loops: tuple[str, ...]  # loops with unknown trip count, counted once

    @property
    def collective_bytes(self) -> int:
        """Bytes that a device receives in collectives."""
        return sum(collective.bytes for collective in self.collectives)


def read_work(text: str, mesh_shape: dict[str, int]) -> Work:
    """The work in the text of a compiled program (`compiled.as_text()`); `mesh_shape` is {axis: size}."""
    module = computations(text)
    operations, open_loops = hlo_operations(module)
    declared = {}
    flops = passes = hbm = 0.0
    network = 0
    found: dict = collections.Counter()
    sizes: dict = collections.Counter()
    for here, op, times, _ in walk(module):
        kind = op.kind.removesuffix("-start")
        if kind in COLLECTIVES and not op.kind.endswith("-done"):
            kind = "reduce-scatter" if kind == "all-reduce" and _is_sliced(op, here) else kind
            key = (kind, _axes(op, mesh_shape))
            found[key] += times
            sizes[key] += times * _received(kind, op, here, math.prod(mesh_shape.values()))
        elif op.kind == "recv" and "megascale" in op.attributes:  # a collective's part between slices
            network += times * shape_bytes(op.shape.split("u32[]")[0], on_chip=True)
        elif op.kind in ("convolution", "dot"):
            product = times * _product_flops(op, here)
            flops, passes = flops + product, passes + product * _passes(op)
        elif cost := re.search(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', op.attributes):
            flops, passes = flops + times * int(cost[1]), passes + times * int(cost[1])
            declared[op.name] = times * int(cost[2])
    hbm = sum(declared.get(operation.name, operation.hbm_bytes) for operation in operations)
    rows = (Collective(*key, count, sizes[key]) for key, count in found.items())
    return Work(flops, passes, hbm, tuple(sorted(rows, key=lambda row: -row.bytes)), network, tuple(open_loops))


def _is_sliced(op: Instruction, here: Computation) -> bool:
    """Whether an all-reduce is a reduce-scatter: the TPU compiler fuses it with a slice of its result."""
    return any(user.kind == "dynamic-slice" and user.operands[0] == op.name for user in here.values())


def _axes(op: Instruction, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ, in mesh order."""
    group = _group(op.attributes, math.prod(mesh_shape.values()))
    places = np.array(np.unravel_index(group, tuple(mesh_shape.values())))
    return tuple(axis for axis, place in zip(mesh_shape, places, strict=True) if len(set(place)) > 1)


def _group(attributes: str, devices: int) -> list[int]:
    """The devices of the first group, numbered in mesh order."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        hops = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)", pairs[0])]
        return list(next((pair for pair in hops if pair[0] != pair[1]), (0,)))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return [int(number) for number in listed[1].split(",")]
    if iota := re.search(rf"replica_groups=\[([\d,]+)\]<={IOTA}", attributes):
        return _iota(*iota.groups()[1:]).reshape(_numbers(iota[1]))[0].tolist()
    if along := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({IOTA}\))? \{{([^}}]*)\}}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", along[1])}
        placed = (_iota(along[2], along[3]) if along[2] else np.arange(devices)).reshape(tuple(sizes.values()))
        return placed[tuple(slice(None) if f"'{name}'" in along[4] else 0 for name in sizes)].ravel().tolist()
    if found := re.search(r"replica_groups=(?!\{\})\S{,60}", attributes):
        raise ValueError(f"the devices of a collective are written in a form that is not known here: {found[0]}")
    return list(range(devices))


def _iota(dims: str, order: str | None) -> np.ndarray:
    dims = _numbers(dims)
    return np.arange(math.prod(dims)).reshape(dims).transpose(_numbers(order) if order else None)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _received(kind: str, op: Instruction, here: Computation, devices: int) -> int:
    """Bytes that a device receives in one run of a collective, with a ring or a direct exchange.

    The traffic of a ragged exchange depends on the data. With even loads a device receives as much as it sends, at most
    the size of the smaller buffer; that bound counts here.
    """
    operands = sum(shape_bytes(here[name].shape, on_chip=True) for name in op.operands if name in here)
    if kind == "ragged-all-to-all":
        send, receive = (shape_bytes(here[name].shape, on_chip=True) for name in op.operands[:2])
        operands = min(send, receive)
    size = len(_group(op.attributes, devices))
    match kind:
        case "all-gather":
            return operands * (size - 1)
        case "all-reduce":
            return 2 * operands * (size - 1) // size
        case "collective-permute":
            return operands
    return operands * (size - 1) // size


def _product_flops(op: Instruction, here: Computation) -> int:
    """FLOPs of a dot, or of the convolution into which a TPU turns it."""
    result, (left, right) = _dims(op.shape), (_dims(here[name].shape) for name in op.operands[:2])
    if op.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)[1]
        return 2 * math.prod(result) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    lhs, rhs, out = labels.groups()
    total = 2 * math.prod(result[out.index(label)] for label in "bf") * right[rhs.index("i")]
    for number, dim in enumerate(sorted(set(out) - set("bf"))):
        total *= _positions(op.attributes, number, left[lhs.index(dim)], right[rhs.index(dim)], result[out.index(dim)])
    return total


def _positions(attributes: str, number: int, base: int, kernel: int, result: int) -> int:
    """Number of (result position, kernel position) pairs of one dimension that read an element and not padding."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}

    def part(name: str, default: str) -> str:
        return fields[name].split("x")[number] if name in fields else default

    before = int(part("pad", "0_0").split("_")[0])
    stride, dilate, spread = (int(part(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    at = np.arange(result)[:, None] * stride + np.arange(kernel) * dilate - before
    return int(np.sum((at >= 0) & (at <= (base - 1) * spread) & (at % spread == 0)))


def _passes(op: Instruction) -> int:
    found = re.search(r"operand_precision=\{(\w+)", op.attributes)
    return PASSES.get(found[1], 1) if found else 1


def _dims(shape: str) -> list[int]:
    return [int(dim) for dim in ARRAY.search(shape)[2].split(",") if dim]
