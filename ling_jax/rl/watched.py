"""What the files of a run say, read while it goes on."""

import itertools
import json
from typing import Any, NamedTuple

from etils import epath

from ling_jax.rl.errors import ERRORS

Line = dict[str, Any]


class Watched(NamedTuple):
    """A run, as far as its files tell."""

    name: str
    steps: int  # that it has to do
    metrics: list[Line]
    errors: list[Line]
    timeline: list[Line]


def read_run(workdir: epath.PathLike) -> Watched:
    """Raises ValueError where the workdir has no run of reinforcement learning."""
    folder = epath.Path(workdir)
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if not config.exists() or "rollout" not in (found := json.loads(config.read_text())):
        raise ValueError(f"{folder} holds no run of reinforcement learning; name the workdir of one")
    return Watched(
        folder.name,
        found["train"]["steps"],
        _lines(metrics),
        _lines(folder / ERRORS),
        _lines(folder / "timeline.jsonl"),
    )


def wall_seconds(metrics: list[Line]) -> list[float]:
    """From the end of a step to the end of the next one; of the first one what it says of itself."""
    first = [line["generate_seconds"] + line["train_seconds"] for line in metrics[:1]]
    return first + [after["time"] - before["time"] for before, after in itertools.pairwise(metrics)]


def shares(line: Line, seconds: float) -> dict[str, float]:
    """Of the time of a step: in which the engines drew, waited for environments, and took new weights, and in which the
    weights learnt. These may go on beside each other."""
    names = {
        "drawing": "engine/generate_seconds",
        "waiting": "engine/wait_seconds",
        "new weights": "engine/load_seconds",
        "learning": "optimise_seconds",
    }
    return {name: line.get(key, 0.0) / max(seconds, 1e-9) for name, key in names.items()}


def _lines(path: epath.Path) -> list[Line]:
    """Whole lines alone: the last one may be being written."""
    if not path.exists():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]
