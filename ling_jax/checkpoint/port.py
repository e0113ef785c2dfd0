"""Ports between formats: their plan of memory and disk, and their continuation after an interruption."""

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ling_jax import preflight
from ling_jax.checkpoint.hf_writer import shard_layout
from ling_jax.checkpoint.index import INDEX_FILE
from ling_jax.checkpoint.names import tensor_mappings
from ling_jax.checkpoint.parts import Reader, Writer
from ling_jax.checkpoint.transfer import BATCH_BYTES, bands, batches, moved
from ling_jax.config import ModelConfig
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.model.transformer import model_spec
from ling_jax.partials import write_errors
from ling_jax.paths import check_writable, files_below, is_remote, objects_below, resolved, upload
from ling_jax.preflight import stored_bytes
from ling_jax.resumable import RECORD, begin, check_record, partial_folder, resumed

GB = 10**9
BASE_BYTES = 700 * 10**6  # Python with its libraries and the plan of a model of 1T; measured: 0.3 to 0.6 GB
COPIES = 3  # of a batch: converted, encoded, and on its way to the disk; measured: up to 2.2
THREADS_PER_CPU = 2  # one waits for the disk while the other computes; our choice
RECORD_VERSION = 1
PROGRESS_SECONDS = 10


class Plan(NamedTuple):
    """The sizes of a port, from headers only."""

    num_tensors: int
    nbytes: int  # to write, without headers and compression
    moved_bytes: int  # in the wider dtype of source and target, as progress counts them
    min_bytes: int  # of host memory, with one thread
    threads: int
    memory: int  # bytes of host memory with all threads


def make_plan(
    reader: Reader,
    config: ModelConfig,
    dtypes: Mapping[str, np.dtype],
    max_host_bytes: int | None,
    cpus: int,
    *,
    fp8: bool = False,
) -> Plan:
    """The plan of a port, with at most `max_host_bytes` of host memory (None: no limit).

    Raises ValueError where that is too little; it names the minimum.
    """
    (layout,) = shard_layout(tensor_mappings(model_spec(config), config), dtypes, 2**63, fp8=fp8)
    sizes = [band.nbytes for band in bands(reader, config, dtypes)]
    batch = max(BATCH_BYTES, *sizes)
    min_bytes = BASE_BYTES + COPIES * batch
    threads = THREADS_PER_CPU * cpus
    if max_host_bytes is not None:
        if max_host_bytes < min_bytes:
            given, least = f"--max_host_gb={max_host_bytes / GB:g}", rounded_up_gb(min_bytes)
            raise ValueError(f"{given} is too little memory; the least that works is {least}")
        threads = min(threads, (max_host_bytes - BASE_BYTES) // (COPIES * batch))
    return Plan(
        num_tensors=len(layout.tensors),
        nbytes=layout.nbytes,
        moved_bytes=sum(sizes),
        min_bytes=min_bytes,
        threads=threads,
        memory=BASE_BYTES + threads * COPIES * batch,
    )


def rounded_up_gb(nbytes: int) -> str:
    """Bytes in GB, rounded up, so that a flag with this value is enough."""
    return f"{math.ceil(nbytes / GB * 100) / 100:.2f}"


def missing_space(partial: Path, needed: int) -> int:
    """The bytes that the disk lacks for a target of `needed` bytes; those of an interrupted port count as written.

    It is 0 for a store.
    """
    if is_remote(partial):
        return 0
    return preflight.missing_space(partial, needed - stored_bytes([partial]))


def finish(target: Path, record: dict[str, Any], peers: Peers = ALONE) -> None:
    """Completes a port that was killed after its whole target had got its name.

    Raises ValueError where the target is of another record.
    """
    check_record(target, {"version": RECORD_VERSION} | record)
    peers.wait("target looked at")
    if not peers.index:
        (target / RECORD).unlink()


@contextlib.contextmanager
def resumable_folder(target: Path, record: dict[str, Any], *, resume: bool, peers: Peers = ALONE) -> Iterator[Path]:
    """Yields a folder to fill; it gets the name `target` if the block ends well, else it stays for the next try.

    The folder of an interrupted port with the same record is continued; without `resume` it is removed. Several
    processes that share the folder fill it together; process 0 makes and renames it. In a store the folder is the
    target itself, which holds the record until the block ends well. Raises ValueError that names the difference of the
    records, and OSError where another process fills the folder.
    """
    peers.wait("target looked at")  # all look at the target before process 0 makes it
    if is_remote(target):
        if not peers.index:
            check_writable(target)
            if not resume and is_interrupted(target):
                target.rmtree()
            begin(target, {"version": RECORD_VERSION} | record)
        peers.wait("folder made")
        yield target
        if not peers.index:
            (target / RECORD).unlink()
        peers.wait("folder named")
        return
    partial = partial_folder(target)
    if peers.index:
        peers.wait("folder made")
        if not (partial / RECORD).exists():
            raise ValueError(f"{partial} lacks the files that host 0 wrote there; name a target that all hosts share")
        yield partial
        peers.wait("folder named")
        return
    with write_errors(target), resumed(partial, {"version": RECORD_VERSION} | record, resume=resume):
        peers.wait("folder made")
        yield partial
        if target.is_dir():
            target.rmdir()  # raises unless it is empty
        partial.rename(target)
        (target / RECORD).unlink()
        peers.wait("folder named")


def is_interrupted(target: Path) -> bool:
    """Whether a folder in a store is the target of an interrupted port."""
    return is_remote(target) and (target / RECORD).exists()


@contextlib.contextmanager
def staged_folder(folder: Path, peers: Peers = ALONE) -> Iterator[Path]:
    """Yields the folder for the files of a Hugging Face folder: itself, or a local one if it is in a store.

    The local files are uploaded at the end of the block, config.json last, because a folder without it is no model.
    `HfWriter` uploads shards before, so that the disk (TMPDIR) holds only the shards that are being written.
    """
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ling_jax_port_") as staged:
        yield Path(staged)
        peers.wait("shards uploaded")
        for name in sorted(files_below(staged), key=lambda name: name == "config.json"):
            if not peers.index:
                upload(Path(staged, name), folder / name)


def written_bytes(reader: Reader, writer: Writer) -> int:
    """The bytes that an interrupted port has written, as progress counts them."""
    every = bands(reader, writer.config, writer.dtypes)
    return sum(band.nbytes for band in every if writer.is_written(band.leaf, band.index))


def measured_rate(reader: Reader, writer: Writer, threads: int) -> float:
    """The bytes per second of reading, converting and writing a few batches."""
    every = batches(bands(reader, writer.config, writer.dtypes))
    start = time.monotonic()
    nbytes = sum(moved(reader, writer, itertools.islice(every, 2 * threads), threads))
    return nbytes / (time.monotonic() - start)


class Progress:
    """Prints the progress, rate and remaining time of a transfer every `PROGRESS_SECONDS`.

    `written`: bytes of the total that an interrupted transfer has written.
    """

    def __init__(self, nbytes: int, written: int = 0):
        self._total, self._written, self._done = nbytes, written, 0
        self._start = self._said = time.monotonic()

    def __call__(self, nbytes: int) -> None:
        self._done, now = self._done + nbytes, time.monotonic()
        if now - self._said < PROGRESS_SECONDS:
            return
        self._said, rate, there = now, self._done / (now - self._start), self._written + self._done
        left = max(0, self._total - there) / rate
        print(
            f"progress: {there / GB:.2f} of {self._total / GB:.2f} GB, {rate / 1e6:.0f} MB/s, {duration(left)} left",
            flush=True,
        )


def duration(seconds: float) -> str:
    """A time as text, such as "40 s" or "2 h 05 min"."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def source_identity(folder: Path, step: int | None) -> dict[str, Any]:
    """The record that identifies the weights of a source: its path, and size and time of each file.

    Links are followed. For objects of a store it has size and crc32c.
    """
    weights = folder if step is None else folder / "checkpoints" / str(step)
    about = {"source": str(resolved(folder)), "step": step}
    if is_remote(weights):
        stored = {name: f"{size} bytes of crc32c {crc}" for name, (size, crc) in objects_below(weights).items()}
    else:
        stats = ((name, (weights / name).stat()) for name in files_below(weights))
        stored = {name: f"{s.st_size} bytes of {s.st_mtime_ns} ns" for name, s in stats}
    wanted = sorted(name for name in stored if step is not None or _is_of_weights(name))
    return about | {f"file {name}": stored[name] for name in wanted}


def _is_of_weights(name: str) -> bool:
    return name in ("config.json", INDEX_FILE) or name.endswith(".safetensors")
