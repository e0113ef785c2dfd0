"""What a reward may be."""

import numpy as np
from numpy.typing import ArrayLike


def check_reward(value: ArrayLike, low: float, high: float, name: str) -> np.ndarray:
    """`value`, any shape, as float64. Raises ValueError naming the first entry that is not a finite number in range.

    A reward that is not a number must stop the step that made it: as an advantage it would reach every weight.
    """
    values = np.asarray(value, np.float64)
    bad = np.argwhere(~((low <= values) & (values <= high) & np.isfinite(values)))
    if len(bad):
        index = tuple(bad[0].tolist())
        where = f"{name}{list(index)}" if index else name
        more = f" ({len(bad)} entries are so)" if len(bad) > 1 else ""
        raise ValueError(f"{where} is {values[index]}; expected a finite number from {low} to {high}{more}")
    return values


def check_same_length(**lists) -> int:
    """The length that all have. Raises ValueError naming each one's length where they differ."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{found}; expected one entry per answer in each")
    return next(iter(lengths.values()))
