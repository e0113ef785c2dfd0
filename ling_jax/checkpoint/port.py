"""What a port between formats takes, and how it goes on after an interruption."""

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
from ling_jax.model.transformer import model_spec
from ling_jax.parallel.peers import ALONE, Peers
from ling_jax.partials import write_errors
from ling_jax.paths import check_writable, files_below, is_remote, objects_below, resolved, upload
from ling_jax.preflight import stored_bytes
from ling_jax.resumable import RECORD, begin, check_record, partial_folder, resumed

GB = 10**9
BASE_BYTES = 700 * 10**6  # of Python with its libraries and the plan of 1T; measured: 0.3 to 0.6 GB
COPIES = 3  # of a batch: as converted, as encoded, on its way to the disk; measured: up to 2.2
THREADS_PER_CPU = 2  # one waits for the disk while the other computes; our choice
RECORD_VERSION = 1
PROGRESS_SECONDS = 10


class Plan(NamedTuple):
    """What a port takes, from headers alone."""

    num_tensors: int
    nbytes: int  # that are written, without headers and compression
    moved_bytes: int  # in the wider of the dtypes of source and target: what progress counts
    least_bytes: int  # of host memory
    threads: int
    memory: int  # with all threads


def make_plan(
    reader: Reader,
    config: ModelConfig,
    dtypes: Mapping[str, np.dtype],
    max_host_bytes: int | None,
    cpus: int,
    *,
    fp8: bool = False,
) -> Plan:
    """Raises ValueError where the memory is too little, with the least that does."""
    (layout,) = shard_layout(tensor_mappings(model_spec(config), config), dtypes, 2**63, fp8=fp8)
    sizes = [band.nbytes for band in bands(reader, config, dtypes)]
    batch = max(BATCH_BYTES, *sizes)
    least = BASE_BYTES + COPIES * batch
    threads = THREADS_PER_CPU * cpus
    if max_host_bytes is not None:
        if max_host_bytes < least:
            raise ValueError(
                f"--max_host_gb={max_host_bytes / GB:g} is too little memory; the least that works is {least_gb(least)}"
            )
        threads = min(threads, (max_host_bytes - BASE_BYTES) // (COPIES * batch))
    return Plan(
        num_tensors=len(layout.tensors),
        nbytes=layout.nbytes,
        moved_bytes=sum(sizes),
        least_bytes=least,
        threads=threads,
        memory=BASE_BYTES + threads * COPIES * batch,
    )


def least_gb(nbytes: int) -> str:
    """In GB, rounded up, so that a flag with this value is enough."""
    return f"{math.ceil(nbytes / GB * 100) / 100:.2f}"


def missing_space(partial: Path, needed: int) -> int:
    """Bytes that the disk lacks for a target of `needed` bytes, some of which an interrupted port may have written.

    A store lacks none.
    """
    if is_remote(partial):
        return 0
    return preflight.missing_space(partial, needed - stored_bytes([partial]))


def finish(target: Path, record: dict[str, Any], peers: Peers = ALONE) -> None:
    """Ends a port that was killed when its target had its name already, and is whole.

    Raises ValueError where it was of another record.
    """
    check_record(target, {"version": RECORD_VERSION} | record)
    peers.wait("target looked at")
    if not peers.index:
        (target / RECORD).unlink()


@contextlib.contextmanager
def resumable_folder(target: Path, record: dict[str, Any], *, resume: bool, peers: Peers = ALONE) -> Iterator[Path]:
    """A folder to fill that is named `target` when the block ends well, and stays for the next try when it does not.

    What an interrupted port left there is gone on with where its record is the same, and removed if not `resume`.
    Several processes that share the folder fill it together; the first one makes and names it.
    Raises ValueError naming what differs, and OSError where another process fills it.

    In a store it is the target itself, which holds the record until the block ends well.
    """
    peers.wait("target looked at")  # by all, before there is something
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
            raise ValueError(f"{partial} has not what host 0 wrote there; name a target that all hosts share")
        yield partial
        peers.wait("folder named")
        return
    with write_errors(target), resumed(partial, {"version": RECORD_VERSION} | record, resume=resume):
        peers.wait("folder made")
        yield partial
        if target.is_dir():
            target.rmdir()  # empty, or an error
        partial.rename(target)
        (target / RECORD).unlink()
        peers.wait("folder named")


def is_interrupted(target: Path) -> bool:
    """Whether a folder of a store is the target of a port that has not ended."""
    return is_remote(target) and (target / RECORD).exists()


@contextlib.contextmanager
def staged_folder(folder: Path, peers: Peers = ALONE) -> Iterator[Path]:
    """Where the files of a Hugging Face folder are written: the folder itself, or a local one for that of a store.

    From there they are uploaded when the block ends, config.json last: without it a folder is no model. Shards go
    before, by `HfWriter`, so that the disk (TMPDIR) holds only those that are being written.
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
    """What an interrupted port has left, as progress counts."""
    every = bands(reader, writer.config, writer.dtypes)
    return sum(band.nbytes for band in every if writer.is_written(band.leaf, band.index))


def measured_rate(reader: Reader, writer: Writer, threads: int) -> float:
    """Bytes a second of a few batches that are read, converted and written."""
    every = batches(bands(reader, writer.config, writer.dtypes))
    start = time.monotonic()
    nbytes = sum(moved(reader, writer, itertools.islice(every, 2 * threads), threads))
    return nbytes / (time.monotonic() - start)


class Progress:
    """Prints how far a transfer is, its rate and the time left, in a line every `PROGRESS_SECONDS`.

    `written`: bytes of the total that an interrupted transfer has left.
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
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def source_identity(folder: Path, step: int | None) -> dict[str, Any]:
    """What identifies the weights of a source: where it is, and the size and time of each file, by its name.

    Links are followed. Of the objects of a store it is their size and crc32c.
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
