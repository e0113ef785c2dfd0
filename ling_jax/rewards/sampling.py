"""Dynamic pass rating: which tasks to draw, by how often they are solved."""

from collections.abc import Sequence

import flax.struct
import numpy as np

from ling_jax.rewards.bounds import check_reward, check_same_length

NEVER = -1
UNSEEN_PASS_RATE = 0.5  # our choice: as uncertain as can be, so that new tasks are drawn often
RATE_STEP = 0.1  # our choice
LEAST_WEIGHT = 0.05  # our choice: no task is given up, solved or not
EASY_FACTOR, EASY_RATE, EARLY_SHARE = 0.2, 0.9, 0.1  # our choice


@flax.struct.dataclass
class PassRates:
    """What is known of N tasks; arrays [N]."""

    estimate: np.ndarray  # float64: p̂
    seen: np.ndarray  # int64: how many pass rates
    first_solved: np.ndarray  # int64: the step; -1 never


def unseen(num_tasks: int) -> PassRates:
    """Of tasks that nobody tried."""
    counts = np.zeros(num_tasks, np.int64)
    return PassRates(np.full(num_tasks, UNSEEN_PASS_RATE), counts, np.full(num_tasks, NEVER))


def observe(rates: PassRates, tasks: Sequence[int], pass_rates: Sequence[float], step: int) -> PassRates:
    """After groups of answers to `tasks` had `pass_rates`, in this order; a task may stand there twice.

    p̂ ← p̂ + 0.1 (pass rate - p̂),   p̂ = pass rate the first time
    """
    check_same_length(tasks=tasks, pass_rates=pass_rates)
    check_reward(pass_rates, 0, 1, "pass_rates")
    estimate, seen, first_solved = rates.estimate.copy(), rates.seen.copy(), rates.first_solved.copy()
    for task, value in zip(tasks, pass_rates, strict=True):
        if not 0 <= task < len(estimate):
            raise ValueError(f"task {task} is unknown; expected 0 to {len(estimate) - 1}")
        estimate[task] += (RATE_STEP if seen[task] else 1.0) * (value - estimate[task])
        seen[task] += 1
        if value > 0 and first_solved[task] == NEVER:
            first_solved[task] = step
    return PassRates(estimate, seen, first_solved)


def sampling_weights(rates: PassRates, total_steps: int) -> np.ndarray:
    """p̂ (1 - p̂) + 0.05, times 0.2 for easy tasks: solved before a tenth of all steps, and p̂ > 0.9. [N] float64.

    That easy tasks are those solved early or stably is Ling 2.6 report §3.1.2; the form is our choice.
    """
    early = (rates.first_solved != NEVER) & (rates.first_solved < EARLY_SHARE * total_steps)
    easy = early & (rates.estimate > EASY_RATE)
    return (rates.estimate * (1 - rates.estimate) + LEAST_WEIGHT) * np.where(easy, EASY_FACTOR, 1.0)


def sampling_probabilities(rates: PassRates, total_steps: int) -> np.ndarray:
    """`sampling_weights` over their sum."""
    weights = sampling_weights(rates, total_steps)
    return weights / weights.sum()
