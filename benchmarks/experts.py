"""What the TPU kernels of the experts' grouped matmuls cost against the matrix units: a part of `benchmarks.lightning`.

A roof is all useful rows' multiplications at the chip's peak. The grid of a kernel is its steps for uniform loads,
known to the compiler here; each step is taken to fetch its blocks anew, which it does not where they stay. The cycles
include the plan of the steps, the same for all loads.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import Claim
from pallas_kernels.chips import CHIPS
from pallas_kernels.grouped_matmul.plan import Plan, plan_steps, row_tile
from pallas_kernels.grouped_matmul.tpu_columns import add_columns
from pallas_kernels.grouped_matmul.tpu_rows import multiply_rows
from pallas_kernels.static_cost import static_cost

ROWS, EXPERTS = 65536, 64
SHAPES = ((2048, 512), (8192, 2048))
BAR = 1.5  # times the roof, v5p
SHARES = {"uniform": np.ones(EXPERTS), "zipf": 1 / np.arange(1, EXPERTS + 1), "all_on_one": np.eye(EXPERTS)[17]}


# ---------------------------------------------------------------- what is compiled


def loads_of(name: str) -> np.ndarray:
    """[E] that sum to the rows."""
    shares = SHARES[name]
    return np.diff(np.round(ROWS * np.cumsum(shares) / shares.sum()), prepend=0).astype(np.int32)


def tile_of(depth: int) -> int:
    return row_tile(ROWS, EXPERTS, 2 * depth)


def known_plan(name: str, tile: int) -> Plan:
    with jax.ensure_compile_time_eval():
        plan = plan_steps(jnp.asarray(loads_of(name)), ROWS, tile)
        return plan._replace(count=int(plan.count))


def forward(x, w):
    tile = tile_of(x.shape[1])
    return multiply_rows(x, w, known_plan("uniform", tile), tile)


def rows_gradient(grad, w):
    tile = tile_of(grad.shape[1])
    return multiply_rows(grad, w, known_plan("uniform", tile), tile, transposed=True)


def weights_gradient(total, x, grad):
    tile = tile_of(max(x.shape[1], grad.shape[1]))
    return add_columns(total, x, grad, known_plan("uniform", tile), tile)


def plan(loads):
    return plan_steps(loads, ROWS, tile_of(SHAPES[0][0]))


# ---------------------------------------------------------------- claims


def cycle_claims(chip: str, depth: int, width: int) -> Iterator[Claim]:
    """What v5p is promised; the others have less memory bandwidth for their matrix units, and are only printed."""
    x, w, grad = ((ROWS, depth), "bfloat16"), ((EXPERTS, depth, width), "bfloat16"), ((ROWS, width), "bfloat16")
    passes = {
        "forward": dict(x=x, w=w),
        "rows_gradient": dict(grad=grad, w=w),
        "weights_gradient": dict(total=w, x=x, grad=grad),
    }
    for name, arguments in passes.items():
        donated = ["total"] if "total" in arguments else []
        cost = static_cost(f"benchmarks.experts:{name}", arguments, chip, donated=donated)
        cycles = cost.bound_cycles + plan_cycles(chip)
        ratio = cycles * CHIPS[chip].flops_per_cycle / (2 * ROWS * depth * width)
        row, vmem = f"experts_{name}.{chip}.{depth}_{width}", cost.vmem_bytes / 2**20
        print(f"{row:<44} {cycles:>10} {ratio:>7.3f} {cost.hbm_bytes:>14} {vmem:>9.1f}", flush=True)
        if chip == "v5p":
            workload = f"{ROWS} rows, {EXPERTS} experts, uniform loads, bfloat16: {cycles} cycles"
            yield Claim(row, ratio, "x roof", "<=", BAR, workload)


@functools.cache
def plan_cycles(chip: str) -> int:
    return static_cost("benchmarks.experts:plan", {"loads": ((EXPERTS,), "int32")}, chip).bound_cycles


def row_claims() -> Iterator[Claim]:
    """Rows computed over the bound: the useful ones and a tile for each expert that has any."""
    for name in SHARES:
        loads, tile = loads_of(name), tile_of(SHAPES[0][0])
        computed, bound = known_plan(name, tile).count * tile, ROWS + tile * np.count_nonzero(loads)
        workload = f"{ROWS} rows, {EXPERTS} experts, tiles of {tile}: {computed} rows computed"
        yield Claim(f"experts_rows.tpu.{name}", float(computed / bound), "x bound", "<=", 1.0, workload)
