"""Metrics of a run: the files that hold them."""

import json
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from ling_jax.data.json_lines import read_objects
from ling_jax.files import parse_object, replacing
from ling_jax.partials import write_errors
from ling_jax.paths import append
from ling_jax.run.tensorboard import EventFile
from ling_jax.run.wandb_run import WandbRun

REPORTED = {"tokens_per_second", "eval_loss"}  # lines with one of these go to TensorBoard
RENAMED_METRICS = {"held_out_loss": "eval_loss", "bad": "nonfinite"}  # name in older workdirs -> name of the metric


class MetricsWriter:
    """Writes metrics.jsonl, a line for each step, and TensorBoard events into a folder; only host 0 writes.

    `wandb` gets what TensorBoard gets.
    """

    def __init__(self, folder: epath.PathLike, *, first_step: int, wandb: WandbRun | None = None):
        self._tensorboard, self._wandb = None, wandb
        if jax.process_index():
            return
        self._path = epath.Path(folder) / "metrics.jsonl"
        drop_lines_from(self._path, first_step)
        self._tensorboard = EventFile(epath.Path(folder) / "tensorboard", first_step=first_step)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Appends the lines; those with a speed or an evaluation go to TensorBoard too. Raises OSError."""
        if self._tensorboard is None:
            return
        texts = (json.dumps(_json_values(line), allow_nan=False) + "\n" for line in lines)
        with write_errors(self._path):
            append(self._path, "".join(texts).encode())
        for line in lines:
            if not REPORTED.isdisjoint(line):
                self._tensorboard.add(line)
                if self._wandb is not None:
                    self._wandb.add(line)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, one for each step, with the names that this version writes.

    Raises OSError, and ValueError on a line that is no JSON object.
    """
    lines = (line for _, line in read_objects(path))
    return [{RENAMED_METRICS.get(name, name): value for name, value in line.items()} for line in lines]


def drop_lines_from(path: epath.Path, step: int) -> None:
    """Removes the lines of `step` and later ones, which a killed run wrote after its last checkpoint and runs again.

    Raises ValueError on a line without a step, unless it is the last one and cut off.
    """
    if not path.exists():
        return
    lines = []
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            if parse_object(line, str(path))["step"] < step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            if number <= content.count(b"\n"):  # only the last line may have been cut off
                raise ValueError(f"{path}, line {number} has no step; remove it") from None
    with replacing(path) as file:
        file.writelines(line + b"\n" for line in lines)


def to_line(step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a step as JSON values; NaN and infinity, which JSON lacks, are text."""
    return _json_values({"step": step} | {name: np.asarray(value).item() for name, value in metrics.items()})


def _json_values(line: dict[str, Any]) -> dict[str, Any]:
    return {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
