"""Weights & Biases beside TensorBoard: the same scalars, where `train.wandb` names a project."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from etils import epath

from ling_jax.paths import is_remote
from ling_jax.run.tensorboard import scalars


def check_wandb(project: str) -> None:
    """Raises ValueError where a project is named and wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"train.wandb is {project!r}, and wandb is not installed: pip install wandb, or leave train.wandb empty"
        )


class WandbRun:
    """A W&B run of this start of the program, in the group of its workdir.

    Nothing is sent: files go to WORKDIR/wandb (of a workdir in a store to ./wandb), and `wandb sync` sends them later.
    WANDB_MODE=online in the environment sends them at once.
    """

    def __init__(self, project: str, workdir: epath.Path, config: Any):
        """Raises ValueError where W&B refuses: the name of the project, or the login of a run that is online."""
        import wandb

        folder = None if is_remote(workdir) else str(workdir)
        mode = os.environ.get("WANDB_MODE", "offline")
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(
                project=project,
                group=workdir.name,
                dir=folder,
                mode=mode,
                config=dataclasses.asdict(config),
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise ValueError(f"train.wandb is {project!r}: {error}; WANDB_MODE=offline needs no login") from None
        if mode == "offline":
            print(f"W&B: offline; `wandb sync {self._run.settings.sync_dir}` sends this run", flush=True)

    def add(self, line: dict[str, Any]) -> None:
        """The finite numbers of a line of metrics.jsonl."""
        self._run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


def open_wandb(project: str, workdir: epath.Path, config: Any) -> WandbRun | None:
    """None where no project is named, and on all hosts but the first."""
    return WandbRun(project, workdir, config) if project and not jax.process_index() else None
