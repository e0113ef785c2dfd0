"""The page of a run: its curves, what its mask drops, its slots, and what failed."""

import html

from launch.demo_figures import figure, kpop
from launch.demo_page import STYLE
from launch.svg import Series, chart
from launch.watch_panel import rows
from ling_jax.rl.watched import Watched, shares, wall_seconds

CURVES = {  # title -> metrics by name
    "Reward": {"reward": "reward", "accuracy": "outcome"},
    "Tokens of an answer": {"tokens_per_answer": "mean"},
    "Recorded against recomputed log-probs, nats": {
        "mismatch_same_version/max": "largest",
        "mismatch_same_version/mean": "mean",
    },
    "Entropy, nats": {"entropy": "mean"},
}


def run_page(run: Watched) -> str:
    """One HTML file, without scripts."""
    drawn = [
        chart(title, series, x_label="step")
        for title, names in CURVES.items()
        if (series := [one for key, name in names.items() if (one := _series(run, key, name)).points])
    ]
    if run.metrics:
        drawn.append(chart("Shares of a step's time", _shares(run), x_label="step", percent=True))
    table = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(value)}" for name, _, value in rows(run))
    cards = "".join(map(figure, drawn))
    title = html.escape(f"{run.name}: {len(run.metrics)} of {run.steps} steps")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{title}</title><style>{STYLE.read_text()}</style></head>'
        f'<body><main><h1>{title}</h1><div class="card report"><table>{table}</table></div>'
        f"<div class=grid>{cards}</div>{kpop(run.metrics, run.timeline)}</main></body></html>"
    )


def _series(run: Watched, key: str, name: str) -> Series:
    return Series(name, [(line["step"] + 1, line[key]) for line in run.metrics if key in line])


def _shares(run: Watched) -> list[Series]:
    found = [shares(line, seconds) for line, seconds in zip(run.metrics, wall_seconds(run.metrics), strict=True)]
    return [
        Series(name, [(line["step"] + 1, one[name]) for line, one in zip(run.metrics, found, strict=True)])
        for name in found[0]
    ]
