"""Compiles a lowered program and says what it costs: memory, work, and the bounds on time that follow."""

import math
import re
import resource
import time
from typing import Any

import jax

from ling_jax import spec as specs
from ling_jax.compile.hlo import Work, read_work
from ling_jax.compile.topology import Chip
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.train.metrics import flops_per_token, mtp_flops_per_token


class DoesNotFit(ValueError):
    """The program needs more memory than a device has."""


def compile_program(lowered) -> tuple[Any, float]:
    """(the executable, seconds). Raises `DoesNotFit` with the compiler's numbers."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used \S+ of \S+ hbm\. Exceeded hbm capacity by \S+", str(error))
        raise DoesNotFit(used[0] if used else str(error).splitlines()[0]) from None
    return compiled, time.perf_counter() - begun


def hbm_peak(compiled) -> int:
    """Bytes of a device that the program takes: arguments, results that do not reuse them, scratch, code."""
    m = compiled.memory_analysis()
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept + m.temp_size_in_bytes + m.generated_code_size_in_bytes


def bounds(work: Work, chip: Chip) -> dict[str, float]:
    """Seconds that each part of a device needs at the least, at its data sheet's peak."""
    return {
        "compute": work.matrix_unit_flops / chip.flops,
        "hbm": work.hbm_bytes / chip.hbm_bytes_per_second,
        "interconnect": work.collective_bytes / chip.link_bytes_per_second,
    }


def report(
    compiled, seconds: float, config: ModelConfig, mesh, chip: Chip, *, tokens: int, length: int, trains: bool
) -> dict[str, Any]:
    """The fields of `launch.compile`, of a program that handles `tokens` tokens in rows of `length`.

    FLOPs of the model are matmuls and attention, forward and, where it `trains`, backward; no recomputation, no
    embedding lookup. `mfu_bound` is the share of the devices' peak that they are at the time bound: 1 at the most.
    """
    work = read_work(compiled.as_text(), dict(mesh.shape))
    seconds_of, per_token = bounds(work, chip), flops_per_token(config, length) / (1 if trains else 3)
    limiting = max(seconds_of, key=seconds_of.get)
    bound, peak = seconds_of[limiting], hbm_peak(compiled)
    mfu = per_token * tokens / (mesh.size * chip.flops * bound)
    assert mfu <= 1, f"a step takes {bound} s at the least, and its model FLOPs alone take {mfu} times that"
    return {
        "parameters": specs.count(model_spec(config)),
        "tokens_per_step": tokens,
        "sequence_length": length,
        "mesh": dict(mesh.shape),
        "model_flops": per_token * tokens,
        "model_flops_mtp": mtp_flops_per_token(config, length) / (1 if trains else 3) * tokens,
        "compile_seconds": seconds,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "hbm_peak_bytes": peak,
        "hbm_bytes": chip.hbm_bytes,
        "hbm_fraction": peak / chip.hbm_bytes,
        "flops_per_chip": work.flops,
        "matrix_unit_flops_per_chip": work.matrix_unit_flops,
        "bytes_per_chip": work.hbm_bytes,
        "collective_bytes_per_chip": work.collective_bytes,
        "seconds": seconds_of,
        "step_seconds_bound": bound,
        "limiting_term": limiting,
        "mfu_bound": mfu,
        "collectives": [collective._asdict() for collective in work.collectives],
        "open_loops": len(work.open_loops),
        "backend": "tpu",
    }


def as_text(name: str, fields: dict[str, Any]) -> str:
    """The report as a few lines."""
    gb = lambda key: f"{fields[key] / 1e9:.1f} GB"  # noqa: E731
    times = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in fields["seconds"].items())
    lines = [
        f"{name}: compiled in {fields['compile_seconds']:.0f} s, {gb('host_peak_bytes')} of host memory",
        f"  memory    {gb('hbm_peak_bytes')} of {gb('hbm_bytes')} HBM ({fields['hbm_fraction']:.0%})",
        f"  work      {fields['flops_per_chip'] / 1e12:.4g} TFLOP, {gb('bytes_per_chip')} of HBM traffic and "
        f"{gb('collective_bytes_per_chip')} from other devices, each",
        f"  time      at the least {fields['step_seconds_bound']:.4g} s, limited by {fields['limiting_term']}: {times}",
        f"  MFU       at the most {fields['mfu_bound']:.1%} ({fields['model_flops'] / 1e15:.4g} model PFLOP)",
    ]
    for row in fields["collectives"]:
        axes = "×".join(row["axes"]) or "one device"
        lines.append(f"  {row['kind']:<20} along {axes:<22} {row['count']:>8} times {row['bytes'] / 1e9:>10.3f} GB")
    return "\n".join(lines)


def check_fits(fields: dict[str, Any]) -> None:
    """Raises `DoesNotFit` where the peak is more than the device has."""
    over = fields["hbm_peak_bytes"] - fields["hbm_bytes"]
    if over > 0:
        raise DoesNotFit(
            f"it needs {fields['hbm_peak_bytes'] / 1e9:.1f} GB of every device, {over / 1e9:.1f} GB too much; "
            "more microbatches (train.microbatches) make activations smaller, a larger mesh.fsdp parameters"
        )


def state_bytes(abstract) -> int:
    """Of a tree of ShapeDtypeStructs with shardings: bytes on one device."""
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    return sum(sizes)
