"""A Hugging Face folder written part by part, into shards whose layout is computed first."""

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from etils import epath

from ling_jax.checkpoint.chunks import Index
from ling_jax.checkpoint.hf_config import to_hf
from ling_jax.checkpoint.index import INDEX_FILE, SINGLE_FILE
from ling_jax.checkpoint.names import (
    NUMBER,
    TensorMapping,
    in_file_order,
    narrowed,
    row_dim,
    tensor_mappings,
    to_official,
)
from ling_jax.checkpoint.parts import Part, Writer
from ling_jax.checkpoint.quantised import BLOCK, BLOCK_CONFIG, E4M3, QUANTISED_NAMES, SCALES, quantise
from ling_jax.checkpoint.safetensors_file import DTYPES
from ling_jax.config import ModelConfig
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.model.transformer import model_spec
from ling_jax.paths import names_in, upload

MAX_SHARD_BYTES = 5 * 2**30
# Rows that are transposed and written at a time: they fit the cache, which halves the CPU time (measured).
PIECE_ROWS = 512
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
    """An official tensor in its shard."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # offset after the header

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shard(NamedTuple):
    file: str
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes without the header."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def header(self) -> bytes:
        """The header of a safetensors file, padded to 8 bytes."""
        entries: dict = {"__metadata__": {"format": "pt"}}
        for name, tensor in self.tensors.items():
            ends = [tensor.begin, tensor.begin + tensor.nbytes]
            entries[name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": ends}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class HfWriter(Writer):
    """Writes the files that `load_hf` and the official code read into an existing folder.

    A shard has a partial name until it is whole and on the disk; `close` writes the index. Whole shards of an
    interrupted writer of the same config, dtypes and sizes stay. Of several processes each writes whole shards, and
    process 0 all other files.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        dtypes: Mapping[str, np.dtype],
        *,
        max_shard_bytes: int | None = None,
        fp8: bool = False,
        by_layer: bool = False,
        store: epath.Path | None = None,
        peers: Peers = ALONE,
    ):
        """`store`: a folder of a store; whole shards are moved there from `folder`.

        `fp8`: linear layers are written as E4M3 in blocks of 128 x 128, with scales; `dtypes` are those of the others.
        `by_layer`: no shard has tensors of two layers, so that each process can write whole layers.
        """
        super().__init__(config, dtypes)
        self.peers, self._folder, self._store = peers, folder, store
        mappings = tensor_mappings(model_spec(config), config)
        self.shards = shard_layout(mappings, dtypes, max_shard_bytes or MAX_SHARD_BYTES, fp8=fp8, by_layer=by_layer)
        self._shard_of = {name: shard for shard in self.shards for name in shard.tensors}
        self._number = {shard.file: number for number, shard in enumerate(self.shards)}
        self._mappings = {(mapping.leaf, mapping.index): mapping for mapping in mappings}
        self._depth = {mapping.leaf: len(mapping.index) for mapping in mappings}
        self._whole = {shard.file for shard in self.shards} & set(names_in(store or folder))
        self._left = {shard.file: shard.nbytes for shard in self.shards if shard.file not in self._whole}
        self._open: dict[str, tuple[BinaryIO, int]] = {}  # file, size of the header
        self._lock = threading.Lock()
        content = to_hf(config) | ({"quantization_config": BLOCK_CONFIG} if fp8 else {})
        if not peers.index:
            (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")

    def write(self, parts: Iterable[Part]) -> None:
        for part in parts:
            for mapping, values in self._mappings_of(part):
                if values.shape != mapping.shape:
                    found = f"{mapping.name}: {mapping.leaf} is {values.shape}"
                    raise ValueError(f"{found}; the config makes it {mapping.shape}")
                for piece in _pieces(mapping):
                    self._write(narrowed(mapping, piece), to_official(values[piece], narrowed(mapping, piece)))

    def is_written(self, leaf: str, index: Index) -> bool:
        return self._shard_file(leaf, index) in self._whole

    def file_number(self, leaf: str, index: Index) -> int:
        return self._number[self._shard_file(leaf, index)]

    @property
    def written_files(self) -> list[str]:
        """The whole shards that this process has written, or found."""
        return sorted(self._whole)

    def close(self) -> None:
        whole = set().union(*self.peers.gather(self.written_files, "whole shards"))
        if missing := [shard.file for shard in self.shards if shard.file not in whole]:
            raise RuntimeError(f"{self._folder}: {', '.join(missing)} lack tensors that were never written")
        if len(self.shards) > 1 and not self.peers.index:
            weight_map = {name: shard.file for shard in self.shards for name in shard.tensors}
            index = {"metadata": {"total_size": sum(s.nbytes for s in self.shards)}, "weight_map": weight_map}
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")

    def _shard_file(self, leaf: str, index: Index) -> str:
        return self._shard_of[self._mappings[leaf, index[: self._depth[leaf]]].name].file

    def _mappings_of(self, part: Part) -> Iterator[tuple[TensorMapping, np.ndarray]]:
        """The official tensors of a part with their values; each expert is a tensor of its own."""
        depth, values = self._depth[part.leaf], np.asarray(part.values)
        if len(part.index) >= depth:
            yield narrowed(self._mappings[part.leaf, part.index[:depth]], part.index[depth:]), values
            return
        for index in np.ndindex(values.shape[: depth - len(part.index)]):
            yield self._mappings[part.leaf, (*part.index, *index)], values[index]

    def _write(self, mapping: TensorMapping, value: np.ndarray) -> None:
        tensor = self._shard_of[mapping.name].tensors[mapping.name]
        if tensor.dtype != E4M3:
            self._write_rows(mapping.name, mapping.row, value.astype(tensor.dtype, copy=False))
            return
        try:
            codes, scale = quantise(value)
        except ValueError as error:
            raise ValueError(f"{mapping.name}: {error}") from None
        self._write_rows(mapping.name, mapping.row, codes)
        self._write_rows(mapping.name + SCALES[0], mapping.row // BLOCK, scale)

    def _write_rows(self, name: str, row: int, value: np.ndarray) -> None:
        """Writes rows of an official tensor, from `row` on."""
        shard = self._shard_of[name]
        tensor = shard.tensors[name]
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
        try:
            with self._lock:
                file, start = self._open.get(shard.file) or self._begin(shard)
            _write_all(file.fileno(), data, start + tensor.begin + row * row_bytes)
            with self._lock:
                self._left[shard.file] -= data.nbytes
                done = self._left[shard.file] == 0
            if done:
                self._end(shard)
        except OSError as error:
            raise OSError(f"{self._folder / shard.file} cannot be written: {error.strerror or error}") from error

    def _begin(self, shard: Shard) -> tuple[BinaryIO, int]:
        header = shard.header()
        file = self._partial(shard).open("wb", buffering=0)  # stays open until the shard is whole
        self._open[shard.file] = file, len(header)
        _write_all(file.fileno(), np.frombuffer(header, np.uint8), 0)
        return self._open[shard.file]

    def _end(self, shard: Shard) -> None:
        with self._open.pop(shard.file)[0] as file:
            os.fsync(file.fileno())
        whole = self._partial(shard).rename(self._folder / shard.file)
        if self._store is not None:
            upload(whole, self._store / shard.file)
            whole.unlink()
        self._whole.add(shard.file)

    def _partial(self, shard: Shard) -> Path:
        return self._folder / f"{shard.file}.partial"


def shard_layout(
    mappings: list[TensorMapping],
    dtypes: Mapping[str, np.dtype],
    max_bytes: int,
    *,
    fp8: bool = False,
    by_layer: bool = False,
) -> list[Shard]:
    """The shards: official tensors in the order of layers, at most `max_bytes` in each.

    A scale is in the file of its weight. With `fp8`, a linear layer with a part that begins inside of a block is not
    quantised. With `by_layer` every layer begins a shard, and so do the tensors behind the last one.
    """
    whole: dict[str, Tensor] = {}
    ragged = set()
    for mapping in in_file_order(mappings):
        before = whole.get(mapping.name, Tensor(dtypes[mapping.leaf], (0, *mapping.official[1:]), 0))
        dtype = np.promote_types(before.dtype, dtypes[mapping.leaf])
        whole[mapping.name] = Tensor(dtype, (mapping.row + mapping.official[0], *mapping.official[1:]), 0)
        ragged |= {mapping.name} if mapping.row % BLOCK else set()
    groups: list[dict[str, Tensor]] = [{}]
    size, layer = 0, None
    for name, tensor in whole.items():
        group = {name: tensor}
        if fp8 and name not in ragged and QUANTISED_NAMES.search(name):
            blocks = tuple(-(-length // BLOCK) for length in tensor.shape)
            group = {name: tensor._replace(dtype=E4M3), name + SCALES[0]: Tensor(np.dtype(np.float32), blocks, 0)}
        nbytes = sum(one.nbytes for one in group.values())
        before, layer = layer, (match := NUMBER.match(name)) and match[1]
        if groups[-1] and (size + nbytes > max_bytes or (by_layer and layer != before)):
            groups.append({})
            size = 0
        groups[-1] |= group
        size += nbytes
    return [Shard(shard_name(n, len(groups)), _placed(group)) for n, group in enumerate(groups, start=1)]


def _pieces(mapping: TensorMapping) -> Iterator[Index]:
    """Indices into `mapping.shape` of about `PIECE_ROWS` official rows each, in whole blocks."""
    dim = row_dim(mapping)
    rows = mapping.official[0] // mapping.shape[dim]
    block = math.lcm(rows, BLOCK) // rows
    step = block * max(1, PIECE_ROWS // rows // block)
    for first in range(0, mapping.shape[dim], step):
        yield (*[slice(None)] * dim, slice(first, first + step))


def shard_name(number: int, count: int) -> str:
    """The file name of shard `number`, from 1, of `count`."""
    return SINGLE_FILE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _placed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a shard with their offsets; wide dtypes come first, so that every tensor is aligned."""
    placed, begin = {}, 0
    for name in sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize):
        placed[name] = tensors[name]._replace(begin=begin)
        begin += tensors[name].nbytes
    return placed


def _write_all(descriptor: int, data: np.ndarray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        os.posix_fadvise(descriptor, offset, written, os.POSIX_FADV_DONTNEED)
        view, offset = view[written:], offset + written
