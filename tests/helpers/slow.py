"""Which variants of a test are slow ones."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """The values of a `parametrize`, all but the quick ones marked slow; one for several arguments is a sequence."""
    return [value if value in quick else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return pytest.param(*(value if several else [value]), marks=pytest.mark.slow)
