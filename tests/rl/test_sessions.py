"""Sessions run beside their caller, hurt nobody else, and every action has one result."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ling_jax.envs.base import InfraError, StepResult, parse_action
from ling_jax.envs.reasoning import running_sums
from ling_jax.rl.sessions import SessionHost
from tests.helpers.slow_sessions import END, WAYS, Answering, Sleeper, told

TASK, ACTION = running_sums.make_task(0, 1), parse_action("A:1")


def raising(error):
    def raised():
        raise error

    return raised


def waited(condition, seconds=5.0):
    """Whether it comes true within some seconds."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def collect(host, count):
    """The results of so many actions, and the seconds until the last."""
    begun, found = time.monotonic(), []
    while len(found) < count and time.monotonic() - begun < 20:
        found += host.results(1.0)
    return found, time.monotonic() - begun


def result_of(session, **options):
    """The only result of one action."""
    with SessionHost(**options) as host:
        host.open(7, lambda: session, TASK, 0)
        result = host.act(7, ACTION)
        if result is None:
            ((result,), _) = collect(host, 1)
        assert host.results(0.1) == [] and result.id == 7
    return result


@pytest.mark.parametrize("way", WAYS)
def test_sixteen_sessions_take_the_time_of_one(way):
    with SessionHost() as host:
        for i in reversed(range(16)):
            host.open(i, WAYS[way], TASK, 0)
            assert host.act(i, ACTION) is None
        found, seconds = collect(host, 16)
    assert sorted(result.id for result in found) == list(range(16)) and all(result.step == END for result in found)
    assert 1 <= seconds <= 1.5, "the machine is slow, or they waited for each other"


def test_results_that_are_there_come_sorted():
    with SessionHost() as host:
        for i in (3, 1, 2):
            host.open(i, Answering, TASK, 0)
            host.act(i, ACTION)
        assert waited(lambda: len(host._finished) == 3)
        assert [result.id for result in host.results()] == [1, 2, 3] and host.results() == []


def test_an_instant_session_acts_at_once_in_its_callers_thread():
    session = Answering(instant=True)
    assert result_of(session).step == END and session.thread is threading.current_thread() and session.closed == 1
    session = Answering()
    assert result_of(session).step == END and session.thread is not threading.current_thread()


@pytest.mark.parametrize("way", WAYS)
def test_a_session_that_hangs_fails_at_its_deadline_and_holds_up_no_other(way):
    slow = WAYS[way]()
    slow.seconds = 3.0
    with SessionHost(seconds=0.5) as host:
        host.open(0, lambda: slow, TASK, 0)
        host.open(1, Answering, TASK, 0)
        host.act(0, ACTION)
        host.act(1, ACTION)
        (other, late), seconds = collect(host, 2)
        assert other.id == 1 and other.step == END
        assert (late.id, late.status) == (0, "infra_failed") and "gave no answer in 0.5 s" in late.error
        assert 0.4 <= seconds <= 2
        host.close(0)
        assert waited(lambda: slow.closed == 1)
        assert host.results(0.1) == []


def test_a_deadline_starts_when_the_work_does():
    """Three steps of 0.4 s that were all asked for at once end in time for deadlines of 0.8 s."""
    session = Sleeper()
    session.seconds, session.turns = 0.4, 3
    repeated = [(ACTION, told("step 1").observation), (ACTION, told("step 2").observation)]
    with SessionHost(seconds=0.8) as host:
        host.open(0, lambda: session, TASK, 0, repeated)
        host.act(0, ACTION)
        ((result,), seconds) = collect(host, 1)
    assert result.step == END and seconds > 1


@pytest.mark.parametrize("instant", [True, False])
@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (raising(ZeroDivisionError("by zero")), "env_failed", "ZeroDivisionError: by zero"),
        (raising(SystemExit(3)), "env_failed", "SystemExit: 3"),
        (raising(InfraError("no server")), "infra_failed", "InfraError: no server"),
        (lambda: None, "env_failed", "returned a NoneType; expected a StepResult"),
        (lambda: tuple(END), "env_failed", "returned a tuple; expected a StepResult"),
        (lambda: END._replace(rewards={"outcome": np.nan}), "env_failed", r"rewards['outcome'] is nan; expected a fin"),
        (lambda: END._replace(rewards={"outcome": "1"}), "env_failed", "rewards['outcome'] is '1'; expected a finite"),
        (lambda: END._replace(rewards=[1.0]), "env_failed", "rewards is a list"),
        (lambda: END._replace(rewards={}), "env_failed", "rewards has no 'outcome', and the episode has ended"),
        (
            lambda: END._replace(rewards={"outcome": 1.5}),
            "env_failed",
            "rewards['outcome'] is 1.5; expected a number f",
        ),
        (lambda: END._replace(rewards={"outcome": -1}), "env_failed", "rewards['outcome'] is -1; expected a number fr"),
        (lambda: END._replace(terminated=None), "env_failed", "terminated is None; expected True or False"),
        (lambda: told("\ud800"), "env_failed", "observation[0].content holds half a surrogate pair"),
        (lambda: END._replace(observation=["hm"]), "env_failed", "observation[0] is a str; expected a dict"),
        (lambda: END._replace(observation=3), "env_failed", "'int' object is not iterable"),
        (
            lambda: END._replace(observation=[{"role": "assistant", "content": ""}]),
            "env_failed",
            "observation[0].role is 'assistant'; only the policy speaks as it",
        ),
    ],
)
def test_what_is_no_result_is_a_failure_that_says_why(answer, status, error, instant):
    result = result_of(Answering(answer, instant=instant))
    assert result.step is None and result.status == status and error in result.error


def test_an_episode_that_a_limit_cut_off_needs_no_outcome():
    cut_off = END._replace(rewards={}, terminated=False, truncated=True)
    assert result_of(Answering(lambda: cut_off)).step == cut_off


def test_rewards_beside_the_outcome_may_be_any_finite_number():
    result = result_of(
        Answering(lambda: END._replace(rewards={"outcome": np.float32(0.5), "bonus": 2, "solved": True}))
    )
    assert result.step.rewards["outcome"] == 0.5


@pytest.mark.parametrize("instant", [True, False])
def test_a_session_that_does_not_open_says_so_to_each_action_and_never_steps(instant):
    session = Answering(raising(AssertionError("stepped")), open=raising(OSError("no disk")), instant=instant)
    with SessionHost() as host:
        host.open(0, lambda: session, TASK, 0)
        for _ in range(2):
            result = host.act(0, ACTION) or collect(host, 1)[0][0]
            assert (result.status, result.error) == ("infra_failed", "its session did not open: OSError: no disk")
    assert waited(lambda: session.closed == 1)


def test_a_session_that_cannot_be_made_is_a_failure_too():
    with SessionHost() as host:
        host.open(0, raising(KeyError("sandbox")), TASK, 0)
        assert host.act(0, ACTION).error == "its session did not open: KeyError: 'sandbox'"


@pytest.mark.parametrize("instant", [True, False])
def test_a_session_that_does_not_close_is_named_and_that_is_all(instant, capsys):
    session = Answering(close=raising(OSError("still busy")), instant=instant)
    assert result_of(session).step == END
    assert "rollout 7: its session did not close: OSError: still busy" in capsys.readouterr().out


@pytest.mark.parametrize("instant", [True, False])
def test_a_session_whose_close_is_cancelled_is_named_and_its_thread_ends(instant, capsys):
    """As where it awaits a task that it has cancelled."""
    threads = threading.active_count()
    session = Answering(close=raising(asyncio.CancelledError()), instant=instant)
    assert result_of(session).step == END
    assert "rollout 7: its session did not close: CancelledError" in capsys.readouterr().out
    assert waited(lambda: threading.active_count() <= threads)


class Serving(Answering):
    """A task of its own writes what it is given, and ends when it is given None."""

    async def open(self, task, seed):
        self.given, self.written, self.threads = asyncio.Queue(), [], [asyncio.create_task(asyncio.sleep(60))]
        self.threads.append(asyncio.create_task(self.serve()))

    async def serve(self):
        while (item := await self.given.get()) is not None:
            self.written.append(item)

    async def close(self):
        self.given.put_nowait("the last")
        self.given.put_nowait(None)
        await self.threads[1]
        await super().close()


def test_a_sessions_own_tasks_run_until_it_has_closed(capsys):
    session = Serving()
    assert result_of(session).step == END
    assert waited(lambda: session.closed and session.threads[0].done())
    assert session.written == ["the last"] and session.threads[0].cancelled(), "what it left running ends with it"
    assert "did not close" not in capsys.readouterr().out


def test_an_opening_that_is_late_keeps_no_processor_busy():
    """An opening past its deadline, while no action waits for a result."""
    with SessionHost(seconds=0.1) as host:
        host.open(0, lambda: Answering(open=lambda: time.sleep(1)), TASK, 0)
        time.sleep(0.2)
        begun = time.thread_time()
        assert host.results(0.5) == [] and time.thread_time() - begun < 0.1


def test_an_instant_session_that_waits_is_refused():
    result = result_of(type("Waits", (Sleeper,), {"instant": True})())
    assert result.status == "env_failed" and "RuntimeError" in result.error  # no event loop
    waiting = type("Yields", (Sleeper,), {"instant": True, "seconds": 0.0})()
    result = result_of(waiting)
    assert result.status == "env_failed" and "says that it is instant, and waits" in result.error


def test_actions_are_repeated_before_the_next_one():
    session = Sleeper()
    session.seconds, session.turns = 0.0, 3
    repeated = [(ACTION, told("step 1").observation), (ACTION, told("step 2").observation)]
    with SessionHost() as host:
        host.open(0, lambda: session, TASK, 0, repeated, begun=True)
        host.act(0, ACTION)
        assert collect(host, 1)[0][0].step == END
    assert session.steps == 3


def test_an_action_that_has_another_observation_when_it_is_repeated_fails():
    with SessionHost() as host:
        host.open(0, Answering, TASK, 0, [(ACTION, told("step 9").observation)], begun=True)
        host.act(0, ACTION)
        ((result,), _) = collect(host, 1)
    assert result.status == "infra_failed" and "could not repeat an action: another observation" in result.error


def test_a_session_that_cannot_be_repeated_is_lost_once_it_acted():
    once = type("Once", (Answering,), {"replayable": False})
    with SessionHost() as host:
        for id, begun in enumerate((False, True)):
            host.open(id, once, TASK, 0, begun=begun)
        lost = host.act(1, ACTION)
        assert host.act(0, ACTION) is None and collect(host, 1)[0][0].step == END
    assert lost.status == "infra_failed" and "was lost by a restart" in lost.error


def test_results_of_a_session_that_was_closed_are_dropped():
    with SessionHost() as host:
        host.open(0, Answering, TASK, 0)
        host.act(0, ACTION)
        assert waited(lambda: host._finished)
        host.close(0)
        host.open(0, Sleeper, TASK, 0)
        assert host.results(0.1) == [] and 0 in host


EXIT = """
import sys, time
from ling_jax.rl.sessions import SessionHost
from tests.helpers.slow_sessions import WAYS
from tests.rl.test_sessions import ACTION, TASK

host = SessionHost()
for i, way in enumerate(WAYS.values()):
    session = way()
    session.seconds = 600.0
    host.open(i, lambda: session, TASK, 0)
    host.act(i, ACTION)
    assert host.results(0.3) == []
begun = time.time()
if sys.argv[1] == "closed":
    host.close_all()
print(begun, flush=True)
"""


@pytest.mark.parametrize("how", [pytest.param("closed", marks=pytest.mark.slow), "left"])
def test_a_process_ends_while_sessions_hang(how):
    """In each of the ways of hanging; what `close_all` waits counts."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, how], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert time.time() - float(done.stdout) < 3 and "Traceback" not in done.stderr


def test_a_step_result_has_no_state():
    assert StepResult._fields == ("observation", "rewards", "terminated", "truncated", "error")
