"""Range and length checks of rewards."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def check_reward(value: ArrayLike, low: float, high: float, name: str) -> np.ndarray:
    """`value`, any shape, as float64. Raises ValueError for the first entry that is not finite or not in [low, high].

    A NaN reward must stop the step: as an advantage it would reach every weight.
    """
    values = np.asarray(value, np.float64)
    bad = np.argwhere(~((low <= values) & (values <= high) & np.isfinite(values)))
    if len(bad):
        index = tuple(bad[0].tolist())
        where = f"{name}{list(index)}" if index else name
        more = f" ({len(bad)} entries are so)" if len(bad) > 1 else ""
        raise ValueError(f"{where} is {values[index]}; expected a finite number from {low} to {high}{more}")
    return values


def check_same_length(**lists: Any) -> int:
    """The common length of the keyword lists. Raises ValueError with every length if they differ."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{found}; expected one entry per answer in each")
    return next(iter(lengths.values()))
