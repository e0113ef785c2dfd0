"""Teachers of on-policy distillation: models whose log-probs of a student's tokens it learns from."""

from collections.abc import Mapping

from ling_jax.checkpoint.folder import ModelFolder, open_model
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.rl.config import RLConfig


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
