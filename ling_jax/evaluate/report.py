"""The output of an evaluation: progress lines, a table, a folder of results."""

import datetime
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from ling_jax.files import new_folder, write_json_lines
from ling_jax.paths import as_path, is_new
from ling_jax.preflight import check_new

REPORT_SECONDS = 5


class Metric(NamedTuple):
    """One metric with its confidence interval."""

    name: str
    value: float | None  # None: no data
    interval: tuple[float, float] | None  # 95 %; None: no interval
    n: int
    unit: str  # unit of n


def with_progress(batches: Iterable[Sequence], what: str, total: int, *, doing: str = "evaluate") -> Iterator:
    """The items of the batches, with a progress line every few seconds and at the end: items done and time left.

    The first batch says nothing about the others: it waits for compilations.
    """
    start = reported = begun = time.monotonic()
    done = first = 0
    for batch in batches:
        yield from batch
        done, now = done + len(batch), time.monotonic()
        if not first:
            first, begun = done, now
        if now - reported >= REPORT_SECONDS or done == total:
            reported = now
            left = (now - begun) / (done - first) * (total - done) if done > first else 0.0
            eta = f" eta={datetime.timedelta(seconds=round(left))}" if done > first or done == total else ""
            print(f"{doing}: {what}={done}/{total} seconds={now - start:.1f}{eta}", flush=True)


def table(metrics: Iterable[Metric]) -> str:
    """The metrics as an aligned text table."""
    rows = [("metric", "value", "95 % interval", "n")]
    for metric in metrics:
        interval = "-" if metric.interval is None else "[{}, {}]".format(*map(_shown, metric.interval))
        rows.append((metric.name, _shown(metric.value), interval, f"{metric.n} {metric.unit}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.5g}"


def check_new_folder(path: epath.PathLike) -> None:
    """Raises FileExistsError or OSError if `write_results` would, before the evaluation starts."""
    folder = as_path(path)
    if not is_new(folder):
        raise FileExistsError(f"{folder} exists and is not empty; name a new folder")
    check_new(folder)


def write_results(
    path: epath.PathLike,
    samples: Iterable[dict[str, Any]],
    metrics: Iterable[Metric],
    about: dict,
    trajectories: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes samples.jsonl, summary.json ({**about, "metrics": [...]}) and, where there are trajectories, those as
    trajectories.jsonl into a new folder, whole or not at all."""
    with new_folder(path) as folder:
        with (folder / "samples.jsonl").open("wb") as file:
            file.writelines(_json(sample) + b"\n" for sample in samples)
        if trajectories:
            write_json_lines(trajectories, folder / "trajectories.jsonl")
        rows = [metric._asdict() | {"value": _number(metric.value)} for metric in metrics]
        (folder / "summary.json").write_bytes(_json(about | {"metrics": rows}, indent=1) + b"\n")


def _number(value: float | None):
    """The value, as text if it is infinite or NaN, which JSON cannot represent."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _json(value, **options) -> bytes:
    # A record's id may contain half a surrogate pair, which JSON and Python write as an escape.
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "backslashreplace")
