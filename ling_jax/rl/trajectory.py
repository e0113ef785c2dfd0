"""What one rollout leaves behind: its tokens, and under which weights and with which probability each was drawn."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ling_jax.config import nearest

# running: not ended yet; finished: the policy or its environment ended it; truncated: a limit did, or words that are no
# answer in the chat template's form; failed: the world broke (a sandbox, a server, a template that rewrites history),
# which says nothing about the policy.
STATUSES = ("running", "finished", "truncated", "failed")


class Segment(NamedTuple):
    """Completion tokens [start, stop) that came under one weight version."""

    start: int
    stop: int
    version: int


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """A prompt and its completion so far; the four arrays are [T], one entry for each completion token.

    The log-probs are those of the policy that drew the token, as the engine recorded them, and stay what they were
    when a later version goes on (Ling 2.6 report §4.2.1). Tool output is part of the completion with loss mask 0,
    log-prob 0 and the version that was current when it came.

    Raises ValueError on arrays that do not fit together, versions that fall, log-probs that are not finite on loss
    tokens, and an unknown status.
    """

    task_id: str
    prompt_ids: Sequence[int]
    completion_ids: np.ndarray = dataclasses.field(default_factory=functools.partial(np.zeros, 0, np.int32))
    behaviour_logps: np.ndarray = dataclasses.field(default_factory=functools.partial(np.zeros, 0, np.float32))
    versions: np.ndarray = dataclasses.field(default_factory=functools.partial(np.zeros, 0, np.int32))
    loss_mask: np.ndarray = dataclasses.field(default_factory=functools.partial(np.zeros, 0, np.bool_))
    status: str = "running"

    def __post_init__(self):
        where = f"trajectory of task {self.task_id!r}"
        for name in ("behaviour_logps", "versions", "loss_mask"):
            if getattr(self, name).shape != self.completion_ids.shape:
                found = f"{getattr(self, name).shape}, completion_ids {self.completion_ids.shape}"
                raise ValueError(f"{where}: {name} has shape {found}; expected one entry for each token")
        if np.any(np.diff(self.versions, prepend=0) < 0):
            raise ValueError(f"{where}: versions are {self.versions.tolist()}; expected numbers from 0 that never fall")
        bad = self.loss_mask & ~np.isfinite(self.behaviour_logps)
        if bad.any():
            t = int(bad.argmax())
            raise ValueError(
                f"{where}: behaviour_logps[{t}] is {self.behaviour_logps[t]}; a drawn token has a finite one"
            )
        if self.status not in STATUSES:
            raise ValueError(
                f"{where}: status is {self.status!r}{nearest(str(self.status), STATUSES)}; "
                f"expected one of {', '.join(STATUSES)}"
            )


def segments(trajectory: Trajectory) -> list[Segment]:
    """The maximal runs of equal weight versions, in order; none where nothing was generated."""
    starts = np.flatnonzero(np.diff(trajectory.versions, prepend=-1)).tolist()
    stops = [*starts, len(trajectory.versions)][1:]
    return [Segment(start, stop, int(trajectory.versions[start])) for start, stop in zip(starts, stops, strict=True)]


def append_segment(trajectory: Trajectory, token_ids, behaviour_logps, version: int) -> Trajectory:
    """With tokens [n] that weights `version` drew, and their log-probs [n]; segments of one version become one.

    Raises ValueError as `Trajectory` does, and where the trajectory has ended.
    """
    return _append(trajectory, token_ids, behaviour_logps, version, loss=True)


def append_observation(trajectory: Trajectory, token_ids, version: int) -> Trajectory:
    """With tokens [n] that no policy drew (tool output, the next turn's opening); they carry no loss."""
    return _append(trajectory, token_ids, np.zeros(len(token_ids)), version, loss=False)


def _append(trajectory: Trajectory, token_ids, behaviour_logps, version: int, *, loss: bool) -> Trajectory:
    if trajectory.status != "running":
        raise ValueError(f"trajectory of task {trajectory.task_id!r} is {trajectory.status}; only a running one grows")
    count = len(token_ids)
    return dataclasses.replace(
        trajectory,
        completion_ids=np.append(trajectory.completion_ids, np.asarray(token_ids, np.int32)),
        behaviour_logps=np.append(trajectory.behaviour_logps, np.asarray(behaviour_logps, np.float32)),
        versions=np.append(trajectory.versions, np.full(count, version, np.int32)),
        loss_mask=np.append(trajectory.loss_mask, np.full(count, loss)),
    )
