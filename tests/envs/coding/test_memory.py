"""Verdicts that are remembered: how often something is judged, and what those get who wait for it."""

import threading

import pytest

from ling_jax.envs.base import InfraError
from ling_jax.envs.coding.memory import Memory
from ling_jax.envs.coding.verdict import Verdict

RIGHT = Verdict((True,), "", (), complete=True)
CUT_OFF = Verdict((False,), "call 1 did not return", ())


class Judge:
    """Gives a verdict, or raises an error, once it may; counts how often it was asked."""

    def __init__(self, *ends):
        self.ends, self.asked, self.begun, self.may_end = list(ends), 0, threading.Event(), threading.Event()

    def __call__(self):
        self.asked += 1
        end = self.ends.pop(0)
        self.begun.set()
        self.may_end.wait(10)
        if isinstance(end, Exception):
            raise end
        return end


def ask_at_once(memory, judge, others=7):
    """What so many threads get that ask while the first is being answered: verdicts, or errors."""
    found = []

    def ask():
        try:
            found.append(memory.verdict(b"key", judge))
        except InfraError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(1 + others)]
    threads[0].start()
    assert judge.begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    judge.may_end.set()
    for thread in threads:
        thread.join(10)
    return found


def test_answers_that_end_together_are_judged_once():
    judge = Judge(RIGHT)
    assert ask_at_once(Memory(2), judge) == [RIGHT] * 8 and judge.asked == 1


def test_an_incomplete_verdict_is_not_kept():
    memory, judge = Memory(2), Judge(CUT_OFF, RIGHT)
    judge.may_end.set()
    assert memory.verdict(b"key", judge) == CUT_OFF and len(memory) == 0
    assert memory.verdict(b"key", judge) == RIGHT == memory.verdict(b"key", judge) and judge.asked == 2


def test_the_failure_of_one_is_not_that_of_those_who_wait():
    memory, judge = Memory(2), Judge(InfraError("its session was closed"), *[RIGHT] * 7)
    found = ask_at_once(memory, judge)
    assert sum(isinstance(one, InfraError) for one in found) == 1 and found.count(RIGHT) == 7
    assert memory.verdict(b"other", Judge(CUT_OFF)) == CUT_OFF  # nothing is left running


def test_those_who_wait_for_an_incomplete_verdict_judge_for_themselves():
    found = ask_at_once(Memory(2), Judge(CUT_OFF, *[RIGHT] * 7))
    assert found.count(CUT_OFF) == 1 and found.count(RIGHT) == 7


def test_the_newest_verdicts_are_kept():
    memory = Memory(2)
    for key in (b"a", b"b", b"c"):
        memory.verdict(key, lambda: RIGHT)
    assert len(memory) == 2 and memory.verdict(b"c", pytest.fail) == RIGHT
    assert memory.verdict(b"a", lambda: CUT_OFF) == CUT_OFF
    memory.clear()
    assert len(memory) == 0
