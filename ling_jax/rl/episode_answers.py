"""Groups of finished episodes as answers to learn from."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ling_jax.rl.answers import Answer
from ling_jax.rl.buffer import Group
from ling_jax.rl.reader import Reader
from ling_jax.rl.trajectory import Trajectory


def answers_of(
    groups: Sequence[Group],
    advantages: np.ndarray,
    reader: Reader,
    *,
    version: int,
    teacher_of: Callable[[int], int] | None = None,
) -> list[Answer]:
    """The answers of the groups that have a reward, group by group; `version` is that of the weights that learn.

    Samples of one episode share its advantage.
    `advantages` [groups, group_size]; `teacher_of(number of a task)` is the number of its teacher, in a run with some.
    """
    found = []
    for number, group in enumerate(groups):
        for place, (episode, valid) in enumerate(zip(group.episodes, group.valid, strict=True)):
            if not valid:
                continue
            advantage = float(advantages[number, place])
            teacher = -1 if teacher_of is None else teacher_of(episode.number)
            for sample in episode.samples:
                answer = _answer(sample, number, advantage, reader, version)
                found.append(dataclasses.replace(answer, teacher=teacher, episode=episode.id))
    return found


def _answer(trajectory: Trajectory, group: int, advantage: float, reader: Reader, version: int) -> Answer:
    size = len(trajectory.context)
    first = len(trajectory.prompt_ids)

    def behind_prompt(values: np.ndarray, dtype, fill=0) -> np.ndarray:
        array = np.full(size, fill, dtype)
        array[first:] = values
        return array

    return Answer(
        group=group,
        advantage=advantage,
        tokens=np.array(trajectory.context, np.int32),
        mask=behind_prompt(trajectory.loss_mask, bool),
        behaviour_logps=behind_prompt(trajectory.behaviour_logps, np.float32),
        ages=behind_prompt(version - trajectory.versions, np.int32),
        sentence_ids=behind_prompt(reader.sentence_ids(trajectory), np.int32, -1),
        experts=trajectory.experts,
    )
