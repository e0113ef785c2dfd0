"""Length rewards, relative to the other answers to the same query."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ling_jax.rewards.bounds import check_reward, check_same_length

EASY_WEIGHT = 0.2  # our choice: |length term| <= 0.1 stays below the reward of a right answer
HARD_WEIGHT = 0.02  # our choice
EFFORT_WEIGHTS = {"high": 0.2, "xhigh": 0.02}  # our choice: the report says "moderate" and "minimal" (§3.2.1)


def length_rewards(lengths: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """The length reward R̂ of the answers to one query, [G] float64 (Ling 2.6 report §3.1.2, eqs. 3 and 4).

        p = 0.5 - (l - l_min) / (l_max - l_min + 1e-9),   R̂ = p if right else min(p, 0)

    `lengths` [G] in tokens, `correct` [G] of 0 and 1. l_min and l_max are taken over right and wrong answers; equal
    lengths give p = 0.5. The result is in [-0.5, 0.5]. Raises ValueError on other values: leave out answers without a
    verdict.
    """
    check_same_length(lengths=lengths, correct=correct)
    right, tokens = check_correct(correct), check_reward(lengths, 0, np.inf, "lengths")
    if not len(tokens):
        return tokens
    p = 0.5 - (tokens - tokens.min()) / (np.ptp(tokens) + 1e-9)
    return np.where(right, p, np.minimum(p, 0))


def length_weight(correct: ArrayLike, *, easy: float = EASY_WEIGHT, hard: float = HARD_WEIGHT) -> float:
    """The weight of the length reward, α = clip(easy · mean(correct), hard, easy); `correct` [G], empty: `hard`.

    Ling 2.0 report §4.2 lets α fall with difficulty; the form is our choice.
    """
    right = check_correct(correct)
    return float(np.clip(easy * right.mean(), hard, easy)) if len(right) else hard


def effort_rewards(
    lengths: ArrayLike,
    correct: ArrayLike,
    efforts: Sequence[str],
    *,
    weights: Mapping[str, float] = EFFORT_WEIGHTS,
) -> np.ndarray:
    """R_acc + α_effort · R̂ of one query's answers at several thinking efforts, [G] float64 (Ling 2.6 report §3.2.1).

    R̂ is `length_rewards` among the answers of the same effort, so that long answers are judged against their own
    effort. Raises ValueError for an effort without a weight.
    """
    check_same_length(lengths=lengths, correct=correct, efforts=efforts)
    for i, effort in enumerate(efforts):
        if effort not in weights:
            raise ValueError(f"efforts[{i}] is {effort!r}; expected one of {', '.join(weights)}")
    lengths, rewards = np.asarray(lengths), check_correct(correct).astype(np.float64)
    for effort, weight in weights.items():
        same = np.array([other == effort for other in efforts], bool)
        rewards[same] += weight * length_rewards(lengths[same], np.asarray(correct)[same])
    return rewards


def check_correct(correct: ArrayLike) -> np.ndarray:
    """`correct` [G] as bool. Raises ValueError on values other than 0 and 1, NaN and None included."""
    for i, value in enumerate(correct):
        if value is None or value not in (0, 1):
            raise ValueError(f"correct[{i}] is {value!r}; expected 0 or 1: leave out answers without a verdict")
    return np.asarray(correct, bool)
