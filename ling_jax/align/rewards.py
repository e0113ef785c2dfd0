"""The rewards that a config can name."""

from collections.abc import Sequence

import numpy as np

from ling_jax.align.adaptive import adaptive
from ling_jax.align.agentic import agentic
from ling_jax.align.evo_cot import evo_cot
from ling_jax.align.own_reward import own_reward
from ling_jax.align.preference import preference
from ling_jax.config import nearest
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards, of_each_group


def outcome(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """1 where the environment says that it is solved, else 0."""
    del reader
    solved = np.array([episode.outcome for episode in episodes])
    return Rewards(solved, {"outcome": solved})


REWARDS = {
    "outcome": Reward(of_each_group(outcome), 0, 1),
    "evo_cot": Reward(of_each_group(evo_cot), -0.8, 1.1),
    "agentic": Reward(of_each_group(agentic), -3.4, 2),
    "preference": Reward(preference, -1, 1),
    "adaptive": Reward(of_each_group(adaptive), -0.1, 1.1, needs_efforts=True),
}


def named_reward(name: str) -> Reward:
    """A reward of this package, or `module:name` of one's own (`align.own_reward`).

    Raises ValueError, with the nearest name, for one that is unknown.
    """
    if ":" in name:
        return own_reward(name)
    if name not in REWARDS:
        raise ValueError(
            f"reward is {name!r}{nearest(name, REWARDS)}; expected one of {', '.join(REWARDS)}, or module:function for "
            "one of your own"
        )
    return REWARDS[name]
