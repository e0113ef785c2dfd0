"""Preference alignment: judged rubrics, weighed by the bidirectional focal reward (Ling 2.6 report §3.1.3)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from ling_jax.align.judges import Judge, Judged, case_of
from ling_jax.rewards import focal_reward, shape
from ling_jax.rl.episode import Episode
from ling_jax.rl.judge_config import Rubric
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards, where_judged

RUBRIC_WEIGHT = 0.45  # our choice: 0.45 times the width of [-1, 1] costs a right answer less than its outcome

_focal = jax.jit(focal_reward)


def preference(
    groups: Sequence[Sequence[Episode]], reader: Reader, pace: Any, *, judge: Judge, rubrics: Sequence[Rubric]
) -> tuple[list[Rewards], list[float]]:
    """The outcome, shaped by 0.45 · (focal reward - 1): the best judgement costs nothing.

    A right answer is one that the environment calls solved. Answers that could not be judged have no reward, and count
    in no group's statistics. `pace`, the memory, is how saturated each rubric was: a moving average over steps.
    """
    judged = judge.judge(rubrics, [case_of(group, reader) for group in groups])
    paces: list[np.ndarray] = []
    last = None if pace is None else np.asarray(pace, np.float32)

    def pay(group: Sequence[Episode], found: Judged) -> Rewards:
        return where_judged(found.errors, lambda rows: pay_all([group[i] for i in rows], found.rows(rows)))

    def pay_all(group: Sequence[Episode], found: Judged) -> Rewards:
        result = _focal(found.merits, found.defects, weights_of(rubrics), last_pace=last)
        paces.append(np.asarray(result.pace))
        return rubric_rewards(group, found, rubrics, result.rewards)

    rewards = [pay(group, found) for group, found in zip(groups, judged, strict=True)]
    return rewards, np.mean(paces, axis=0).tolist() if paces else pace


def rubric_rewards(group: Sequence[Episode], judged: Judged, rubrics: Sequence[Rubric], scores: ArrayLike) -> Rewards:
    """Of one group, from the weighed scores [G] of its rubrics, each in [-1, 1]; merit - defect are the parts."""
    terms = RUBRIC_WEIGHT * (np.asarray(scores, np.float64) - 1)
    signals = (judged.merits - judged.defects).T.astype(np.float64)
    parts = {rubric.name: signal for rubric, signal in zip(rubrics, signals, strict=True)}
    return Rewards(shape([episode.outcome for episode in group], terms), parts)


def weights_of(rubrics: Sequence[Rubric]) -> np.ndarray:
    """[K] float32."""
    return np.array([rubric.weight for rubric in rubrics], np.float32)
