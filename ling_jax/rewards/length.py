"""Rewards of brevity, relative to the answers of the same query."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ling_jax.rewards.bounds import check_reward, check_same_length

EASY_WEIGHT = 0.2  # our choice: |length term| <= 0.1 stays below what a right answer earns
HARD_WEIGHT = 0.02  # our choice
EFFORT_WEIGHTS = {"high": 0.2, "xhigh": 0.02}  # our choice: the report says "moderate" and "minimal" (§3.2.1)


def length_rewards(lengths: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """R̂ of one query's answers, [G] float64 (Ling 2.6 report §3.1.2, eqs. 3 and 4).

        p = 0.5 - (l - l_min) / (l_max - l_min + 1e-9),   R̂ = p if right else min(p, 0)

    `lengths` [G] in tokens, `correct` [G] of 0 and 1. l_min and l_max are of right and wrong answers alike; equal
    lengths have p = 0.5. In [-0.5, 0.5]. Raises ValueError on any other value: leave out answers without a verdict.
    """
    check_same_length(lengths=lengths, correct=correct)
    right, tokens = check_correct(correct), check_reward(lengths, 0, np.inf, "lengths")
    if not len(tokens):
        return tokens
    p = 0.5 - (tokens - tokens.min()) / (np.ptp(tokens) + 1e-9)
    return np.where(right, p, np.minimum(p, 0))


def length_weight(correct: ArrayLike, *, easy: float = EASY_WEIGHT, hard: float = HARD_WEIGHT) -> float:
    """α = clip(easy · pass rate, hard, easy): brevity counts for more where most answers, `correct` [G], are right.

    That α falls with difficulty is Ling 2.0 report §4.2; the form is our choice. No answers: `hard`.
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

    R̂ is `length_rewards` among the answers of the same effort: a long one may be short for its effort. Raises
    ValueError on an effort that has no weight.
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
    """[G] as bool. Raises ValueError on what is neither 0 nor 1 (NaN and None too)."""
    for i, value in enumerate(correct):
        if value is None or value not in (0, 1):
            raise ValueError(f"correct[{i}] is {value!r}; expected 0 or 1: leave out answers without a verdict")
    return np.asarray(correct, bool)
