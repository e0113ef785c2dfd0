"""A step that a run was in the middle of when it ended, beside the checkpoint that it began with."""

from typing import Any

from etils import epath

from ling_jax.sums import read_sealed, write_sealed

NAME = "partial.json"


def write_partial(workdir: epath.Path, step: int, learner: dict[str, Any]) -> None:
    """Stores what `Learner.to_json` gave within a step, over what was stored before."""
    write_sealed({"step": step, "learner": learner}, workdir / NAME)


def read_partial(workdir: epath.Path, step: int) -> dict[str, Any] | None:
    """What was stored within this step, or None. Raises DamagedFile where it is not as it was written."""
    path = workdir / NAME
    if not path.exists():
        return None
    record = read_sealed(path, "a step that a run was in the middle of")
    return record["learner"] if record["step"] == step else None


def remove_partial(workdir: epath.Path) -> None:
    """A later checkpoint has all of it."""
    (workdir / NAME).unlink(missing_ok=True)
