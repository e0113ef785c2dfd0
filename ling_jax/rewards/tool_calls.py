"""The process reward: similarity of a sequence of tool calls to the expected one."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

EXTRA_CALL_REWARD = -0.1  # our choice: Ling 2.6 report §3.1.2 penalises superfluous calls and prints no number


class ProcessReward(NamedTuple):
    """The reward and its terms."""

    total: float
    format: float  # 0 or 1
    correctness: float  # -3 to 3
    name_jaccard: float  # 0 to 1
    match: float  # score of the best matching
    max_score: float  # upper bound of name_jaccard + match
    extra: int  # superfluous calls


def process_reward(
    predicted: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], *, format_ok: bool
) -> ProcessReward:
    """Reward of calls {"name", "arguments"} against the expected ones (Ling 2.6 report §3.1.2; form of ToolRL).

        total = format + correctness - 0.1 · max(0, predicted calls - expected calls)
        correctness = 6 (name Jaccard + match) / (1 + expected calls + their arguments) - 3

    The name Jaccard compares multisets. `match` is the heaviest one-to-one assignment of expected to predicted calls of
    the same name; a pair scores the Jaccard of its argument names plus the number of arguments with the expected value
    (`json_equal`). No expected and no predicted calls score perfectly. The order of calls does not matter. `format_ok`
    says whether all calls could be parsed. Raises ValueError for an entry that is no call.
    """
    for where, calls in (("predicted", predicted), ("expected", expected)):
        _check_calls(calls, where)
    names = _multiset_jaccard([call["name"] for call in predicted], [call["name"] for call in expected])
    match = _best_match(predicted, expected)
    max_score = 1.0 + len(expected) + sum(len(call["arguments"]) for call in expected)
    correctness = 6 * (names + match) / max_score - 3
    extra = max(0, len(predicted) - len(expected))
    total = float(format_ok) + correctness + EXTRA_CALL_REWARD * extra
    return ProcessReward(total, float(format_ok), correctness, names, match, max_score, extra)


def json_equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 equals 1.0 but not "1" or true; lists are ordered, objects are not."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(json_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _best_match(predicted: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> float:
    if not predicted or not expected:
        return 0.0
    from scipy.optimize import linear_sum_assignment  # a third of a second, which every program would start with

    # Pairs of different names score 0, like missing calls, so one assignment covers all names.
    scores = np.array([[_pair_score(call, gold) for call in predicted] for gold in expected])
    return float(scores[linear_sum_assignment(scores, maximize=True)].sum())


def _pair_score(call: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    if call["name"] != gold["name"]:
        return 0.0
    found, wanted = call["arguments"], gold["arguments"]
    equal = sum(key in found and json_equal(found[key], value) for key, value in wanted.items())
    return _multiset_jaccard(found, wanted) + equal


def _multiset_jaccard(a: Collection[str], b: Collection[str]) -> float:
    left, right = Counter(list(a)), Counter(list(b))
    union = (left | right).total()
    return (left & right).total() / union if union else 1.0


def _check_calls(calls: Sequence[Mapping[str, Any]], where: str) -> None:
    for i, call in enumerate(calls):
        good = isinstance(call, Mapping) and isinstance(call.get("name"), str)
        if not good or not isinstance(call.get("arguments"), Mapping):
            raise ValueError(f"{where}[{i}] is {call!r}; expected {{'name': text, 'arguments': dict}}")
