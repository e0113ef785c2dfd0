"""The Evo-CoT reward: accuracy, format, length and redundancy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ling_jax.rewards.bounds import check_same_length
from ling_jax.rewards.length import check_correct, length_rewards, length_weight
from ling_jax.rewards.redundancy import REDUNDANCY_WEIGHT, redundancy_rewards

MARKERS = ("<think>", "</think>")
MARKER_REWARD = -0.5  # Ling 2.6 report §3.1.2


class EvoCotRewards(NamedTuple):
    """The terms of the reward, float64 arrays [G], and the weight α."""

    total: np.ndarray
    accuracy: np.ndarray
    format: np.ndarray
    length: np.ndarray  # R̂, before α
    length_weight: float  # α
    redundancy: np.ndarray


def format_reward(text: str) -> float:
    """-0.5 if the text contains a reasoning marker, `<think>` or `</think>`, else 0 (Ling 2.6 report §3.1.2)."""
    return MARKER_REWARD if any(marker in text for marker in MARKERS) else 0.0


def evo_cot_rewards(
    texts: Sequence[str],
    lengths: ArrayLike,
    correct: ArrayLike,
    flagged: ArrayLike,
    *,
    redundancy_weight: float = REDUNDANCY_WEIGHT,
) -> EvoCotRewards:
    """Rewards of the G answers to one query (Ling 2.6 report §3.1.2).

        R = R_acc + R_format + α R̂_length - λ · flagged / max(length, 1)

    `lengths` and `flagged` [G] count tokens, `correct` [G] is 0 or 1; α is `length_weight(correct)`, λ is
    `redundancy_weight`. Raises ValueError for values out of range or lists of different lengths.
    """
    check_same_length(texts=texts, lengths=lengths, correct=correct, flagged=flagged)
    accuracy = check_correct(correct).astype(np.float64)
    marked = np.array([format_reward(text) for text in texts], np.float64)
    length, alpha = length_rewards(lengths, correct), length_weight(correct)
    redundancy = redundancy_rewards(flagged, lengths, weight=redundancy_weight)
    total = accuracy + marked + alpha * length + redundancy
    return EvoCotRewards(total, accuracy, marked, length, alpha, redundancy)
