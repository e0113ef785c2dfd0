"""Ports between a Hugging Face folder and an Orbax checkpoint: time against `cp`, memory, and the same bytes.

python -m benchmarks.port --json_out=port.json --scratch=/disk    (34 GB of disk, 20 GB of memory; ten minutes)

`launch.port` runs as users run it: the start of Python and all that is flushed to the disk are in its time. Sources
are in the page cache. The fastest of several turns counts, as machines are noisy.
"""

import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import app, flags, logging

from benchmarks.json_out import JSON_OUT
from benchmarks.port_model import SHARD_BYTES, sized_config, write_model
from benchmarks.port_process import Program, Usage
from benchmarks.report import Claim, check_json_out, finish
from ling_jax.checkpoint import manifest, orbax
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.orbax_parts import OrbaxReader
from ling_jax.checkpoint.transfer import bands, batches
from ling_jax.sums import compare

SCRATCH = flags.DEFINE_string("scratch", ".", "a folder of the disk to measure; all that is written there is removed")
SIZE = flags.DEFINE_float("gb", 8, "of the model; peaks are taken of half and twice as much too", lower_bound=2.4)
TURNS = flags.DEFINE_integer("turns", 3, "how often each time is taken", lower_bound=1)
KILLS = flags.DEFINE_integer("kills", 0, "kill ports at so many random moments too, and compare what they end with")

GB = 10**9
MAX_HOST_GB = 2.0  # of all ports here: three threads
CAP = GB  # bytes a second: faster disks do not raise the bar
CPU_BAR = 5.0  # our choice: at this, two CPUs port 0.4 GB a second
DISK = 4.2  # times the model, at most at a time
BLOCK = 2**24


class RoundTrip(NamedTuple):
    """Folders: hf -> run -> back, and `again`, which each turn overwrites."""

    hf: Path
    run: Path
    back: Path
    again: Path


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    logging.set_verbosity(logging.WARNING)  # of Orbax
    _check_disk(Path(SCRATCH.value), int(DISK * SIZE.value * GB))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is removed then too
    with tempfile.TemporaryDirectory(prefix=".benchmark-port-", dir=SCRATCH.value) as name:
        claims = [*round_trip_claims(Path(name).absolute()), growth_claim(Path(name).absolute())]
    command = f"python -m benchmarks.port --gb={SIZE.value:g} --turns={TURNS.value} --kills={KILLS.value}"
    sys.exit(finish(claims, command, JSON_OUT.value))


# ---------------------------------------------------------------- claims


def round_trip_claims(scratch: Path) -> Iterator[Claim]:
    """Of a model there and back, and there again."""
    trip, nbytes = new_model(scratch / "model", SIZE.value)
    copies, ins, outs = [], [], []
    for _ in range(TURNS.value):  # in turn: the machine's speed drifts
        copies.append(copy_seconds(trip.hf, trip.again))
        ins.append(port(trip.hf, trip.run))
        outs.append(port(trip.run, trip.back))
    group, peak = largest_group(trip.hf), max(usage.peak for usage in ins + outs)
    model = f"{nbytes / GB:.2f} GB in the layout of 2.6-flash, --max_host_gb={MAX_HOST_GB}"
    yield Claim(
        "peak_gb_beyond_group", (peak - group) / GB, "GB", "<=", 1.5,
        f"{model}: {peak / GB:.2f} GB of RssAnon + RssShmem, tensors that a thread holds together {group / GB:.3f} GB",
    )  # fmt: skip
    cp = nbytes / min(copies)
    for way, turns in (("in", ins), ("out", outs)):
        rate = nbytes / min(usage.seconds for usage in turns)
        seen = f"{rate / 1e6:.0f} MB/s; cp and fsync {cp / 1e6:.0f} MB/s; best of {TURNS.value} turns"
        yield Claim(f"rate_over_capped_cp.{way}", rate / min(cp, CAP), "x cp", ">=", 0.4, f"{model}: {seen}")
    cpu = [min(usage.cpu_seconds for usage in turns) / nbytes * GB for turns in (ins, outs)]
    workload = f"{model}: {cpu[0]:.2f} in, {cpu[1]:.2f} out; {os.cpu_count()} CPUs"
    yield Claim("cpu_seconds_per_gb", max(cpu), "s/GB", "<=", CPU_BAR, workload)
    hits, same = 0, is_same_after_round_trip(trip)
    if KILLS.value and same:
        hits, same = is_same_after_kills(trip, ins[-1].seconds, outs[-1].seconds)
    workload = f"{model}: every file of the folder, every number of the checkpoint, after {hits} kills too"
    yield Claim("round_trip_equal", float(same), "", ">=", 1, workload)
    yield verification_claim(trip.run, model)
    shutil.rmtree(scratch / "model")


def verification_claim(run: Path, model: str) -> Claim:
    """What comparing all files with the manifest adds to the restore of the parameters, from the page cache."""
    restores, verifications = [], []
    for _ in range(TURNS.value):
        _warm(run)
        start = time.monotonic()
        orbax.load_params(run / "checkpoints", 0, verify=False)
        restores.append(time.monotonic() - start)
        _warm(run)
        start = time.monotonic()
        compare(run / "checkpoints" / "0", manifest.read(run / "checkpoints" / "0")["files"])
        verifications.append(time.monotonic() - start)
        _show(f"restore {restores[-1]:.1f} s, verification {verifications[-1]:.1f} s")
    restore, verification = min(restores), min(verifications)
    workload = f"{model}: restore {restore:.2f} s, verification {verification:.2f} s; best of {TURNS.value} turns"
    return Claim("verify_over_restore", verification / restore, "x", "<=", 0.25, workload)


def growth_claim(scratch: Path) -> Claim:
    """The peak of a port must not follow the model."""
    peaks = []
    for size in (SIZE.value / 2, SIZE.value * 2):
        trip, _ = new_model(scratch / "growth", size)
        into = port(trip.hf, trip.run).peak
        shutil.rmtree(trip.hf)
        peaks.append((into, port(trip.run, trip.back).peak))
        shutil.rmtree(scratch / "growth")
    small, large = peaks
    shown = "; ".join(
        f"{way} {a / GB:.2f} and {b / GB:.2f} GB" for way, a, b in zip(("in", "out"), *peaks, strict=True)
    )
    workload = f"models of {SIZE.value / 2:g} and {SIZE.value * 2:g} GB, --max_host_gb={MAX_HOST_GB}: peaks {shown}"
    ratio = max(second / first for first, second in zip(small, large, strict=True))
    return Claim("peak_16_over_4", ratio, "x", "<=", 1.1, workload)


# ---------------------------------------------------------------- what is measured


def new_model(folder: Path, size: float) -> tuple[RoundTrip, int]:
    """(folders, of which only `hf` is there; bytes of its weights)"""
    config = sized_config(int(size * GB))
    trip = RoundTrip(*(folder / name for name in RoundTrip._fields))
    write_model(trip.hf, config, threads=2)
    _flush(trip.hf)
    nbytes = sum(path.stat().st_size for path in trip.hf.glob("*.safetensors"))
    _show(f"model of {nbytes / GB:.2f} GB: {config.num_layers} layers, {config.num_experts} experts")
    return trip, nbytes


def port(source: Path, target: Path) -> Usage:
    """Of a port to a target that may be there already."""
    _prepare(source, target)
    with Program("launch.port", *port_flags(source, target), log=target.with_suffix(".log")) as program:
        usage = program.wait()
    _show(
        f"{source.name} -> {target.name}: {usage.seconds:.1f} s, {usage.cpu_seconds:.1f} CPU s, "
        f"peak {usage.peak / GB:.2f} GB"
    )
    return usage


def port_flags(source: Path, target: Path) -> list[str]:
    limits = [f"--max_host_gb={MAX_HOST_GB}", f"--shard_gb={SHARD_BYTES / GB}"]
    return [f"--source={source}", f"--target={target}", *limits]


def copy_seconds(source: Path, target: Path) -> float:
    """Of `cp` and fsync of all its files."""
    _prepare(source, target)
    start = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    _flush(target)
    seconds = time.monotonic() - start
    shutil.rmtree(target)
    _show(f"cp and fsync: {seconds:.1f} s")
    return seconds


def largest_group(hf: Path) -> int:
    """Bytes of the tensors, or parts of tensors, that a thread of a port holds at the same time, at most."""
    reader = HfReader(hf)
    return max(sum(band.nbytes for band in batch) for batch in batches(bands(reader, reader.config, reader.dtypes)))


def is_same_after_round_trip(trip: RoundTrip) -> bool:
    """Every file of the folder is, and every number of the checkpoint when the folder goes in again."""
    port(trip.back, trip.again)
    return _same_files(trip.hf, trip.back) and _same_numbers(trip.run, trip.again)


def is_same_after_kills(trip: RoundTrip, seconds_in: float, seconds_out: float) -> tuple[int, bool]:
    """(kills, whether what the ports ended with is the same each time); `seconds`: of ports that are left alone."""
    rng = random.Random(0)
    half = KILLS.value // 2
    ins, same_in = _killed(trip.hf, trip.again, seconds_in, half, rng, lambda: _same_numbers(trip.run, trip.again))
    outs, same_out = _killed(
        trip.run, trip.again, seconds_out, KILLS.value - half, rng, lambda: _same_files(trip.hf, trip.again)
    )
    return ins + outs, same_in and same_out


def _killed(
    source: Path, target: Path, seconds: float, kills: int, rng: random.Random, is_same: Callable[[], bool]
) -> tuple[int, bool]:
    """A port is killed and started again; a new one begins where it ended before there were enough kills."""
    _prepare(source, target)
    hits, same = 0, True
    while hits < kills or not target.exists():
        if target.exists():
            same = same and is_same()
            shutil.rmtree(target)
        with Program("launch.port", *port_flags(source, target), log=target.with_suffix(".log")) as program:
            if hits == kills:
                program.wait()
            elif program.is_killed_after(after := rng.uniform(0.1, 0.7) * seconds):
                hits += 1
                _show(f"{source.name} -> {target.name} killed after {after:.1f} s")
    return hits, same and is_same()


def _same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def _same_numbers(one: Path, other: Path) -> bool:
    first, second = (OrbaxReader(run / "checkpoints") for run in (one, other))
    if first.dtypes != second.dtypes:
        return False
    every = bands(first, first.config, first.dtypes)
    return all(first.read(*band[:2]).tobytes() == second.read(*band[:2]).tobytes() for band in every)


def _prepare(source: Path, target: Path) -> None:
    """Removes the target and reads the source, so that its files are in the page cache."""
    if target.exists():
        shutil.rmtree(target)
    _warm(source)


def _warm(folder: Path) -> None:
    """Reads all files of a folder into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK):
                    pass


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _check_disk(scratch: Path, needed: int) -> None:
    if not scratch.is_dir():
        raise SystemExit(f"--scratch={scratch} is no folder")
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise SystemExit(
            f"--scratch={scratch} has {free / GB:.1f} GB free; --gb={SIZE.value:g} needs {needed / GB:.1f}"
        )


def _show(line: str) -> None:
    print(f"{line} (load {os.getloadavg()[0]:.1f})", flush=True)


if __name__ == "__main__":
    app.run(main)
