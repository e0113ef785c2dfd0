"""The prompts of a run: which task each one asks, and the episodes that answer it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ling_jax.envs import Task
from ling_jax.envs.sources import task_of
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode, EpisodeRequest, Refused
from ling_jax.rl.reader import Reader

MAX_REFUSED = 100  # tasks in a row of which no prompt can come, before a run gives up; our choice


class Draw(NamedTuple):
    """A task that was drawn for a prompt, and what came of it: episodes, or why there are none."""

    task: int
    episodes: list[Episode]
    refused: str = ""


def draws_of(config: RLConfig, reader: Reader, prompt: int, weights: np.ndarray | None) -> Iterator[Draw]:
    """The tasks drawn for a prompt, up to the first that can be asked, or 100 that cannot.

    They depend on the seed, the prompt's number and the probabilities of the tasks, `weights` (None: all equal).
    """
    rng, size = np.random.default_rng((config.train.seed, prompt)), sum(source.size for source in config.tasks)
    for _ in range(MAX_REFUSED):
        drawn = begin_prompt(config, reader, prompt, int(rng.choice(size, p=weights)))
        yield drawn
        if not drawn.refused:
            return


def begin_prompt(config: RLConfig, reader: Reader, prompt: int, number: int) -> Draw:
    """The episodes of all answers to a prompt that asks task `number`, or why it cannot be asked."""
    size = config.rollout.group_size
    try:
        task = task_of(config.tasks, number)
        requests = [request_of(config, i, number, task) for i in range(prompt * size, (prompt + 1) * size)]
        begun = reader.begin(requests)
    except ValueError as error:  # the environment makes no task of this seed
        return Draw(number, [], str(error))
    refused = next((found.reason for found in begun if isinstance(found, Refused)), "")
    return Draw(number, [] if refused else begun, refused)


def request_of(config: RLConfig, i: int, number: int, task: Task) -> EpisodeRequest:
    """Rollout i, which answers task `number`; its seed depends on the run's and on i alone."""
    efforts, place = config.efforts, i % config.rollout.group_size
    return EpisodeRequest(
        id=i,
        number=number,
        task=task,
        seed=int(np.random.SeedSequence((config.train.seed, i)).generate_state(1)[0]),
        effort=efforts[place % len(efforts)] if efforts else None,
    )
