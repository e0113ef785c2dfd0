"""Evo-CoT: right, without reasoning markers, short for the prompt, without repetition (Ling 2.6 report §3.1.2)."""

from collections.abc import Sequence

import numpy as np

from ling_jax.rewards import count_flagged, evo_cot_rewards, flag_repeats
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards


def evo_cot(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """`rewards.evo_cot_rewards`, a sentence being redundant by `rewards.flag_repeats` where the report has a judge."""
    rewards = evo_cot_rewards(
        texts=[written(episode, reader) for episode in episodes],
        lengths=[episode.drawn for episode in episodes],
        correct=[episode.outcome for episode in episodes],
        flagged=[flagged_tokens(episode, reader) for episode in episodes],
    )
    parts = {"accuracy": rewards.accuracy, "format": rewards.format, "redundancy": rewards.redundancy}
    return Rewards(rewards.total, parts | {"length": rewards.length_weight * rewards.length})


def written(episode: Episode, reader: Reader) -> str:
    """All that the policy wrote, a turn that was cut off too."""
    trajectory = episode.trajectory
    return reader.text(trajectory.completion_ids[trajectory.loss_mask])


def flagged_tokens(episode: Episode, reader: Reader) -> int:
    """How many of the policy's tokens are in sentences that repeat earlier ones."""
    mask = episode.trajectory.loss_mask
    ids = reader.sentence_ids(episode.trajectory)[mask]
    return count_flagged(flag_repeats(episode.trajectory.completion_ids[mask].tolist(), ids.tolist()), np.asarray(ids))
