"""How sure a metric is: 95 % intervals for proportions, for clustered samples and for ratios."""

import statistics

import numpy as np

Z95 = statistics.NormalDist().inv_cdf(0.975)
RESAMPLES = 2000  # our choice: the ends of an interval then move by a few per cent of its width with the seed
SEED = 0
BLOCK = 1 << 20  # indices drawn at once

Interval = tuple[float, float]


def wilson_interval(mean: float, count: float) -> Interval:
    """Of a proportion `mean` among `count` independent trials (Wilson 1927); inside [0, 1], and no point at 0 or 1."""
    z2 = Z95 * Z95 / count
    centre = (mean + z2 / 2) / (1 + z2)
    half = np.sqrt(mean * (1 - mean) * z2 + z2 * z2 / 4) / (1 + z2)
    # At the two ends the formula is exact, and its rounding is not.
    low = 0.0 if mean == 0 else max(0.0, centre - half)
    return float(low), 1.0 if mean == 1 else float(min(1.0, centre + half))


def effective_count(sums, counts) -> float:
    """How many independent trials the clustered ones are worth, for the `count` of `wilson_interval`.

    `sums` [clusters] of scores from 0 to 1, `counts` [clusters] of how many scores, at least 1 each. The number of
    scores over the design effect (Kish 1965): the variance of their mean as clusters give it, over what independent
    scores would have. Clusters of one 0 or 1 are worth just their number; where all scores are 0 or all are 1 nothing
    can be estimated, and a cluster counts as one trial.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    clusters, total = len(counts), counts.sum()
    mean = sums.sum() / total
    if clusters == 1 or mean in (0, 1):
        return float(clusters)
    clustered = clusters / (clusters - 1) * np.sum((sums - mean * counts) ** 2) / total**2
    independent = mean * (1 - mean) / (total - 1)
    return float(np.clip(total * independent / clustered, 1, total)) if clustered else float(total)


def bootstrap_ratio_interval(numerators, denominators) -> Interval | None:
    """Of Σ numerators / Σ denominators over units that are independent of each other, such as documents.

    Whole units are drawn with replacement, `RESAMPLES` times with a fixed seed, and both sums are taken of what was
    drawn (a ratio estimator: a mean of each unit's own ratio would weigh a short document like a long one, and what
    is wanted is the mean over tokens). The ends are the 2.5 and 97.5 percentiles. None with fewer than two units.
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
