"""Adaptive thinking: how much brevity counts is what the prompt's effort says (Ling 2.6 report §3.2.1)."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rewards import effort_rewards
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards


def adaptive(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """`rewards.effort_rewards` of answers at several efforts."""
    del reader
    correct = np.array([episode.outcome for episode in episodes])
    total = effort_rewards([episode.drawn for episode in episodes], correct, [episode.effort for episode in episodes])
    return Rewards(total, {"accuracy": correct, "length": total - correct})
