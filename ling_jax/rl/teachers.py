"""Teachers of on-policy distillation: models whose log-probs of a student's tokens it learns from."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from ling_jax.checkpoint.folder import ModelFolder, open_model
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.rl.batch import Batch, take_groups
from ling_jax.rl.config import RLConfig
from ling_jax.spec import Params

Scorer = Callable[[Params, Batch], jax.Array]  # log-probs [B, T] of the drawn tokens


def open_teachers(config: RLConfig, student: ModelFolder, origins: Mapping[str, int | None]) -> tuple[ModelFolder, ...]:
    """The models of `config.teacher_names`, at the steps that `origins` has, else the newest; weights are not read.

    Raises ValueError where one cannot score the student's tokens: another tokenizer, a smaller vocabulary or context.
    """
    return tuple(_open(name, config, student, origins.get(name)) for name in config.teacher_names)


def _open(name: str, config: RLConfig, student: ModelFolder, step: int | None) -> ModelFolder:
    teacher = open_model(name, step=step)
    if tokenizer_digest(teacher.tokenizer) != tokenizer_digest(student.tokenizer):
        raise ValueError(
            f"teachers: {name} has another tokenizer than {config.start_from}, so its log-probs are of other tokens: "
            "name teachers of one tokenizer, or let them answer themselves with launch.distill"
        )
    for what, needed, found in (
        ("vocab_size", student.config.vocab_size, teacher.config.vocab_size),
        ("max_length", config.rollout.context, teacher.config.max_length),
    ):
        if found < needed:
            raise ValueError(f"teachers: {name} has {what} {found}; it has to score rows that need {needed}")
    return teacher


def teacher_logps(
    scorers: Sequence[Scorer], params: Sequence[Params], batch: Batch, places: int, group_size: int
) -> np.ndarray:
    """[B, T] float32: log-probs of each row's drawn tokens under the teacher of its task, 0 elsewhere.

    Each scorer reads `places` groups at a time, and only the groups of its teacher, `batch.teacher`.
    """
    logps = np.zeros(batch.mask.shape, np.float32)
    own, bare = batch.teacher.reshape(-1, group_size).max(axis=1), batch.replace(teacher=None)
    for number, (score, weights) in enumerate(zip(scorers, params, strict=True)):
        groups = np.flatnonzero(own == number)
        for first in range(0, len(groups), places):
            part = groups[first : first + places]
            found = np.asarray(score(weights, take_groups(bare, part, places, group_size)))
            logps.reshape(-1, group_size, logps.shape[1])[part] = found.reshape(places, group_size, -1)[: len(part)]
    return logps
