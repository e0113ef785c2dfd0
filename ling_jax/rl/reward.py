"""What a stage pays: the form of its reward, which `ling_jax.align` fills in."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader


class Rewards(NamedTuple):
    """Of the answers to one prompt, [G] float64 each. NaN where an answer has none: its judge failed, or the reward."""

    total: np.ndarray
    parts: dict[str, np.ndarray]  # by name, for the metrics
    errors: Sequence[str] = ()  # [G] why an answer has no reward, "" where it has one; (): all have


def _keep_nothing() -> None:
    """`Reward.accepted` of a reward that has nothing to keep."""


class Reward(NamedTuple):
    """`pay(groups, reader, memory) -> (a Rewards for each group, memory)`.

    A group has the episodes of one prompt that have ended and not failed, at least one. `memory` is what the reward
    keeps from step to step, JSON values; None at the start, and for rewards that keep nothing.
    """

    pay: Callable[[Sequence[Sequence[Episode]], Reader, Any], tuple[list[Rewards], Any]]
    low: float  # what a total may be
    high: float
    needs_efforts: bool = False  # it pays by the thinking effort that a prompt asks for
    accepted: Callable[[], None] = _keep_nothing  # called when the last rewards enter a batch


def of_each_group(pay: Callable[[Sequence[Episode], Reader], Rewards]):
    """`pay` of a reward that looks at each group alone and keeps nothing."""

    def all_groups(groups: Sequence[Sequence[Episode]], reader: Reader, memory: Any) -> tuple[list[Rewards], Any]:
        return [pay(group, reader) for group in groups], memory

    return all_groups


def where_judged(errors: Sequence[str], pay: Callable[[Sequence[int]], Rewards]) -> Rewards:
    """The rewards of a group of which some answers could not be judged: `pay(rows)` is asked for the others alone.

    `errors` [G] are "" where an answer was judged. Where none was, there are no parts.
    """
    rows = [i for i, error in enumerate(errors) if not error]
    if len(rows) == len(errors):
        return pay(rows)
    paid = pay(rows) if rows else Rewards(np.zeros(0), {})
    return Rewards(
        _spread(paid.total, rows, len(errors)),
        {name: _spread(v, rows, len(errors)) for name, v in paid.parts.items()},
        tuple(errors),
    )


def _spread(values: np.ndarray, rows: Sequence[int], size: int) -> np.ndarray:
    spread = np.full(size, np.nan)
    spread[list(rows)] = values
    return spread
