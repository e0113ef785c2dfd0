"""A step that a run was in the middle of when it ended, beside the checkpoint that it began with."""

import dataclasses
import math
from typing import Any

from etils import epath

from ling_jax.config_dicts import differences
from ling_jax.files import read_object
from ling_jax.messages import warn
from ling_jax.rl.config import RESUMABLE, RLConfig
from ling_jax.sums import DamagedFile, read_sealed, write_sealed

NAME = "partial.json"


def write_partial(workdir: epath.Path, step: int, config: RLConfig, learner: dict[str, Any]) -> None:
    """Stores what `Learner.to_json` gave within a step, over what was stored before."""
    began = {"config": dataclasses.asdict(config), "origins": _origins(workdir)}
    write_sealed({"step": step} | began | {"learner": learner}, workdir / NAME)


def read_partial(workdir: epath.Path, step: int, config: RLConfig) -> dict[str, Any] | None:
    """What was stored within this step, or None.

    Before its first checkpoint a run may get another config, or other weights to start from: then the rollouts of
    those before are left out, and a warning says so. Raises DamagedFile where the file is not as it was written.
    """
    path = workdir / NAME
    if not path.exists():
        return None
    try:
        record = read_sealed(path, "a step that a run was in the middle of", math.inf)
    except DamagedFile as error:
        raise DamagedFile(f"{error}; remove it to go on from checkpoint {step} without its rollouts") from error
    if record["step"] != step:
        return None
    changed = differences(record["config"], config, RESUMABLE)
    now = _origins(workdir)
    changed += [
        f"{name} was at step {then}, and is at {now[name]} now"
        for name, then in record["origins"].items()
        if name in now and now[name] != then
    ]
    if changed:
        warn(f"the rollouts of {path} are left out, since the run is another: {'; '.join(changed)}")
        return None
    return record["learner"]


def remove_partial(workdir: epath.Path) -> None:
    """A later checkpoint has all of it."""
    (workdir / NAME).unlink(missing_ok=True)


def _origins(workdir: epath.Path) -> dict[str, int | None]:
    """The checkpoints that the run starts from."""
    return read_object(workdir / "origins.json")
