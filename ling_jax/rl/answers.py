"""Answers as a step learns from them: arrays of their tokens on the host."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ling_jax.objectives.objective import Normaliser


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """One answer with a reward: prompt and completion, n tokens."""

    group: int  # number of its group in the batch
    advantage: float
    tokens: np.ndarray  # [n] int32
    mask: np.ndarray  # [n] bool: what the policy drew
    behaviour_logps: np.ndarray  # [n] float32, as they were recorded
    ages: np.ndarray  # [n] int32: weight versions since the token was drawn
    sentence_ids: np.ndarray  # [n] int32
    teacher: int = -1  # the teacher of its task, -1 without any
    episode: int | None = None  # that it is a sample of; samples of one count as one answer. None: it is alone
    old_logps: np.ndarray | None = None  # [n] float32, before the first step on the batch; None: those of the step
    reference_logps: np.ndarray | None = None  # [n] float32; None where no penalty needs them
    teacher_logps: np.ndarray | None = None  # [n] float32, of its teacher
    # [up to n, L, k] integers: recorded experts of its first tokens; None where none were
    experts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def token_weights(answers: Sequence[Answer], normaliser: Normaliser) -> np.ndarray:
    """[answers] float32: the weight of each loss token of an answer in the mean over them all.

        rows    1 / (answers · |y_i|)        groups  1 / (groups · Σ |y_i| of the group)        tokens  1 / Σ |y_i|

    |y_i| counts loss tokens; answers and groups without any count too. Samples of one episode are one answer.
    """
    sizes = np.array([answer.mask.sum() for answer in answers], np.float64)
    if normaliser == "tokens":
        return np.full(len(answers), 1 / max(sizes.sum(), 1), np.float32)
    if normaliser == "rows":
        alone = [-1 - i if answer.episode is None else answer.episode for i, answer in enumerate(answers)]
        return _means(np.array(alone), sizes)
    return _means(np.array([answer.group for answer in answers]), sizes)


def _means(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The weight of a token in the mean over all numbers of the means of those that have one [answers]."""
    found, place = np.unique(numbers, return_inverse=True)
    whole = np.bincount(place, weights=sizes, minlength=len(found))[place]
    return (1 / (max(len(found), 1) * np.maximum(whole, 1))).astype(np.float32)
