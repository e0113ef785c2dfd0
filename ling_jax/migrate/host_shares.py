"""What one of many hosts reads, writes and needs of memory in each stage, computed from configs alone.

Numbers are those of the host with the largest share. Memory is that of the host, without its accelerators.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from ling_jax import spec as specs
from ling_jax.checkpoint.parts import TOP, layer_leaves
from ling_jax.checkpoint.port import BASE_BYTES
from ling_jax.checkpoint.transfer import BATCH_BYTES
from ling_jax.config import ModelConfig
from ling_jax.messages import size_text
from ling_jax.migrate.config import MigrateConfig
from ling_jax.migrate.convert import converted_layers
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import abstract_arrays, abstract_mesh
from ling_jax.train.config import MeshConfig
from ling_jax.train.state import state_bytes

MASTER_BYTES = 4  # per weight, gradient and moment (float32)
MERGE_THREADS = 8  # that read, sum and write parts of checkpoints; our choice
MERGE_COPIES = 6  # of a float32 part: itself, a term and the sum in float64, and the result
MIXER_COPIES = 3  # of a mixer in float64 while it is converted; measured: 3.6 GB for a layer of the 1T
STATE_COPIES = 2  # of the hidden states: normed inputs, and those of calibration in one array


class HostShare(NamedTuple):
    """Bytes of the busiest host."""

    read: int
    written: int
    memory: int
    device: int = 0  # of one accelerator, where the host does not compute on the mesh

    def __str__(self) -> str:
        read, written, memory, device = map(size_text, self)
        on_device = f", {device} of its first accelerator if it has one" if self.device else ""
        return f"reads {read}, writes {written}, takes {memory} of memory{on_device}"


def conversion_share(
    config: MigrateConfig, before: ModelConfig, after: ModelConfig, itemsize: int, hosts: int
) -> HostShare:
    """The share of a conversion; `itemsize` is that of a stored weight.

    A host reads one of its layers, computes with a copy in the compute dtype (a CPU with one in float32 too, which its
    products of bfloat16 need), and writes the new form. The hidden states of all samples come from the host of the
    layer before and go to that of the next.
    """
    old, new, changed = _layer_sizes(before), _layer_sizes(after), converted_layers(before, after)
    top = itemsize * sum(size for name, size in _sizes(before).items() if name in TOP)
    compute, samples = np.dtype(before.compute_dtype).itemsize, config.conversion
    states = (samples.calibration_tokens + samples.held_out_tokens) * before.hidden_size * compute
    busy, on_cpu = min(hosts, len(old)), MASTER_BYTES if compute < MASTER_BYTES else 0

    def share(host: int) -> HostShare:
        own = range(len(old))[host::busy]
        moved = states * len(own) if busy > 1 else 0
        mixers = [max(_mixer_size(model, number) for model in (before, after)) for number in own if number in changed]
        largest = max(old[number] for number in own)
        reads_top, writes_top = top * (host in (0, busy - 1)), top * (host == busy - 1)
        scratch = STATE_COPIES * states + 8 * MIXER_COPIES * max(mixers, default=0)
        return HostShare(
            read=itemsize * sum(old[number] for number in own) + reads_top + moved,
            written=itemsize * sum(new[number] for number in own) + writes_top + moved,
            memory=BASE_BYTES + max(reads_top, (itemsize + compute + on_cpu) * largest + scratch),
            device=(itemsize + compute) * largest,
        )

    return HostShare(*(max(values) for values in zip(*map(share, range(busy)), strict=True)))


def training_share(model: ModelConfig, mesh: MeshConfig, itemsize: int, state: int, hosts: int) -> HostShare:
    """The share of a training: it reads the parts of its devices at the start, and writes its part of a checkpoint.

    `state` is the size of a checkpoint. A save copies a host's part into its memory. -1 in the mesh counts as 1.
    """
    read = itemsize * _device_bytes(model, mesh) // MASTER_BYTES * max(1, _devices(mesh) // hosts)
    return HostShare(read, -(-state // hosts), BASE_BYTES + max(read, -(-state // hosts)))


def merge_share(model: ModelConfig, merges: int, hosts: int) -> HostShare:
    """The share of a merge: it reads a part of all checkpoints at a time, and writes their mean."""
    written = -(-MASTER_BYTES * sum(_sizes(model).values()) // hosts)
    return HostShare(merges * written, written, BASE_BYTES + MERGE_THREADS * MERGE_COPIES * BATCH_BYTES)


def _devices(mesh: MeshConfig) -> int:
    return math.prod(_sizes_of_mesh(mesh).values())


def _sizes_of_mesh(mesh: MeshConfig) -> dict[str, int]:
    return {axis: max(1, size) for axis, size in dataclasses.asdict(mesh).items()}


def _device_bytes(model: ModelConfig, mesh: MeshConfig) -> int:
    """Bytes of master weights on one device."""
    return state_bytes(abstract_arrays(model_spec(model), abstract_mesh(**_sizes_of_mesh(mesh))))


def _sizes(model: ModelConfig) -> dict[str, int]:
    """{leaf: its number of weights}."""
    return {name: math.prod(leaf.shape) for name, leaf in specs.named_leaves(model_spec(model)).items()}


def _layer_sizes(model: ModelConfig) -> list[int]:
    """The number of weights of every layer; MTP depths follow the other layers."""
    return [sum(sizes.values()) for sizes in _named_sizes(model)]


def _mixer_size(model: ModelConfig, number: int) -> int:
    return sum(size for name, size in _named_sizes(model)[number].items() if "mixer/" in name)


def _named_sizes(model: ModelConfig) -> list[dict[str, int]]:
    """{name in the layer: its number of weights} of every layer."""
    shapes = {name: leaf.shape for name, leaf in specs.named_leaves(model_spec(model)).items()}
    return [
        {name: math.prod(shapes[part.leaf][len(part.index) :]) for name, part in layer.items()}
        for layer in layer_leaves(model)
    ]
