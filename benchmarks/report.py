"""What all benchmarks share: timing, claims, the table and the JSON file."""

import dataclasses
import importlib.util
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from launch.flags import check_output


@dataclasses.dataclass(frozen=True)
class Claim:
    """An engineering promise: `value` must be at least (sense ">=") or at most ("<=") the bar."""

    name: str
    value: float
    unit: str
    sense: str
    bar: float
    workload: str

    @property
    def holds(self) -> bool:
        """False for NaN: what was not measured does not hold."""
        return self.value >= self.bar if self.sense == ">=" else self.value <= self.bar


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measurement without a bar."""

    name: str
    value: float
    unit: str
    workload: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a study saw; `verdict` is "reproduced", "not seen" or "not testable here", by a rule that is code."""

    name: str
    report_ref: str
    value: float
    ci95: tuple[float, float] | None
    n: int
    seeds: list[int]
    rule: str
    verdict: str
    why: str = ""  # the likely reason where it is not seen


def best_seconds(function: Callable, *arguments, times: int = 5) -> float:
    """The best of several calls after one that warms up."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def best_seconds_donated(step: Callable, state, times: int = 5) -> float:
    """The same of `state = step(state)`, where each call uses up what it is given."""
    state, seconds = jax.block_until_ready(step(state)), []
    for _ in range(times):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def check_json_out(json_out: str | None) -> None:
    """Ends the program where `finish` could not write there: it is better known before the work."""
    try:
        check_output("json_out", json_out or "")
    except ValueError as error:
        raise SystemExit(str(error)) from None


def check_tpu_compiler() -> None:
    """Ends the program where TPU programs cannot be compiled."""
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("the TPU compiler is missing: pip install -e '.[tpu]'")


def machine() -> str:
    return f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"


def _fields(row: Claim | Figure | Finding) -> dict[str, Any]:
    """For JSON, which has no infinity: a value that is not finite is null."""
    fields = dataclasses.asdict(row)
    return fields | ({} if math.isfinite(row.value) else {"value": None})


def finish(
    claims: list[Claim],
    command: str,
    json_out: str | None,
    findings: Sequence[Finding] = (),
    figures: Sequence[Figure] = (),
) -> int:
    """Prints a table and writes the file; returns the exit code: 0 if all claims hold, whatever was found.

    A claim whose value is NaN was not measured: the workload says why.
    """
    width = max((len(row.name) for row in (*claims, *findings, *figures)), default=0)
    for claim in claims:
        bar = f"{claim.sense} {claim.bar:g}"
        verdict = "not measured" if math.isnan(claim.value) else "holds" if claim.holds else "FAILS"
        print(f"{claim.name:<{width}} {claim.value:>8.3g} {claim.unit:<11} {bar:<8} {verdict}")
    for figure in figures:
        print(f"{figure.name:<{width}} {figure.value:>8.3g} {figure.unit:<11} {figure.workload}")
    for finding in findings:
        why = f". Likely reason: {finding.why}" if finding.why else ""
        print(f"{finding.name:<{width}} {finding.value:>8.3g} {finding.verdict}: {finding.rule}{why}")
    if json_out:
        rows = [_fields(claim) | {"holds": claim.holds, "command": command} for claim in claims]
        content = {"machine": machine(), "claims": rows, "findings": [_fields(finding) for finding in findings]}
        content |= {"figures": [_fields(figure) for figure in figures]} if figures else {}
        Path(json_out).write_text(json.dumps(content, indent=1, allow_nan=False))
    return 0 if all(claim.holds for claim in claims) else 1
