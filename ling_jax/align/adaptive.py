"""Adaptive thinking: how much brevity counts is what the prompt's effort says (Ling 2.6 report §3.2.1)."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rewards import effort_rewards, shape
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards


def adaptive(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """The outcome, shaped by the length terms of `rewards.effort_rewards`."""
    del reader
    correct, efforts = np.array([episode.outcome for episode in episodes]), [episode.effort for episode in episodes]
    length = effort_rewards([episode.drawn for episode in episodes], correct, efforts) - correct
    return Rewards(shape(correct, length), {"accuracy": correct, "length": length})
