"""What an answer to a question is compared by; a record of a file names its checker."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ling_jax.chat.records import check_text
from ling_jax.config import nearest
from ling_jax.envs.base import Action
from ling_jax.rewards import Checked, extract_answer, gold_answer, shared_checker


class Checker(NamedTuple):
    """`check` compares a turn with `hidden["answer"]`, which `gold` read."""

    gold: Callable[[Any], str]  # of a record's answer; raises ValueError for what nothing can be compared with
    check: Callable[[Action, str], Checked]
    solution: Callable[[Any, str], str]  # (the record's answer, its gold) -> a turn that is right


def checker(name: Any) -> Checker:
    """The checker of this name. Raises ValueError with the nearest name for an unknown one."""
    if not isinstance(name, str) or name not in CHECKERS:
        raise ValueError(f"checker is {name!r}{nearest(str(name), CHECKERS)}; expected one of {', '.join(CHECKERS)}")
    return CHECKERS[name]


def _same(action: Action, gold: str) -> Checked:
    return shared_checker().check(action.raw, gold)


def _worked(answer: Any, gold: str) -> str:
    return answer if isinstance(answer, str) and "####" in answer else f"\\boxed{{{gold}}}"


def _exact(action: Action, gold: str) -> Checked:
    """All that is said behind the reasoning, or its marked final answer (`rewards.extract_answer`), is the text."""
    said = action.content.strip()
    final = extract_answer(said)
    return Checked("right" if gold in (said, final) else "wrong", final)


def _contains(action: Action, gold: str) -> Checked:
    return Checked("right" if gold in action.content else "wrong", None)


def _text(answer: Any) -> str:
    """A number's text, or a text without the blanks around it."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
        return str(answer)
    check_text(answer, "answer")
    if not answer.strip():
        raise ValueError(f"answer is {answer!r}; expected text")
    return answer.strip()


def _gold_alone(answer: Any, gold: str) -> str:
    return gold


CHECKERS = {
    "answer": Checker(gold_answer, _same, _worked),  # of equal value: numbers, expressions, lists, units
    "exact": Checker(_text, _exact, _gold_alone),
    "contains": Checker(_text, _contains, _gold_alone),
    "none": Checker(lambda answer: "", lambda action, gold: Checked("wrong", None), _gold_alone),  # an own reward's
}
