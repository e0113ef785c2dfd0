"""An objective as a record: its loss, and what a run has to know about it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from ling_jax.objectives.tokens import Metrics

Normaliser = Literal["rows", "groups", "tokens"]
SEQUENCE_MEAN = "mean_i 1/|y_i| sum_t"  # as descriptions write it
NO_BOUND = "has no bound on its importance weights"


class Check(NamedTuple):
    """What the value of an option must be."""

    holds: Callable[[Any], bool]
    expected: str  # such as "a positive number"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective and its properties. The functions below take the keywords of `loss` that are no arrays."""

    loss: Callable[..., tuple[jax.Array, Metrics]]
    options: Mapping[str, Check]  # the keywords of `loss` that a user sets; their defaults are those of `loss`
    description: Callable[..., str]  # the formula that is maximised: mean, ratios, policies and mask
    normaliser: Callable[..., Normaliser]  # what the loss is a mean over; rows and groups without loss tokens count
    stale_flaw: Callable[..., str]  # why the loss does not correct for tokens that older weights drew; "": it does

    @property
    def keywords(self) -> dict[str, Any]:
        """{keyword of `loss`: its default}, `inspect.Parameter.empty` where there is none."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _is_positive_or_none(value: Any) -> bool:
    return value is None or _is_positive(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


POSITIVE = Check(_is_positive, "a positive number")
POSITIVE_OR_NONE = Check(_is_positive_or_none, "a positive number or None")
FLAG = Check(_is_flag, "True or False")


def one_of(*names: str) -> Check:
    """The check of an option that is one of these names."""
    return Check(lambda value: value in names, f"one of {', '.join(names)}")


def mean_over_rows(**options: Any) -> Normaliser:
    """The normaliser of a loss that is a mean over rows, whatever its options."""
    return "rows"


def ignores_behaviour(**options: Any) -> str:
    """The flaw of a loss without behaviour log-probs, whatever its options."""
    return "does not look at the policy that drew a token"


def clipped_term(low: float, high: float, *, ratio: str = "r") -> str:
    """The clipped term of a description."""
    bounds = f"1±{low}" if low == high else f"1-{low}, 1+{high}"
    return f"min({ratio} A, clip({ratio}, {bounds}) A)"
