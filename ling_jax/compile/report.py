"""Compiles a lowered program and reports its cost: memory, work and time bounds."""

import re
import resource
import time
from typing import Any, NamedTuple

import jax

from ling_jax import spec as specs
from ling_jax.compile.hlo import Work, read_work
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import slices_of
from pallas_kernels.chips import Chip


class Compiled(NamedTuple):
    """The result of a compilation."""

    executable: Any  # None: a device has too little memory
    seconds: float
    hbm_bytes: float  # memory of the program on a device; a lower bound without an executable


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program. The result has no executable if the program needs more memory than a device has."""
    begun = time.perf_counter()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or not (needed := bytes_asked_for(str(error))):
            raise
        return Compiled(None, time.perf_counter() - begun, needed)
    return Compiled(executable, time.perf_counter() - begun, hbm_peak(executable))


def bytes_asked_for(error: str) -> float:
    """Bytes that a program needs on a device, from the compiler's error; 0 if the error is not about HBM.

    The error may state the total, or only the temporaries if these alone are too large.
    """
    sizes = re.search(r"Used ([\d.]+)([KMG]) of \S+ hbm|temporaries \(([\d.]+)([KMG])\)", error)
    if sizes is None:
        return 0.0
    number, unit = [part for part in sizes.groups() if part]
    return float(number) * 2.0 ** {"K": 10, "M": 20, "G": 30}[unit]


def hbm_peak(compiled: jax.stages.Compiled) -> int:
    """Peak bytes of a device: arguments, results and scratch in the compiler's layout, and code.

    The compiler compares the size of this layout with the device's memory. Its sum of temporaries
    (`temp_size_in_bytes`) may be half as large again.
    """
    memory = compiled.memory_analysis()
    return memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes


def bounds(work: Work, chip: Chip, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Lower bounds in seconds of each part of a device at its data sheet's peak; "network" is between slices."""
    seconds = {
        "compute": work.matrix_unit_flops / chip.flops,
        "hbm": work.hbm_bytes / chip.hbm_bytes_per_second,
        "interconnect": work.collective_bytes / chip.link_bytes_per_second,
    }
    if slices_of(mesh.devices.flat) > 1:
        seconds["network"] = work.network_bytes / chip.network_bytes_per_second
    return seconds


def report(
    compiled: Compiled,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    chip: Chip,
    *,
    tokens: int,
    length: int,
    model_flops: float,
    mtp_flops: float = 0.0,
) -> dict[str, Any]:
    """The fields that `launch.compile` reports of a program that reads `tokens` tokens in rows of `length`.

    Model FLOPs are those of matmuls and attention, without recomputation and embedding lookup; `mtp_flops` are those of
    multi-token prediction among them. `mfu_bound` is their share of the devices' peak at the time bound, at most 1.
    Without an executable, fields that need one are None.
    """
    fields = {
        "parameters": specs.count(model_spec(config)),
        "tokens_per_step": tokens,
        "sequence_length": length,
        "mesh": dict(mesh.shape),
        "model_flops": model_flops,
        "model_flops_mtp": mtp_flops,
        "compile_seconds": compiled.seconds,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "hbm_peak_bytes": compiled.hbm_bytes,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_fraction": compiled.hbm_bytes / chip.hbm_bytes,
        "fits": compiled.executable is not None and compiled.hbm_bytes <= chip.hbm_bytes,
        "backend": "tpu",
    }
    if compiled.executable is None:
        return fields | dict.fromkeys(WORK_FIELDS)
    work = read_work(compiled.executable.as_text(), dict(mesh.shape))
    return fields | _work_fields(work, mesh, chip, model_flops)


WORK_FIELDS = (
    "flops_per_chip", "matrix_unit_flops_per_chip", "bytes_per_chip", "collective_bytes_per_chip",
    "network_bytes_per_chip", "seconds", "step_seconds_bound", "limiting_term", "mfu_bound", "collectives",
    "open_loops",
)  # fmt: skip


def _work_fields(work: Work, mesh, chip: Chip, model_flops: float) -> dict[str, Any]:
    seconds_of = bounds(work, chip, mesh)
    limiting = max(seconds_of, key=seconds_of.get)
    bound = seconds_of[limiting]
    mfu = model_flops / (mesh.size * chip.flops * bound)
    assert mfu <= 1, f"a step takes {bound} s at the least, and its model FLOPs alone take {mfu} times that"
    values = (
        work.flops, work.matrix_unit_flops, work.hbm_bytes, work.collective_bytes, work.network_bytes, seconds_of,
        bound, limiting, mfu, [collective._asdict() for collective in work.collectives], len(work.open_loops),
    )  # fmt: skip
    return dict(zip(WORK_FIELDS, values, strict=True))


def as_text(name: str, fields: dict[str, Any]) -> str:
    """The report as a few lines of text."""

    def gb(key: str) -> str:
        return f"{fields[key] / 1e9:.4g} GB"

    at_least = "" if fields["mfu_bound"] else "at least "
    lines = [
        f"{name}: compiled in {fields['compile_seconds']:.0f} s, {gb('host_peak_bytes')} of host memory",
        f"  memory    {at_least}{gb('hbm_peak_bytes')} of {gb('hbm_bytes')} HBM ({fields['hbm_fraction']:.0%})",
    ]
    if fields["mfu_bound"] is None:
        return "\n".join(lines)
    times = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in fields["seconds"].items())
    lines += [
        f"  work      {fields['flops_per_chip'] / 1e12:.4g} TFLOP, {gb('bytes_per_chip')} of HBM traffic and "
        f"{gb('collective_bytes_per_chip')} from other devices, each",
        f"  time      at the least {fields['step_seconds_bound']:.4g} s, limited by {fields['limiting_term']}: {times}",
        f"  MFU       at the most {fields['mfu_bound']:.1%} ({fields['model_flops'] / 1e15:.4g} model PFLOP)",
    ]
    for row in fields["collectives"]:
        axes = "×".join(row["axes"]) or "one device"
        lines.append(f"  {row['kind']:<20} along {axes:<22} {row['count']:>8} times {row['bytes'] / 1e9:>10.4g} GB")
    return "\n".join(lines)
