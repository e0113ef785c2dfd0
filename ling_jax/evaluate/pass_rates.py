"""pass@k and pass^k: the chance that one, or that every one, of k answers to a task is right."""

import math
from collections.abc import Sequence

import numpy as np

from ling_jax.evaluate.report import Metric
from ling_jax.evaluate.statistics import effective_count, wilson_interval


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate that one of k answers is right at least: 1 - C(n - c, k) / C(n, k), c right ones of n >= k.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def pass_hat_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate that all of k answers are right: C(c, k) / C(n, k), c right ones of n >= k.

    Source: Yao et al. 2024, "tau-bench", section 3.
    """
    return math.comb(right, k) / math.comb(samples, k)


def check_ks(ks: Sequence[int], samples: int) -> None:
    """Raises ValueError unless each k is from 1 to the number of samples, and stands there once."""
    for i, k in enumerate(ks):
        if not 1 <= k <= samples:
            raise ValueError(f"--k has {k}; expected numbers from 1 to --samples={samples}, of which k are drawn")
        if k in ks[:i]:
            raise ValueError(f"--k has {k} twice; name each number once")


def pass_metrics(right: Sequence[int], samples: int, ks: Sequence[int], unit: str = "prompts") -> list[Metric]:
    """pass@k and pass^k for each k, from the number of right answers to each task, of `samples` each.

    The value is the mean over tasks; `unit` names them. At k = 1 both are the mean accuracy, and pass@1 alone is given.
    """
    metrics = []
    for k in ks:
        metrics.append(_metric(f"pass@{k}", [pass_at_k(samples, c, k) for c in right], samples / k, unit))
        if k > 1:
            metrics.append(_metric(f"pass^{k}", [pass_hat_k(samples, c, k) for c in right], samples / k, unit))
    return metrics


def _metric(name: str, rates: Sequence[float], draws: float, unit: str) -> Metric:
    """The mean over tasks. A task's rate counts as at most `draws` = n / k independent draws of k answers.

    The estimate from all subsets of k has no more variance than these (Hoeffding 1948), so the cap widens the interval.
    """
    if not rates:
        return Metric(name, None, None, 0, unit)
    mean = float(np.mean(rates))
    worth = effective_count(draws * np.asarray(rates), np.full(len(rates), draws))
    return Metric(name, mean, wilson_interval(mean, worth), len(rates), unit)
