"""Groups of finished episodes as the rows of a batch."""

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.rl.buffer import Group
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader


@flax.struct.dataclass
class Batch:
    """Answers in rows, prompt and completion from the left; rows of a group are neighbours."""

    tokens: jax.Array  # [B, T] int32
    live: jax.Array  # [B, T] int32: 1, 0 behind the end
    mask: jax.Array  # [B, T] bool: what the policy drew
    behaviour_logps: jax.Array  # [B, T] float32, as they were recorded
    ages: jax.Array  # [B, T] int32: weight versions since the token was drawn
    sentence_ids: jax.Array  # [B, T] int32, local to the row
    advantages: jax.Array  # [B] float32
    valid: jax.Array  # [B] bool: answers with a reward; the other rows have no part in the loss, nor in its mean
    old_logps: jax.Array | None = None  # [B, T] float32, before the first step on the batch; None: those of the step
    reference_logps: jax.Array | None = None  # [B, T] float32; None where no penalty needs them
    teacher: jax.Array | None = None  # [B] int32: the teacher of the row's task, -1 of empty rows; None without any
    teacher_logps: jax.Array | None = None  # [B, T] float32, of that teacher


def abstract_batch(
    rows: int, length: int, *, old: bool = False, reference: bool = False, teacher: bool = False
) -> Batch:
    """A batch as ShapeDtypeStructs on the first device, with the log-probs of others that are asked for."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    logps = array(jnp.float32, rows, length)
    return Batch(
        tokens=array(jnp.int32, rows, length),
        live=array(jnp.int32, rows, length),
        mask=array(bool, rows, length),
        behaviour_logps=logps,
        ages=array(jnp.int32, rows, length),
        sentence_ids=array(jnp.int32, rows, length),
        advantages=array(jnp.float32, rows),
        valid=array(bool, rows),
        old_logps=logps if old else None,
        reference_logps=logps if reference else None,
        teacher_logps=logps if teacher else None,
    )


def make_batch(
    groups: Sequence[Group],
    advantages: np.ndarray,
    reader: Reader,
    *,
    rows: int,
    version: int,
    teacher_of: Callable[[int], int] | None = None,
) -> Batch:
    """`rows` rows of the reader's context, as numpy arrays: groups one after the other, then empty rows.

    `advantages` [groups, group_size]; episodes without a reward are empty rows too. `teacher_of(number of a task)`
    is the number of its teacher, in a run that has some.
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
        valid=np.zeros(rows, bool),
        teacher=None if teacher_of is None else np.full(rows, -1, np.int32),
    )
    batch.advantages[: advantages.size] = advantages.reshape(-1)
    episodes = [episode if valid else None for g in groups for episode, valid in zip(g.episodes, g.valid, strict=True)]
    for row, episode in enumerate(episodes):
        if episode is not None:
            _fill(batch, row, episode, reader, version)
            if teacher_of is not None:
                batch.teacher[row] = teacher_of(episode.number)
    return batch


def take_groups(batch: Batch, groups: np.ndarray, places: int, group_size: int) -> Batch:
    """The rows of these groups, then empty rows, `places` groups in all; numpy arrays.

    The last group of a batch is empty where fewer than `places` are taken of its own.
    """
    last = len(batch.valid) // group_size - 1
    chosen = np.concatenate([groups, np.full(places - len(groups), last, int)]).astype(int)
    rows = (group_size * chosen[:, None] + np.arange(group_size)).reshape(-1)
    return jax.tree.map(lambda x: x[rows], batch)


def _fill(batch: Batch, row: int, episode: Episode, reader: Reader, version: int) -> None:
    trajectory = episode.trajectory
    first, size = len(trajectory.prompt_ids), len(episode.context)
    batch.tokens[row, :size], batch.live[row, :size], batch.valid[row] = episode.context, 1, True
    completion = slice(first, size)
    batch.mask[row, completion] = trajectory.loss_mask
    batch.behaviour_logps[row, completion] = trajectory.behaviour_logps
    batch.ages[row, completion] = version - trajectory.versions
    batch.sentence_ids[row, completion] = reader.sentence_ids(trajectory)
