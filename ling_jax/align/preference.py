"""Preference alignment: rule judges of five rubrics, weighed by the bidirectional focal reward (report §3.1.3)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ling_jax.align.evo_cot import flagged_tokens
from ling_jax.rewards import check_reward, focal_reward
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards

# Our choice, all of it: the report's judges are models. Right answers count as much as the four others together.
RUBRICS = {"correct": 4.0, "shows_steps": 1.0, "no_repeats": 1.0, "ends_cleanly": 1.0, "brief": 1.0}

_focal = jax.jit(focal_reward)


def preference(groups: Sequence[Sequence[Episode]], reader: Reader, pace: Any) -> tuple[list[Rewards], list[float]]:
    """The focal reward of each group. `pace`, the memory, is how saturated each rubric was: a moving average."""
    scored = [judge(group, reader) for group in groups]
    weights = np.array(list(RUBRICS.values()), np.float32)
    last = None if pace is None else np.asarray(pace, np.float32)
    results = [_focal(merits, defects, weights, last_pace=last) for merits, defects in scored]
    rewards = []
    for (merits, defects), result in zip(scored, results, strict=True):
        parts = dict(zip(RUBRICS, (merits - defects).T.astype(np.float64), strict=True))
        rewards.append(Rewards(np.asarray(result.rewards, np.float64), parts))
    return rewards, np.mean([result.pace for result in results], axis=0).tolist() if results else pace


def judge(episodes: Sequence[Episode], reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    """(merits, defects) of one prompt's answers by `RUBRICS`, [G, K] in [0, 1] each; ValueError on any other score."""
    lengths = np.array([episode.drawn for episode in episodes], np.float64)
    correct = np.array([episode.outcome for episode in episodes])
    steps = np.array([len(set(reader.sentence_ids(e.trajectory)[e.trajectory.loss_mask])) > 1 for e in episodes])
    repeated = np.array([flagged_tokens(episode, reader) for episode in episodes]) / np.maximum(lengths, 1)
    clean = np.array([episode.trajectory.status == "finished" for episode in episodes])
    longer = (lengths - lengths.min()) / (np.ptp(lengths) + 1e-9)
    merits = [correct, steps, repeated == 0, clean, correct * (1 - longer)]
    defects = [1 - correct, ~steps, repeated, ~clean, longer]
    scores = {"merits": np.stack(merits, axis=1), "defects": np.stack(defects, axis=1)}
    return tuple(check_reward(values, 0, 1, name).astype(np.float32) for name, values in scores.items())
