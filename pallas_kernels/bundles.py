"""Parser of the schedule that the TPU compiler writes for a kernel (final_bundles.txt): loops, trips, bundles.

A line is an instruction bundle: an address, a label (LB begins a loop's body, PF follows a skipped region), one `>` per
loop level, and the instructions that issue together. Bundles alone underestimate code that the matrix units limit: the
schedule issues 16 rows every 8 to 12 bundles, but a unit takes 1 row per cycle (v5) or 2 (v6, v7). So the cost of a
loop is the larger of its bundles and its busiest unit.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

BUNDLE = re.compile(r"^\s*(?:0x)?([0-9a-f]+)\s+([A-Z]{2})?\s*:\s*(>*)\s*\{(\})?")
MATMUL = re.compile(r"vmatmul([a-z0-9_.]*?)\.(mxu\d|mrb)")
STEP = re.compile(r"(%s\w+) = sadd\.s32 (\d+),")
GRID_INDEX = re.compile(r"(%s\w+) = sphi [^;]*?iteration index, stage = \d iter bound = (\d+)")
SPILL = re.compile(r"sst \[smem:\[(#\w+_spill)\]\] (%s\w+)")
FILL = re.compile(r"(%s\w+) = sld \[smem:\[(#\w+_spill)\]\]")
COMPARE = re.compile(r"(%p\w+) = scmp\.(ne|eq)\.s32\.totalorder (%s\w+), \d+")
EXIT = re.compile(r"(%p\w+) = scmp\.\w+\.s32\.totalorder (%s\w+), (\d+) /\* loop exit test")
BRANCH = re.compile(r"sbr\.rel \((!?%p\w+)\)")
PIPELINE_STEPS = 2  # extra trips of a grid's loop, which fill and drain the pipeline


class Schedule(NamedTuple):
    """The cost of a kernel on one core."""

    cycles: int
    bundles: int
    matrix_cycles: int
    unknown_trips: int  # loops without a constant trip count, which count once


@dataclasses.dataclass
class Loop:
    """A loop of the schedule."""

    depth: int
    parent: "Loop | None"
    trips: int = 1
    known: bool = False
    exit: str | None = None  # predicate of the exit
    closed: bool = False
    over_grid: bool = False
    bundles: float = 0.0
    matrix: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def runs(self) -> int:
        """Number of runs of the body, outer loops included."""
        trips = self.trips - PIPELINE_STEPS if self.over_grid and self.trips > PIPELINE_STEPS else self.trips
        return trips * (self.parent.runs if self.parent else 1)


class _Reader:
    """The state of the parser."""

    def __init__(self, grid: list[int], rows_per_cycle: int):
        self.grid, self.rows_per_cycle = grid, rows_per_cycle
        self.loop = Loop(0, None, known=True)
        self.loops = [self.loop]
        self.weight = 1.0  # share of trips that run the current bundle
        self.steps: dict[str, int] = {}  # increment of scalar registers that count loops
        self.axis: dict[str, int | None] = {}  # grid axis whose index a scalar register holds
        self.spilled: dict[str, str] = {}
        self.only_once: dict[str, int | None] = {}  # predicate that skips a region -> the axis it tests

    def read(self, line: str) -> None:
        if bundle := BUNDLE.match(line):
            self._enter(bundle)
        for kind, unit in MATMUL.findall(line):
            rows = 16 if "bf16" in kind or "8" in kind else 8
            self.loop.matrix[unit] += self.weight * rows / self.rows_per_cycle
        self._scalars(line)
        self._branches(line)

    def _enter(self, bundle: re.Match) -> None:
        label, marks, empty = bundle[2], bundle[3], bundle[4]
        depth = self.loop.depth if empty else len(marks)  # empty bundles carry no loop marks
        while self.loop.depth > depth or (label == "LB" and self.loop.depth == depth):
            self.loop = self.loop.parent
        if label == "LB":
            self.loop = Loop(depth, self.loop)
            self.loops.append(self.loop)
        if label in ("PF", "LB"):
            self.weight = 1.0
        self.loop.bundles += self.weight

    def _scalars(self, line: str) -> None:
        self.steps.update((register, int(step)) for register, step in STEP.findall(line))
        self.loop.over_grid |= "iteration index, stage" in line
        self.axis.update((register, int(axis)) for register, axis in GRID_INDEX.findall(line))
        self.spilled.update(SPILL.findall(line))
        for register, slot in FILL.findall(line):
            self.axis[register] = self.axis.get(self.spilled.get(slot))
        for predicate, kind, register in COMPARE.findall(line):
            self.only_once[("" if kind == "ne" else "!") + predicate] = self.axis.get(register)

    def _branches(self, line: str) -> None:
        loop, test = self.loop, EXIT.search(line)
        if test and loop.depth and not loop.known:
            loop.trips, loop.known = max(1, int(test[3]) // self.steps.get(test[2], 1)), True
            loop.exit = test[1]
        for predicate in BRANCH.findall(line):
            loop.closed |= predicate.strip("!") == loop.exit
            axis = self.only_once.get(predicate)
            if axis is not None and axis < len(self.grid):  # pl.when(program_id == constant), up to its PF label
                self.weight = 1.0 / self.grid[axis]


def read_schedule(lines: Iterable[str], grid: list[int], *, matrix_units: int, rows_per_cycle: int) -> Schedule:
    """The cost of a kernel on one core, from the lines of its final_bundles.txt and its grid."""
    reader = _Reader(grid, rows_per_cycle)
    for line in lines:
        reader.read(line)
    cycles = bundles = matrix_cycles = 0.0
    for loop in reader.loops:
        shared = "mrb" in loop.matrix  # v6, v7: units are not named
        busy = sum(loop.matrix.values()) / matrix_units if shared else max(loop.matrix.values(), default=0)
        cycles += loop.runs * max(loop.bundles, busy)
        bundles += loop.runs * loop.bundles
        matrix_cycles += loop.runs * busy
    return Schedule(int(cycles), int(bundles), int(matrix_cycles), sum(not loop.known for loop in reader.loops))
