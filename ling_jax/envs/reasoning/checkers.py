"""What an answer to a question is compared by; a record of a file names its checker."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ling_jax.chat.records import check_text
from ling_jax.envs.base import Action
from ling_jax.messages import nearest
from ling_jax.rewards import AnswerChecker, Checked, extract_answer, gold_answer

CHECK_SECONDS = 1.0  # of processor time for an answer; our choice: decoding waits for it, and few answers need more


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


@functools.cache
def answer_checker() -> AnswerChecker:
    """That of all questions of this process; its worker ends with the process."""
    return AnswerChecker(CHECK_SECONDS)


def _same(action: Action, gold: str) -> Checked:
    return answer_checker().check(action.raw, gold)


def _worked_or_boxed(answer: Any, gold: str) -> str:
    return answer if _is_worked(answer) else f"\\boxed{{{gold}}}"


def _worked_or_alone(answer: Any, gold: str) -> str:
    return answer if _is_worked(answer) else gold


def _is_worked(answer: Any) -> bool:
    return isinstance(answer, str) and "####" in answer


def _exact(action: Action, gold: str) -> Checked:
    """All that is said behind the reasoning, or its marked final answer (`rewards.extract_answer`), is the text."""
    said = action.content.strip()
    final = extract_answer(said)
    return Checked("right" if gold in (said, final) else "wrong", final)


def _contains(action: Action, gold: str) -> Checked:
    return Checked("right" if gold in action.content else "wrong", None)


def _text(answer: Any) -> str:
    """A number's text, or a text behind its last #### without the blanks around it."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer):
        return str(answer)
    check_text(answer, "answer")
    gold = answer.rpartition("####")[2].strip()
    if not gold:
        raise ValueError(f"answer is {answer!r}; expected text")
    if _is_worked(answer) and "\n" in gold:
        raise ValueError(f"answer is {answer!r}; expected the right answer behind #### at the end, on one line")
    return gold


CHECKERS = {
    "answer": Checker(gold_answer, _same, _worked_or_boxed),  # of equal value: numbers, expressions, lists, units
    "exact": Checker(_text, _exact, _worked_or_alone),
    "contains": Checker(_text, _contains, _worked_or_alone),
    "none": Checker(
        lambda answer: "", lambda action, gold: Checked("wrong", None), _worked_or_alone
    ),  # an own reward's
}
