"""Groups of finished episodes to the rows of one optimisation step."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rl.buffer import Group
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.step import Batch


def make_batch(
    groups: Sequence[Group], advantages: np.ndarray, reader: Reader, *, rows: int, version: int, scale: float
) -> Batch:
    """`rows` rows of the reader's context, as numpy arrays: groups one after the other, then empty rows.

    `advantages` [groups, group_size]; episodes without a reward are empty rows too.
    """
    shape = (rows, reader.context)
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        live=np.zeros(shape, np.int32),
        mask=np.zeros(shape, bool),
        behaviour_logps=np.zeros(shape, np.float32),
        ages=np.zeros(shape, np.int32),
        sentence_ids=np.full(shape, -1, np.int32),
        advantages=np.zeros(rows, np.float32),
        scale=np.float32(scale),
    )
    batch.advantages[: advantages.size] = advantages.reshape(-1)
    episodes = [episode if valid else None for g in groups for episode, valid in zip(g.episodes, g.valid, strict=True)]
    for row, episode in enumerate(episodes):
        if episode is not None:
            _fill(batch, row, episode, reader, version)
    return batch


def _fill(batch: Batch, row: int, episode: Episode, reader: Reader, version: int) -> None:
    trajectory = episode.trajectory
    first, size = len(trajectory.prompt_ids), len(episode.context)
    batch.tokens[row, :size], batch.live[row, :size] = episode.context, 1
    completion = slice(first, size)
    batch.mask[row, completion] = trajectory.loss_mask
    batch.behaviour_logps[row, completion] = trajectory.behaviour_logps
    batch.ages[row, completion] = version - trajectory.versions
    batch.sentence_ids[row, completion] = reader.sentence_ids(trajectory)


def loss_scale(name: str, options, groups: Sequence[Group], rows: int) -> float:
    """What makes a mean over all rows (or their groups) one over the rows (or groups) that count.

    Objectives count empty rows; the mean over tokens knows none.
    """
    if options.get("aggregate") == "token_mean":
        return 1.0
    real = sum(sum(group.valid) for group in groups) if name != "lpo" else sum(len(g.episodes) for g in groups)
    return rows / max(real, 1)
