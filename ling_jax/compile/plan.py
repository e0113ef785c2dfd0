"""Searches meshes, remat policies and microbatches for the train step with the smallest time bound that fits.

Every reported step is compiled. Lower bounds that need no compiler rule meshes out first, so a skipped mesh cannot be
better than the winner, unless the compiler fails on it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from ling_jax import spec as specs
from ling_jax.model import layer_plan, model_spec
from ling_jax.model.flops import flops_per_token
from ling_jax.model.moe import max_devices_per_token
from ling_jax.parallel.sharding import GATHERED, abstract_mesh, all_sizes, num_shards, shardings, split_axes
from ling_jax.train.config import MeshConfig, PretrainConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import device_rows
from ling_jax.train.state import abstract_state, state_bytes
from pallas_kernels.chips import Chip

SEARCHED = ("data", "fsdp", "expert", "tensor")  # `context` follows from the row length
FAILS = "the compiler fails"
REMATS = ("none", "dots", "ffn", "full")  # from least to most recomputation


class Candidate(NamedTuple):
    """One mesh of the search, with its result."""

    config: PretrainConfig
    lower_bound: float  # seconds of a step, from the counts of `hlo.read_work`, whatever the compiler does
    fields: dict[str, Any] | None  # the report of the compiled step; None without one
    reason: str  # why there is no report


def plan(
    config: PretrainConfig, devices: int, chip: Chip, measure: Callable[[PretrainConfig], dict], *, slices: int = 1
) -> list[Candidate]:
    """The candidates for all legal meshes of `devices` in `slices`, the fastest that fits first.

    `measure` compiles the step of a config and reports it (`programs.compile_and_report`). Each mesh takes the first
    choice that fits, in order of recomputation (least first), then of microbatches (fewest first). Raises ValueError if
    no mesh is legal.
    """
    if (context := config.mesh.context) < 1 or devices % context:
        raise ValueError(f"mesh.context is {context}; a search takes it as it is, and it must divide {devices} devices")
    legal = [(sizes, mesh) for sizes, mesh in _meshes(devices, config.mesh.context) if _splits(config, mesh)]
    legal = [(sizes, mesh) for sizes, mesh in legal if sizes["data"] % slices == 0]
    if not legal:
        raise ValueError(f"no mesh of {devices} devices splits this model and its {config.train.batch_size} rows")
    holding = [(_held_bytes(config, mesh), sizes, mesh) for sizes, mesh in legal]
    bounded = [(_lower_bound(config, mesh, chip, held), held, sizes, mesh) for held, sizes, mesh in holding]
    candidates, best = [], math.inf
    for lower_bound, held, sizes, mesh in sorted(bounded, key=lambda x: x[0]):
        on_mesh = dataclasses.replace(config, mesh=MeshConfig(**sizes))
        if lower_bound >= best:
            candidates.append(
                Candidate(on_mesh, lower_bound, None, f"no step takes less than {lower_bound:.4g} s there")
            )
            continue
        candidates.append(_first_that_fits(on_mesh, mesh, chip, held, lower_bound, measure))
        if candidates[-1].fields:
            best = min(best, candidates[-1].fields["step_seconds_bound"])
    return sorted(candidates, key=lambda t: (t.fields["step_seconds_bound"] if t.fields else math.inf, t.lower_bound))


def as_text(candidates: list[Candidate]) -> str:
    """The candidates as text, a line each, and the reason why the first wins."""
    lines = [f"plan: {len(candidates)} meshes split this model; the best that fits first"]
    for t in candidates:
        mesh = " ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(t.config.mesh).items() if size > 1)
        how = (
            f"{mesh or 'one device':<36} remat {t.config.model.remat:<5} microbatches {t.config.train.microbatches:<4}"
        )
        if t.fields:
            f = t.fields
            memory = f"{f['hbm_peak_bytes'] / 1e9:.2f} GB ({f['hbm_fraction']:.0%})"
            lines.append(f"  {how} {f['step_seconds_bound']:.4g} s ({f['limiting_term']})  {memory}")
        else:
            lines.append(f"  {how} {t.reason}")
    return "\n".join([*lines, "  " + reason_of(candidates)])


def reason_of(candidates: list[Candidate]) -> str:
    """The reason why the first candidate wins, or why none does."""
    winner = candidates[0].fields
    if winner is None:
        if failed := sum(t.reason.startswith(FAILS) for t in candidates):
            return f"no step was compiled: {FAILS} on {failed} of {len(candidates)} meshes, and the others do not fit"
        return "nothing fits: more devices, shorter rows, or a smaller model"
    others = [t for t in candidates[1:] if t.fields]
    parts = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in winner["seconds"].items())
    reason = f"the first wins: its {winner['limiting_term']} takes longest ({parts})"
    if others:
        second = others[0].fields
        gain = second["step_seconds_bound"] / winner["step_seconds_bound"] - 1
        reason += f", and the {second['limiting_term']} of the second takes {gain:.1%} longer"
    return reason


def _meshes(devices: int, context: int) -> Iterator[tuple[dict[str, int], AbstractMesh]]:
    for sizes in all_sizes(devices // context, SEARCHED):
        sizes["context"] = context
        yield sizes, abstract_mesh(**sizes)


def _splits(config: PretrainConfig, mesh: AbstractMesh) -> bool:
    if num_shards("batch", mesh) > config.train.batch_size:
        return False
    try:
        shardings(model_spec(config.model), mesh)
    except ValueError:
        return False
    return True


def _held_bytes(config: PretrainConfig, mesh: AbstractMesh) -> int:
    """Bytes of parameters and moments on a device."""
    optimizer = make_optimizer(config.optimizer, config.train.steps, model_spec(config.model))
    return state_bytes(abstract_state(config.model, optimizer, mesh))


def _lower_bound(config: PretrainConfig, mesh: AbstractMesh, chip: Chip, held: int) -> float:
    """Lower bound on the seconds of a step: model FLOPs, state read and written, traffic between devices."""
    rows = device_rows(config.train.batch_size, 1, mesh) // num_shards("batch", mesh)
    tokens, c = rows * config.data.sequence_length / num_shards("tokens", mesh), config.model
    compute = flops_per_token(c, config.data.sequence_length) * config.train.batch_size * config.data.sequence_length
    moved = 0.0
    for leaf in specs.named_leaves(model_spec(c)).values():
        if "vocab" not in leaf.axes:
            whole = math.prod(leaf.shape) / math.prod(num_shards(axis, mesh) for axis in set(leaf.axes) - set(GATHERED))
            moved += 2 * 2 * whole * (1 - 1 / _gathered_parts(leaf, mesh))  # bfloat16, and the gradient scattered
    experts = sum(run.count * s.repeats for s in layer_plan(c) for run in s.runs if run.kind.ffn == "moe")
    ways = mesh.shape["expert"]
    sent = tokens * max_devices_per_token(c, ways) * (1 - 1 / ways)
    moved += 4 * 2 * experts * sent * c.hidden_size  # there and back, in forward and backward
    return max(
        compute / (mesh.size * chip.flops), 2 * held / chip.hbm_bytes_per_second, moved / chip.link_bytes_per_second
    )


def _gathered_parts(leaf: specs.Leaf, mesh: AbstractMesh) -> int:
    """Number of parts that devices gather to compute with a parameter."""
    dimensions = zip(leaf.axes, leaf.shape, strict=True)
    split = [split_axes(axis, size, mesh) for axis, size in dimensions if axis in GATHERED]
    return math.prod(mesh.shape[mesh_axis] for axes in split for mesh_axis in axes)


def _first_that_fits(config: PretrainConfig, mesh, chip: Chip, held: int, lower_bound: float, measure) -> Candidate:
    if held > chip.hbm_bytes:
        return Candidate(config, lower_bound, None, f"parameters and moments alone take {held / 1e9:.1f} GB")
    reason = "no choice of remat and microbatches fits"
    for remat in REMATS:
        for microbatches in _microbatches(config, mesh):
            candidate = dataclasses.replace(
                config,
                model=dataclasses.replace(config.model, remat=remat),
                train=dataclasses.replace(config.train, microbatches=microbatches),
            )
            if held + _kept_bytes(candidate, mesh) > chip.hbm_bytes:
                continue
            try:
                fields = measure(candidate)
            except jax.errors.JaxRuntimeError as error:  # a compiler failure does not end the search
                reason = f"{FAILS}: {str(error).splitlines()[0]}"
                continue
            if fields["fits"]:
                return Candidate(candidate, lower_bound, fields, "")
    return Candidate(candidate, lower_bound, None, reason)


def _microbatches(config: PretrainConfig, mesh) -> list[int]:
    """Microbatch counts that divide the batch, ascending; of equal rows per device, the one with least padding."""
    best: dict[int, tuple[int, int]] = {}
    for count in (n for n in range(1, config.train.batch_size + 1) if config.train.batch_size % n == 0):
        rows = device_rows(config.train.batch_size, count, mesh)
        each = rows // (count * num_shards("batch", mesh))
        best[each] = min(best.get(each, (rows, count)), (rows, count))
    return sorted(count for _, count in best.values())


def _kept_bytes(config: PretrainConfig, mesh) -> int:
    """Lower bound on the bytes that forward saves for backward: layer inputs, and projections if not recomputed."""
    c = config.model
    width = {"full": 0, "ffn": c.hidden_size, "dots": 4 * c.num_heads * c.head_dim // mesh.shape["tensor"]}
    kept = c.hidden_size + width.get(c.remat, width["dots"])
    rows = device_rows(config.train.batch_size, config.train.microbatches, mesh) // config.train.microbatches
    tokens = rows * config.data.sequence_length // (num_shards("batch", mesh) * num_shards("tokens", mesh))
    return 2 * c.num_layers * tokens * kept
