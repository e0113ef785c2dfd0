"""Static cost of a function on an absent TPU, from the schedule that the compiler writes.

    python -m pallas_kernels.static_cost --chip=v5p --function=module:name --arguments='{"x": [[8, 128], "float32"]}'

libtpu compiles ahead of time in a separate process with a fresh dump folder. From the dump come:

- **kernels** (Pallas): trips x max(bundles, matrix-unit occupancy) of every loop (`bundles.py`), HBM bytes from the
  BlockSpecs: a block's bytes each time its index changes along the grid;
- **everything else** (XLA): the compiler's estimated cycles, or the operation's own schedule where there is none, and
  HBM bytes of operands and results (`hlo_bytes.py`).

The bound of an operation is the larger of its cycles and its HBM time; `bound_cycles` is their sum and the number to
compare. Cycles are those of the core clock; on v5p they cover the whole chip, both cores, if a grid axis is "parallel".
DMA latency, pipeline fill and launches are not included, so only ratios between programs are meaningful.
"""

import argparse
import collections
import glob
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from pallas_kernels.bundles import Schedule, read_schedule
from pallas_kernels.chips import CHIPS, Chip
from pallas_kernels.hlo_bytes import computations, hlo_operations


class Operation(NamedTuple):
    """The cost of one operation over all its runs."""

    name: str
    cycles: int
    hbm_bytes: int
    bound_cycles: int
    vmem_bytes: int  # of kernels; else 0


class Cost(NamedTuple):
    """The cost of a function."""

    bound_cycles: int
    cycles: int
    hbm_bytes: int
    vmem_bytes: int  # of the largest kernel
    temp_bytes: int  # HBM for temporaries
    kernels: list[Operation]
    xla: list[Operation]
    unknown_trips: list[str]  # loops that count once


def static_cost(
    function: str,
    arguments: dict,
    chip: str,
    static: dict | None = None,
    *,
    donated: Sequence[str] = (),
    timeout: int = 1800,
) -> Cost:
    """The cost of `module:name` called with `arguments`, {name: (shape, dtype)}, and the JSON values `static`.

    `donated` names arguments whose memory the results may reuse; `timeout` is in seconds. Raises ValueError for an
    unknown chip and RuntimeError with the compiler's message if compilation fails.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip is {chip!r}; it is one of {', '.join(CHIPS)}")
    path = [folder for folder in sys.path if folder]
    spec = dict(
        function=function, chip=chip, arguments=arguments, static=static or {}, donated=[*donated], path=path
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as dump:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise one process at a time
            "TPU_ACCELERATOR_TYPE": "v5p-8",  # of the absent host; any type works
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_SKIP_MDS_QUERY": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true",
            "PYTHONPATH": os.pathsep.join(spec["path"]),
        }
        result = os.path.join(dump, "result.json")
        command = [sys.executable, "-m", "pallas_kernels.static_cost", "--compile", json.dumps(spec), result]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        if not os.path.exists(result):
            raise RuntimeError(f"the compiler's process died ({done.returncode}): {done.stderr[-400:]}")
        with open(result) as file:
            left = json.load(file)
        if "error" in left:
            raise RuntimeError(f"{function} does not compile for {chip}: {left['error']}")
        return _read_cost(left, dump, CHIPS[chip])


# ---------------------------------------------------------------- compilation (in its own process)


def _try_to_compile(spec: dict) -> dict:
    try:
        return _compile(spec)
    except Exception as error:  # the compiler's message is the result
        return dict(error=f"{type(error).__name__}: {str(error)[:600]}")


def _compile(spec: dict) -> dict:
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    module, name = spec["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[spec["chip"]].topology).devices
    mesh = Mesh(np.array(devices[:1]), ("one",))
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(getattr(jax.numpy, dtype)), sharding=sharding)
        for name, (shape, dtype) in spec["arguments"].items()
    }

    def call(**arguments):
        return function(**arguments, **spec["static"])

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels query the platform
        calls = _pallas_calls(jax.make_jaxpr(call)(**arguments).jaxpr)
        compiled = jax.jit(call, donate_argnames=spec["donated"]).lower(**arguments).compile()
    temp = compiled.memory_analysis().temp_size_in_bytes
    return dict(hlo=compiled.as_text(), pallas_calls=calls, temp_bytes=temp)


def _pallas_calls(jaxpr) -> list[dict]:
    """{name, grid, HBM bytes} of every kernel, in order."""
    calls = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            mapping = equation.params["grid_mapping"]
            traffic = sum(_block_traffic(block, tuple(mapping.grid)) for block in mapping.block_mappings)
            name = equation.params["name"] or ""
            calls.append(dict(name=name, grid=[int(n) for n in mapping.grid], hbm_bytes=int(traffic)))
            continue
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            calls += _pallas_calls(inner) if hasattr(inner, "eqns") else []
    return calls


def _block_traffic(block, grid: tuple[int, ...]) -> int:
    """Bytes moved between HBM and VMEM: the block's size times the changes of its index between steps."""
    space = str(block.block_aval).lower()
    array = block.array_aval
    if "smem" in space:
        return 0
    if "any" in space or "hbm" in space:
        return array.dtype.itemsize * int(np.prod(array.shape, dtype=np.int64))
    sizes = [getattr(size, "block_size", size) for size in block.block_shape]
    block_bytes = array.dtype.itemsize * int(np.prod([n if isinstance(n, int) else 1 for n in sizes], dtype=np.int64))
    if not grid:
        return block_bytes
    total = int(np.prod(grid, dtype=np.int64))
    if len(block.index_map_jaxpr.jaxpr.invars) > len(grid):  # the index depends on unknown scalars: every step fetches
        return block_bytes * total
    steps = np.array(list(itertools.islice(itertools.product(*map(range, grid)), 1 << 18)), np.int32)
    index = block.index_map_jaxpr
    place = jax.vmap(lambda step: jax.numpy.stack(jax.core.eval_jaxpr(index.jaxpr, index.consts, *step)))(steps)
    fetches = 1 + int((np.diff(np.asarray(place), axis=0) != 0).any(axis=1).sum())
    return block_bytes * fetches * total // len(steps)


# ---------------------------------------------------------------- parsing of the dump


def _read_cost(result: dict, dump: str, chip: Chip) -> Cost:
    operations, unknown = hlo_operations(computations(result["hlo"]))
    by_name = collections.defaultdict(list)
    for call in result["pallas_calls"]:
        by_name[_plain_name(call["name"])].append(call)
    kernels, xla, seen = [], [], {}
    for op in operations:
        if op.kernel:
            calls = by_name[_plain_name(op.name)] or result["pallas_calls"][:1]
            call = calls.pop(0) if len(calls) > 1 else calls[0]
            # Equal kernels are compiled once, under the name of the first one.
            schedule = seen[op.body] = _dumped_schedule(dump, op.name, chip, call["grid"]) or seen[op.body]
            if schedule.unknown_trips:
                unknown.append(op.name)
            kernels.append(_operation(op, schedule.cycles * op.times, call["hbm_bytes"] * op.times, chip))
            continue
        cycles = op.estimated_cycles
        if not cycles and (schedule := _dumped_schedule(dump, op.name, chip, [])):
            cycles = schedule.cycles * op.times
        xla.append(_operation(op, cycles, op.hbm_bytes, chip))
    both = kernels + xla
    hbm_bytes = sum(op.hbm_bytes for op in both)
    return Cost(
        bound_cycles=max(sum(op.bound_cycles for op in both), int(hbm_bytes / chip.bytes_per_cycle)),
        cycles=sum(op.cycles for op in both),
        hbm_bytes=hbm_bytes,
        vmem_bytes=max((kernel.vmem_bytes for kernel in kernels), default=0),
        temp_bytes=result["temp_bytes"],
        kernels=kernels,
        xla=sorted(xla, key=lambda op: -op.bound_cycles),
        unknown_trips=unknown,
    )


def _operation(op, cycles: int, hbm_bytes: int, chip: Chip) -> Operation:
    waits = op.name_of_kind.endswith("-done")  # of an asynchronous copy, whose bytes count once in the total
    bound = 0 if waits else int(max(cycles, hbm_bytes / chip.bytes_per_cycle))
    return Operation(op.name, cycles, hbm_bytes, bound, op.vmem_bytes)


def _plain_name(name: str) -> str:
    """A kernel's name without instance numbers and the prefixes of jax transformations."""
    name = re.sub(r"[.\d]*$", "", name).lstrip("_")
    return re.sub(r"^((transpose|jvp|vmap|remat|checkpoint|rematted_computation)_+)+", "", name).rstrip("_")


def _dumped_schedule(dump: str, name: str, chip: Chip, grid: list[int]) -> Schedule | None:
    wanted = re.compile(r"\d-" + re.escape(name) + r"-\d+-final_bundles\.txt")
    files = sorted(glob.glob(os.path.join(glob.escape(dump), "*final_bundles.txt")))
    files = [file for file in files if wanted.search(os.path.basename(file))]
    if not files:
        return None
    with open(files[-1], errors="replace") as lines:
        return read_schedule(lines, grid, matrix_units=chip.matrix_units, rows_per_cycle=chip.rows_per_cycle)


def main() -> None:
    """Prints the cost of the function that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--function", required=True, help="module:name")
    parser.add_argument("--chip", choices=CHIPS, required=True)
    parser.add_argument("--arguments", type=json.loads, required=True, help='{"name": [shape, dtype], …}')
    parser.add_argument("--static", type=json.loads, default={}, help="arguments that are no arrays")
    options = parser.parse_args()
    cost = static_cost(options.function, options.arguments, options.chip, options.static)
    for op in cost.kernels + cost.xla[:12]:
        print(f"{op.name:<44} {op.bound_cycles:>10} bound {op.cycles:>10} cycles {op.hbm_bytes:>12} bytes HBM", end="")
        print(f" {op.vmem_bytes / 2**20:>6.1f} MiB VMEM" if op.vmem_bytes else "")
    print(f"bound_cycles {cost.bound_cycles}, HBM {cost.hbm_bytes}, temp {cost.temp_bytes}", *cost.unknown_trips)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        with open(sys.argv[3], "w") as out:
            json.dump(_try_to_compile(json.loads(sys.argv[2])), out)
    else:
        main()
