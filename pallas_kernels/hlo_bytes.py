"""Operations of a compiled HLO module: number of runs, the compiler's cycle estimate, HBM bytes.

`computations` parses the text, `walk` goes through what runs, `hlo_operations` adds up bytes and cycles.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

ELEMENT_BYTES = dict(
    pred=1, s8=1, u8=1, bf16=2, f16=2, s16=2, u16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8, f8e4m3fn=1, f8e5m2=1,
    s4=0.5, u4=0.5,
)  # fmt: skip
INSTRUCTION = re.compile(r"^\s*(ROOT )?%([^\s=]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(?:to_apply|calls|computation|body|true_computation|false_computation)=%([^\s,}]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
SUMS = ("reduce", "all-reduce", "reduce-scatter", "scatter", "sort", "map", "reduce-window")  # apply it to two numbers
CONTROL = ("while", "call", "conditional")  # their cost is that of the operations inside
FREE = ("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "iota")


class Instruction(NamedTuple):
    """One parsed HLO instruction."""

    name: str
    shape: str
    kind: str
    operands: list[str]
    arguments: str  # text in parentheses: a parameter's number, a constant's value
    attributes: str


Computation = dict[str, Instruction]


class Visit(NamedTuple):
    """An instruction that runs."""

    here: Computation
    op: Instruction
    times: int
    inside: bool  # a fusion, an asynchronous call, or a branch of a conditional that is not its first


class HloOperation(NamedTuple):
    """One operation with its totals over all runs."""

    name: str
    name_of_kind: str
    times: int
    estimated_cycles: int  # over all runs; 0 without an estimate
    hbm_bytes: int  # over all runs
    kernel: bool  # a Pallas kernel
    body: str  # of a kernel; equal bodies are compiled once
    vmem_bytes: int


def computations(text: str) -> dict[str, Computation]:
    """{computation: {instruction: Instruction}} of a module's text; the entry computation is ENTRY."""
    found: dict[str, Computation] = {}
    current = None
    for line in text.splitlines():
        if header := re.match(r"^(ENTRY )?%(\S+) \(.*\{$", line):
            current = found.setdefault("ENTRY" if header[1] else header[2], {})
        elif current is not None and (m := INSTRUCTION.match(line)):
            current[m[2]] = Instruction(m[2], m[3], m[4], re.findall(r"%([^\s,()]+)", m[5]), m[5], m[6])
    return found


def walk(module: dict[str, Computation], name: str = "ENTRY", times: int = 1, inside: bool = False) -> Iterator[Visit]:
    """Every instruction that a run of the computation `name` executes, in order, fusions opened.

    Those in a loop run once per trip, once if the trip count is unknown. All branches of a conditional are visited.
    """
    here = module.get(name, {})
    for op in here.values():
        yield Visit(here, op, times, inside)
        if op.kind in SUMS:
            continue
        runs = times
        if op.kind == "while" and (trips := trip_count(op, module)) is not None:
            runs *= trips
        for called in CALLED.findall(op.attributes):
            yield from walk(module, called, runs, inside or op.kind not in CONTROL)
        for branches in BRANCHES.findall(op.attributes):
            for number, branch in enumerate(re.findall(r"[^\s,%]+", branches)):
                yield from walk(module, branch, runs, inside or number > 0)


def trip_count(loop: Instruction, module: dict[str, Computation]) -> int | None:
    """The trip count of a loop: as annotated, or the only constant of its condition (a scan); else None."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = module.get(re.search(r"condition=%([^\s,]+)", loop.attributes)[1], {})
    bounds = [op.arguments for op in condition.values() if op.kind == "constant" and op.arguments.isdigit()]
    return int(bounds[0]) if len(bounds) == 1 else None


def hlo_operations(module: dict[str, Computation]) -> tuple[list[HloOperation], list[str]]:
    """(operations that run, loops with unknown trip count, which count once).

    A fusion is one operation. A conditional counts as its first branch.
    """
    visits = [visit for visit in walk(module) if not visit.inside]
    unknown = [v.op.name for v in visits if v.op.kind == "while" and trip_count(v.op, module) is None]
    return [_operation(v.op, v.here, module, v.times) for v in visits if _has_cost(v.op)], unknown


def _has_cost(op: Instruction) -> bool:
    """Whether an instruction counts: control flow does inside, an asynchronous operation where it ends."""
    free = op.kind in (*CONTROL, *FREE) or op.kind.endswith("-start")
    return not free and "AllocateBuffer" not in op.attributes


def _operation(op: Instruction, here: Computation, module, times: int) -> HloOperation:
    def number(pattern: str) -> int:
        found = re.search(pattern, op.attributes)
        return int(found[1]) if found else 0

    return HloOperation(
        name=op.name,
        name_of_kind=op.kind,
        times=times,
        estimated_cycles=number(r'estimated_cycles":"(\d+)"') * times,
        hbm_bytes=_bytes_moved(op, here, module) * times,
        kernel='custom_call_target="tpu_custom_call"' in op.attributes,
        body=(re.search(r'"body":"([^"]*)"', op.attributes) or ["", ""])[1],
        vmem_bytes=number(r'used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'),
    )


def shape_bytes(shape: str, on_chip: bool = False) -> int:
    """Bytes of a shape. Arrays that the compiler keeps on chip (S(n) in the layout) count only with `on_chip`."""
    total = 0.0
    for kind, dims, layout in ARRAY.findall(shape):
        if kind in ELEMENT_BYTES and (on_chip or "S(" not in layout):
            size = ELEMENT_BYTES[kind]
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            total += size
    return int(total)


def _bytes_moved(op: Instruction, here: Computation, module) -> int:
    """HBM bytes of operands and results. Slices, gathers and in-place updates of a fusion count their part only."""

    def shape_of(name: str) -> str:
        return here[name].shape if name in here else ""

    if buffers := _exchanged(op, here, module):  # it reads and writes the rows that move, which fit each buffer
        return 2 * min(shape_bytes(shape, on_chip=True) for shape in buffers)
    if op.kind.endswith("-done"):
        start = here.get(op.operands[0]) if op.operands else None
        source = shape_of(start.operands[0]) if start and start.operands else ""
        return (shape_bytes(op.shape, on_chip=True) if shape_bytes(source) else 0) + shape_bytes(op.shape)
    called = re.search(r"calls=%([^\s,]+)", op.attributes)
    body = module.get(called[1]) if op.kind == "fusion" and called else None
    total = shape_bytes(op.shape)
    for number, operand in enumerate(op.operands):
        full = shape_bytes(shape_of(operand))
        if body and full:
            parameter = _parameter(body, number)
            read, written = _parameter_bytes(module, body, parameter, full) if parameter else (full, 0)
            total += read + written
        else:
            total += full
    return max(total, 0)


def _exchanged(op: Instruction, here: Computation, module) -> list[str]:
    """The shapes of the send and receive buffers of a ragged exchange; [] for other operations.

    The exchange may be split into start and done, which may call another core.
    """
    if op.kind.endswith("-done") and op.operands:
        op = here.get(op.operands[0], op)
    if op.kind == "call-start":
        here = module.get(re.search(r"to_apply=%([^\s,]+)", op.attributes)[1], {})
        op = next((inner for inner in here.values() if inner.kind == "ragged-all-to-all"), op)
    return [here[name].shape for name in op.operands[:2]] if op.kind.startswith("ragged-all-to-all") else []


def _parameter(body: Computation, number: int) -> str | None:
    names = (op.name for op in body.values() if op.kind == "parameter" and op.arguments == str(number))
    return next(names, None)


def _parameter_bytes(module, body: Computation, parameter: str | None, full: int) -> tuple[int, int]:
    """(bytes that a fusion reads of a parameter, correction to the bytes that it writes)."""
    read = correction = 0
    for op in body.values():
        if parameter not in op.operands:
            continue
        if op.kind in ("dynamic-slice", "gather") and op.operands[0] == parameter:
            read += shape_bytes(op.shape, on_chip=True)
        elif op.kind == "scatter" and op.operands[0] == parameter:  # reads and writes the rows that it changes
            new = op.operands[len(op.operands) // 2 + 1]
            update = shape_bytes(body[new].shape if new in body else "", on_chip=True)
            read, correction = read + update, correction + update - shape_bytes(op.shape, on_chip=True)
        elif op.kind == "dynamic-update-slice" and op.operands[0] == parameter:
            update = body[op.operands[1]].shape if op.operands[1] in body else ""
            correction += shape_bytes(update, on_chip=True) - shape_bytes(op.shape, on_chip=True)
        elif op.kind in ("bitcast", "fusion"):
            inner, places = body, [op.name]
            if op.kind == "fusion":
                called = re.search(r"calls=%([^\s,]+)", op.attributes)
                inner = module.get(called[1], {}) if called else {}
                places = [_parameter(inner, n) for n, operand in enumerate(op.operands) if operand == parameter]
            for place in places:
                more, shift = _parameter_bytes(module, inner, place, full)
                read, correction = read + more, correction + shift
        else:
            return full, 0
    return min(read, full), correction
