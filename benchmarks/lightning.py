"""What Lightning attention and the experts' matmuls cost against the machine's limits: on TPUs as their compiler says,
so that none is needed; on this CPU as the clock says.

python -m benchmarks.lightning --json_out=lightning.json    (needs libtpu: pip install -e '.[tpu]'; twenty minutes)

A roof is the larger of two times: all arrays once through HBM, all matmuls at the chip's peak (chunks of 128). Claims
are named `what.chip.shape`. The kernels of GPUs were not timed.
"""

import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
from absl import app, flags

from benchmarks import experts
from benchmarks.json_out import JSON_OUT
from benchmarks.lightning_cpu import measure_lightning
from benchmarks.report import Claim, check_json_out, check_tpu_compiler, finish
from pallas_kernels.chips import CHIPS
from pallas_kernels.lightning_attention import (
    Norms,
    lightning_attention,
    lightning_attention_flat,
    lightning_decode_tpu,
    lightning_layer_tpu,
)  # fmt: skip
from pallas_kernels.static_cost import Cost, static_cost

QUICK = flags.DEFINE_bool("quick", False, "v5p and the smallest shape alone")

DIM, CHUNK = 128, 128
SHAPES = ((2048, 16), (8192, 16), (32768, 16), (8192, 64))  # tokens of the one row, heads
LONG = 131072
BARS = {  # times the roof: (forward, forward + backward)
    ("plain", "v5p"): (1.10, 1.30),
    ("plain", "v6e"): (1.10, 1.20),
    ("packed", "v5p"): (1.25, 1.45),
    ("packed", "v6e"): (1.25, 1.45),
}
LAYER_BARS = {"v5p": (3.0, 3.5)}  # times the attention's roof
BOUNDARY_BARS = {"v5p": (395, 1030), "v6e": (531, 1575)}  # 1000 cycles at [B, T, H, D]


class Roof(NamedTuple):
    arrays: int  # of [T, H·D] in bfloat16 that move at least
    flops: int  # per token and head

    def bytes(self, length: int, heads: int) -> int:
        return 2 * self.arrays * length * heads * DIM

    def cycles(self, chip: str, length: int, heads: int) -> float:
        memory = self.bytes(length, heads) / CHIPS[chip].bytes_per_cycle
        return max(memory, length * heads * self.flops / CHIPS[chip].flops_per_cycle)


FORWARD = Roof(4, 4 * CHUNK * DIM + 4 * DIM**2)  # q, k, v, out
BOTH = Roof(11, 14 * CHUNK * DIM + 12 * DIM**2)  # those, then q, k, v, d_out, dq, dk, dv


# ---------------------------------------------------------------- what is compiled


def forward(q, k, v, log_decay, segment_ids=None, *, num_heads: int):
    return lightning_attention_flat(q, k, v, log_decay, num_heads=num_heads, segment_ids=segment_ids, backend="tpu")


def forward_backward(q, k, v, log_decay, d_out, segment_ids=None, *, num_heads: int):
    attend = functools.partial(forward, log_decay=log_decay, segment_ids=segment_ids, num_heads=num_heads)
    out, pull = jax.vjp(lambda *qkv: attend(*qkv)[0], q, k, v)
    return out, pull(d_out)


def boundary_forward(q, k, v, log_decay):
    return lightning_attention(q, k, v, log_decay, backend="tpu")


def boundary_forward_backward(q, k, v, log_decay, d_out):
    out, pull = jax.vjp(lambda *qkv: boundary_forward(*qkv, log_decay)[0], q, k, v)
    return out, pull(d_out)


def layer_forward(q, k, v, gate, q_norm, k_norm, norm, cos, sin, log_decay, *, num_heads: int, num_groups: int):
    """From the projections' outputs to the output projection's input; half of the dims are rotated."""
    return lightning_layer_tpu(
        q, k, v, gate, Norms(q_norm, k_norm, norm), (cos, sin), log_decay, None, None,
        num_heads=num_heads, num_groups=num_groups, half=DIM // 4, eps=1e-6,
    )[0]  # fmt: skip


def layer_forward_backward(q, k, v, gate, q_norm, k_norm, norm, cos, sin, log_decay, d_out, **heads):
    call = lambda *trained: layer_forward(*trained, cos, sin, log_decay, **heads)  # noqa: E731
    out, pull = jax.vjp(call, q, k, v, gate, q_norm, k_norm, norm)
    return out, pull(d_out)


def decode(q, k, v, log_decay, states):
    """One token for each slot: q, k, v [slots, H·D] as projections of [slots, D] make them."""
    out, states = lightning_decode_tpu(*(x[:, None] for x in (q, k, v)), log_decay, states, num_heads=states.shape[1])
    return out[:, 0], states


# ---------------------------------------------------------------- claims


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    check_tpu_compiler()
    chips, count = (["v5p"], 1) if QUICK.value else (list(CHIPS), None)
    claims = [*cpu_claims(times=2 if QUICK.value else 5), *experts.row_claims()]
    print(f"{'':<44} {'cycles':>10} {'x roof':>7} {'HBM bytes':>14} {'VMEM MiB':>9}")
    for chip in chips:
        claims += chip_claims(chip, SHAPES[:count])
        claims += (claim for shape in experts.SHAPES[:count] for claim in experts.cycle_claims(chip, *shape))
    command = "python -m benchmarks.lightning" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value))


def cpu_claims(times: int) -> list[Claim]:
    found = measure_lightning(times)
    peak, flat = f"{found.workload}, T 512", f"{found.workload}: time of a token over that at T 512"
    return [
        Claim("forward_backward.cpu.T512_H8", found.versus_peak, "x matmuls", "<=", 2.0, peak),
        Claim("forward_backward_growth.cpu.T8192_H8", found.flatness, "x", "<=", 1.15, flat),
    ]


def chip_claims(chip: str, shapes) -> Iterator[Claim]:
    """What a chip is promised; the costs of the others are only printed."""
    for length, heads in shapes:
        for rows in ("plain", "packed"):
            yield from attention_claims(chip, rows, length, heads)
    yield from layer_claims(chip, 8192, 16, 4)
    if chip in BOUNDARY_BARS:
        yield from boundary_claims(chip, 8192, 16)
    yield from decode_claims(chip)
    yield from length_claims(chip, LONG, 16)


def attention_claims(chip: str, rows: str, length: int, heads: int) -> Iterator[Claim]:
    prefix = "" if rows == "plain" else f"{rows}_"
    passes = (("forward", FORWARD, 1.05, "ideal bytes"), ("forward_backward", BOTH, 13 / 11, "ideal bytes"))
    bars = BARS.get((rows, chip), (None, None))
    for (name, roof, bytes_bar, unit), bar in zip(passes, bars, strict=True):
        cost = flat_cost(name, chip, rows, length, heads)
        ratio = cost.bound_cycles / roof.cycles(chip, length, heads)
        row = f"{chip}.T{length}_H{heads}"
        show(f"{prefix}{name}.{row}", cost, ratio)
        if bar is None:
            continue
        workload = f"B 1, T {length}, H {heads}, D {DIM}, bfloat16, {rows} rows: {cost.bound_cycles} cycles"
        if rows == "packed":
            workload += f", {cycles_across_chunks(cost, length)} where none of 4 documents begins with a chunk"
        yield Claim(f"{prefix}{name}.{row}", ratio, "x roof", "<=", bar, workload)
        share = cost.hbm_bytes / roof.bytes(length, heads)
        yield Claim(f"{prefix}{name}_bytes.{row}", share, unit, "<=", bytes_bar, f"{workload}, {cost.hbm_bytes} bytes")


def cycles_across_chunks(cost: Cost, length: int) -> int:
    """The meter counts one run of tokens for each chunk; a document's edge inside of one makes two of it."""
    chunks, edges = length // CHUNK, 3
    return max(cost.bound_cycles, int(cost.cycles * (chunks + edges) / chunks))


def layer_claims(chip: str, length: int, heads: int, groups: int) -> Iterator[Claim]:
    array, head, rotation = (((1, length, heads * DIM), "bfloat16"), ((DIM,), "float32"), ((1, length, DIM), "float32"))
    arguments = dict(q=array, k=array, v=array, gate=array, q_norm=head, k_norm=head, norm=((heads, DIM), "float32"))
    arguments |= dict(cos=rotation, sin=rotation, log_decay=((heads,), "float32"))
    passes = (("forward", FORWARD, {}), ("forward_backward", BOTH, {"d_out": array}))
    for (name, roof, more), bar in zip(passes, LAYER_BARS.get(chip, (None, None)), strict=True):
        static = {"num_heads": heads, "num_groups": groups}
        cost = static_cost(f"benchmarks.lightning:layer_{name}", arguments | more, chip, static)
        ratio, row = cost.bound_cycles / roof.cycles(chip, length, heads), f"layer_{name}.{chip}.T{length}_H{heads}"
        show(row, cost, ratio)
        if bar is not None:
            workload = f"norm, rotation, attention, norm of {groups} groups, gate; bfloat16: {cost.bound_cycles} cycles"
            yield Claim(row, ratio, "x roof", "<=", bar, workload)


def boundary_claims(chip: str, length: int, heads: int) -> Iterator[Claim]:
    array = ((1, length, heads, DIM), "bfloat16")
    arguments = dict(q=array, k=array, v=array, log_decay=((heads,), "float32"))
    bars = BOUNDARY_BARS[chip]
    for name, more, bar in (("forward", {}, bars[0]), ("forward_backward", {"d_out": array}, bars[1])):
        cost = static_cost(f"benchmarks.lightning:boundary_{name}", arguments | more, chip)
        row = f"boundary_{name}.{chip}.T{length}_H{heads}"
        show(row, cost, None)
        workload = f"[1, {length}, {heads}, {DIM}] in and out, bfloat16"
        yield Claim(row, cost.bound_cycles / 1000, "kcycles", "<=", bar, workload)


def decode_claims(chip: str, heads: int = 64) -> Iterator[Claim]:
    for slots in (64, 1):
        array, states = ((slots, heads * DIM), "bfloat16"), ((slots, heads, DIM, DIM), "float32")
        arguments = dict(q=array, k=array, v=array, log_decay=((heads,), "float32"), states=states)
        cost = static_cost("benchmarks.lightning:decode", arguments, chip, donated=["states"])
        ideal = 2 * 4 * slots * heads * DIM**2
        ratio, row = cost.bound_cycles * CHIPS[chip].bytes_per_cycle / ideal, f"{chip}.S{slots}_H{heads}"
        show(f"decode.{row}", cost, ratio)
        workload = f"one token, {slots} slots, {heads} heads of {DIM} x {DIM} float32: states read and written once"
        yield Claim(f"decode.{row}", ratio, "x states", "<=", 1 / 0.85, workload)
        yield Claim(f"decode_bytes.{row}", cost.hbm_bytes / ideal, "x states", "<=", 1 / 0.85, workload)


def length_claims(chip: str, length: int, heads: int) -> Iterator[Claim]:
    """The kernels' VMEM at this length over that at 8192 tokens."""
    for name in ("forward", "forward_backward"):
        long, short = (flat_cost(name, chip, "plain", tokens, heads) for tokens in (length, 8192))
        row = f"{name}_vmem.{chip}.T{length}_H{heads}"
        show(row, long, None)
        yield Claim(row, long.vmem_bytes / short.vmem_bytes, "x", "<=", 1.0, f"T {length} against 8192, plain rows")


@functools.cache
def flat_cost(name: str, chip: str, rows: str, length: int, heads: int) -> Cost:
    array = ((1, length, heads * DIM), "bfloat16")
    arguments = dict(q=array, k=array, v=array, log_decay=((heads,), "float32"))
    arguments |= {"segment_ids": ((1, length), "int32")} if rows == "packed" else {}
    arguments |= {"d_out": array} if name == "forward_backward" else {}
    return static_cost(f"benchmarks.lightning:{name}", arguments, chip, {"num_heads": heads})


def show(name: str, cost: Cost, ratio: float | None) -> None:
    shown = "" if ratio is None else f"{ratio:.3f}"
    size = f"{cost.vmem_bytes / 2**20:.1f}"
    print(f"{name:<44} {cost.bound_cycles:>10} {shown:>7} {cost.hbm_bytes:>14} {size:>9}", flush=True)


if __name__ == "__main__":
    app.run(main)
