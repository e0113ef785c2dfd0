"""The panel of a run: one line for each thing to keep an eye on."""

import collections
from collections.abc import Sequence
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.demo_figures import BAND
from ling_jax.rl.watched import Line, Watched, shares, wall_seconds

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 40  # steps of a curve
METRICS = {  # name on the panel -> (metric, format)
    "reward": ("reward", "{:.3f}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "tokens an answer": ("tokens_per_answer", "{:.1f}"),
    "masked": ("masked_fraction", "{:.2%}"),
    "mismatch, mean": ("mismatch_same_version/mean", "{:.2g} nats"),
    "mismatch, largest": ("mismatch_same_version/max", "{:.2g} nats"),
    "entropy": ("entropy", "{:.3f} nats"),
    "staleness, mean": ("staleness/mean", "{:.2f} versions"),
    "oldest token": ("staleness/max", "{} versions"),
    "slots in use": ("engine/live", "{:.0%} while a rollout waits for one"),
}


def panel(run: Watched) -> Panel:
    """What to print."""
    title = f"{run.name}: step {len(run.metrics)} of {run.steps}"
    table = Table.grid(padding=(0, 2))
    for name, curve, value in rows(run):
        table.add_row(Text(name, style="bold"), Text(curve, style="cyan"), Text(value))
    return Panel(table, title=title, title_align="left")


def rows(run: Watched) -> list[tuple[str, str, str]]:
    """(name, curve of the last steps, the value of the last one)."""
    if not run.metrics:
        return [("waits", "", "for the first step"), *_errors(run.errors)]
    last, seconds = run.metrics[-1], wall_seconds(run.metrics)
    found = [
        (name, sparkline([line[key] for line in run.metrics if key in line]), form.format(last[key]))
        for name, (key, form) in METRICS.items()
        if key in last
    ]
    bands = [f"{name.removeprefix(BAND)} {last[name]:.1%}" for name in last if name.startswith(BAND)]
    rate = [line["tokens_per_second"] for line in run.metrics]
    time_of = ", ".join(f"{name} {share:.0%}" for name, share in shares(last, seconds[-1]).items())
    return [
        *found,
        *([("masked by probability", "", ", ".join(bands))] if bands else []),
        ("rollouts out", "", f"{last['outstanding']} of at most {last['outstanding_bound']}"),
        ("tokens a second", sparkline(rate), f"{rate[-1]:.0f}"),
        ("time of a step", sparkline(seconds), f"{seconds[-1]:.1f} s: {time_of}"),
        *_errors(run.errors),
    ]


def sparkline(values: Sequence[float]) -> str:
    """The last values as bars, from the smallest to the largest of them."""
    shown = values[-SHOWN:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * (value - low) / span))] for value in shown)


def _errors(errors: Sequence[Line]) -> list[tuple[str, str, str]]:
    """How many failures each part had, and the last one."""
    by_part: dict[str, list[Line]] = collections.defaultdict(list)
    for line in errors:
        by_part[line["part"]].append(line)
    return [(f"{part} failed", "", _failures(lines)) for part, lines in by_part.items()]


def _failures(lines: Sequence[dict[str, Any]]) -> str:
    return f"{len(lines)} times, the last time: {lines[-1]['error'][:200]}"
