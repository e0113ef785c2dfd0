"""The files of a run that get lines at every step, and the lines that are printed."""

import datetime
import json
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from etils import epath

from ling_jax.envs.coding import integrity
from ling_jax.files import write_json, write_json_lines
from ling_jax.partials import write_errors
from ling_jax.paths import append
from ling_jax.rl.config import RLConfig
from ling_jax.rl.learner import Event, Step
from ling_jax.run.memory import MemoryUse
from ling_jax.run.metrics import MetricsWriter, drop_lines_from, to_line
from ling_jax.run.wandb_run import open_wandb
from ling_jax.train.optimizer import learning_rate

LOGS = ("metrics", "samples", "events", "timeline", "episodes")
TRAJECTORIES = "trajectories"  # the folder of the same samples as ATIF, a file a step
FINGERPRINTS = "fingerprints.jsonl"  # on which machine, and with which programs, tokens were drawn
INTEGRITY = "integrity.json"  # what all episodes that were learnt from say about the rewards
GENERATING_SECONDS = 10  # between two lines about a generation that takes longer


def write_integrity(workdir: epath.Path) -> str:
    """Sums up all episodes of a run in `INTEGRITY`, for programs; the text for people."""
    with (workdir / "episodes.jsonl").open() as file:
        found = integrity.report(map(json.loads, file))
    write_json(found, workdir / INTEGRITY)
    return integrity.report_text(found)


def note_fingerprint(workdir: epath.Path, step: int, fingerprint: str) -> None:
    """Adds to `FINGERPRINTS` what draws from this step on, where it is another than before."""
    if step == 0:
        (workdir / FINGERPRINTS).unlink(missing_ok=True)
    known = read_fingerprints(workdir)
    if not known or known[-1]["fingerprint"] != fingerprint:
        line = json.dumps({"step": step, "fingerprint": fingerprint}) + "\n"
        append(workdir / FINGERPRINTS, line.encode())


def read_fingerprints(workdir: epath.Path) -> list[dict[str, Any]]:
    """What drew a run, in order: {"step": from which on, "fingerprint"}; [] of a run without the file."""
    path = workdir / FINGERPRINTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class RunLog:
    """The files that get lines at every step, and the line that is printed."""

    def __init__(self, config: RLConfig, workdir: epath.Path, start: int):
        self._config, self._workdir, self._start, self._begun = config, workdir, start, time.perf_counter()
        self._told, self._memory = self._begun, MemoryUse()
        wandb = open_wandb(config.train.wandb, workdir, config)
        self._metrics = MetricsWriter(workdir, first_step=start, wandb=wandb)
        for name in LOGS[1:]:
            drop_lines_from(workdir / f"{name}.jsonl", start)
        for later in (path for path in (workdir / TRAJECTORIES).glob("*.jsonl") if path.stem >= f"{start:06}"):
            later.unlink()
        updates = config.max_updates
        self._rates = np.asarray(jax.jit(learning_rate(config.optimizer, updates))(np.arange(updates)))

    def add(self, step: int, result: Step, *, updates: int) -> dict[str, Any]:
        """`updates` is how many optimisation steps have changed the weights since the run began."""
        metrics = result.metrics
        seconds = metrics["generate_seconds"] + metrics["train_seconds"]
        line = to_line(step, metrics) | {
            "learning_rate": float(self._rates[updates - metrics["updates"]]),  # of the first one
            "tokens_per_second": metrics["generated_tokens"] / seconds,
            "time": time.time(),
        }
        line |= self._memory.measure()
        self._metrics.write([line])
        self._append("samples", step, result.samples)
        self._append("events", step, result.events)
        self._append("episodes", step, result.episodes)
        self._append("timeline", step, [span._asdict() for span in result.spans])
        if result.trajectories:
            write_json_lines(result.trajectories, self._workdir / TRAJECTORIES / f"{step:06}.jsonl")
        self._print(step, line)
        self._told = time.perf_counter()
        return line

    def close(self) -> None:
        self._metrics.close()

    def generating(self, step: int, tokens: int, waiting: int) -> None:
        """A line now and then: how far the budget is used up, and how many rollouts are under way."""
        now, rollout = time.perf_counter(), self._config.rollout
        if now - self._told >= GENERATING_SECONDS:
            self._told = now
            budget = f"/{rollout.token_budget}" if rollout.token_budget else ""
            print(f"step={step + 1} generating: tokens={tokens}{budget} rollouts={waiting}", flush=True)

    def _append(self, name: str, step: int, records: Iterable[Event]) -> None:
        path = self._workdir / f"{name}.jsonl"
        texts = (json.dumps({"step": step} | record) + "\n" for record in records)
        with write_errors(path):
            append(path, "".join(texts).encode())

    def _print(self, step: int, line: dict[str, Any]) -> None:
        steps = self._config.train.steps
        shown = {
            "loss": "loss", "reward": "reward", "accuracy": "accuracy", "tokens/answer": "tokens_per_answer",
            "groups": "groups", "learnt": "tokens_learnt", "staleness": "staleness/max", "masked": "masked_fraction",
            "mismatch": "mismatch_same_version/max", "fresh_tokens": "mismatch_same_version/tokens",
            "generate_s": "generate_seconds", "train_s": "train_seconds",
        }  # fmt: skip
        values = " ".join(f"{name}={_short(line[key])}" for name, key in shown.items() if key in line)
        per_step = (time.perf_counter() - self._begun) / (step + 1 - self._start)
        eta = datetime.timedelta(seconds=round((steps - step - 1) * per_step))
        skipped = "not finite: nothing changed; " if line["nonfinite"] else ""
        print(f"step={step + 1}/{steps} {skipped}{values} {eta=!s}", flush=True)


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
