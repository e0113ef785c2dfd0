"""95 % confidence intervals of proportions, clustered samples and ratios."""

import statistics

import numpy as np
from numpy.typing import ArrayLike

Z95 = statistics.NormalDist().inv_cdf(0.975)
RESAMPLES = 2000  # our choice: another seed then moves the ends by a few per cent of the width
SEED = 0
BLOCK = 1 << 20  # resampled indices in memory at a time

Interval = tuple[float, float]


def wilson_interval(mean: float, count: float) -> Interval:
    """Interval of a proportion `mean` of `count` independent trials (Wilson 1927), inside [0, 1]."""
    z2 = Z95 * Z95 / count
    centre = (mean + z2 / 2) / (1 + z2)
    half = np.sqrt(mean * (1 - mean) * z2 + z2 * z2 / 4) / (1 + z2)
    # At mean 0 and 1 the formula gives exactly 0 and 1, but rounding does not.
    low = 0.0 if mean == 0 else max(0.0, centre - half)
    return float(low), 1.0 if mean == 1 else float(min(1.0, centre + half))


def effective_count(sums: ArrayLike, counts: ArrayLike) -> float:
    """The effective sample size of clustered scores, for the `count` of `wilson_interval`.

    `sums` [clusters] are sums of scores from 0 to 1, `counts` [clusters] the number of scores, at least 1 each. The
    effective size is the number of scores over the design effect (Kish 1965): the variance of the mean with clusters
    over the variance of independent scores. Clusters of a single 0 or 1 give the number of clusters. If all scores are
    0 or all are 1 the design effect cannot be estimated, and each cluster counts as one trial.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    clusters, total = len(counts), counts.sum()
    mean = sums.sum() / total
    if clusters == 1 or mean in (0, 1):
        return float(clusters)
    clustered = clusters / (clusters - 1) * np.sum((sums - mean * counts) ** 2) / total**2
    independent = mean * (1 - mean) / (total - 1)
    return float(np.clip(total * independent / clustered, 1, total)) if clustered else float(total)


def bootstrap_ratio_interval(numerators: ArrayLike, denominators: ArrayLike) -> Interval | None:
    """Bootstrap interval of Σ numerators / Σ denominators over independent units such as documents.

    Each of `RESAMPLES` resamples (fixed seed) draws whole units with replacement and takes both sums, so the ratio is a
    mean over tokens and not over documents. The ends are the 2.5 and 97.5 percentiles; None for fewer than two units.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    count = len(numerators)
    if count < 2:
        return None
    rng, ratios = np.random.default_rng(SEED), []
    block = max(1, BLOCK // count)
    for first in range(0, RESAMPLES, block):
        drawn = rng.integers(count, size=(min(block, RESAMPLES - first), count))
        above, below = numerators[drawn].sum(axis=1), denominators[drawn].sum(axis=1)
        ratios.append(above[below > 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(ratios), (0.025, 0.975))
    return float(low), float(high)
