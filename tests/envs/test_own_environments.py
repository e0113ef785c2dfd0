"""Environments of one's own, by module:name."""

import asyncio
import itertools
import re

import pytest

from ling_jax.envs import HELD_OUT_SEEDS, environment, parse_action
from ling_jax.envs.base import draw_task
from ling_jax.envs.sources import TaskSource, check_tasks, held_out_of, tasks

NUMBERS = itertools.count()
TASK = """
import random
from ling_jax.envs import StepResult, Task

def task(seed, difficulty, **fields):
    number = random.Random(seed).randrange(1, 10)
    return Task(**{"environment": "guess", "difficulty": difficulty, "seed": seed,
        "messages": [{"role": "user", "content": "Guess my number."}], "hidden": {"number": number},
        "max_tokens": 24, "max_turns": 3} | fields)

class Guess:
    def make_task(self, seed, difficulty):
        return task(seed, difficulty)
    def reset(self, task, seed):
        return task.hidden["number"]
    def step(self, number, action):
        right = action.content.strip() == str(number)
        told = [] if right else [{"role": "user", "content": "No. Guess again."}]
        return number, StepResult(told, {"outcome": 1.0} if right else {}, right, False, None)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(code, name)`: the name of an environment in a new module."""
    monkeypatch.chdir(tmp_path)

    def write(code: str, name: str = "Own") -> str:
        module = f"own_environment_{next(NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(TASK + code)
        return f"{module}:{name}"

    return write


def actions_of(name, task, *turns):
    async def played():
        session = environment(name).session()
        await session.open(task, 0)
        return [await session.step(parse_action(turn)) for turn in turns]

    return asyncio.run(played())


def test_a_class_of_two_functions_of_values_is_an_environment(own):
    name = own("", "Guess")
    source = TaskSource(environment=name, count=20)
    check_tasks(source, "tasks[0]")
    found = list(tasks(source))
    assert {task.environment for task in found} == {name}, "its name is part of a task's content"
    assert len({task.id for task in found}) == len({task.hidden["number"] for task in found})
    assert held_out_of(source, 3)[0].seed == HELD_OUT_SEEDS and environment(name).solution is None
    wrong, right = actions_of(name, found[0], "x", str(found[0].hidden["number"]))
    assert not wrong.terminated and wrong.observation and right.rewards == {"outcome": 1.0}


def test_a_class_of_sessions_an_object_and_functions_of_a_module_are_environments(own):
    name = own(
        """
class Talks:
    replayable = True
    async def open(self, task, seed): ...
    async def step(self, action): return StepResult([], {"outcome": 0.0}, True, False, None)
    async def close(self): ...
class Own:
    DIFFICULTIES = range(2, 4)
    session = Talks
    def make_task(self, seed, difficulty): return task(seed, difficulty)
    def solution(self, task): return ["4"]
made = Own()
"""
    )
    for each in (name, name.replace(":Own", ":made")):
        check_tasks(TaskSource(environment=each, difficulties=(2, 3), count=4), "tasks[0]")
        (task,) = itertools.islice(tasks(TaskSource(environment=each, difficulties=(3,), count=4)), 1)
        assert environment(each).solution(task) == ("4",) and actions_of(each, task, "4")[0].terminated
        with pytest.raises(ValueError, match=rf"difficulties is \[1\]; {each} has 2 to 3, name some of them"):
            check_tasks(TaskSource(environment=each, difficulties=(1,), count=4), "tasks[0]")


def test_an_environment_may_be_its_own_session(own):
    name = own(
        """
class Own(Guess):
    replayable = True
    def session(self): return Own()
    async def open(self, task, seed): ...
    async def step(self, action): return StepResult([], {"outcome": 0.0}, True, False, None)
    async def close(self): ...
"""
    )
    (task,) = tasks(TaskSource(environment=name, count=1))
    assert actions_of(name, task, "4")[0].terminated


SESSION = """
class Talks:
    async def open(self, task, seed): ...
    {}
class Own:
    session = Talks
    def make_task(self, seed, difficulty): return task(seed, difficulty)
"""
REFUSED = {
    "a session of half its members": (
        SESSION.format(""),
        r"what session\(\) returns, a Talks, lacks async step\(action\) -> StepResult and async close\(\) and repl",
    ),
    "a session of functions of values": (
        SESSION.format("replayable = True; close = lambda self: None; step = Guess.step"),
        r"a Talks, has as step a function of \(number, action\); expected async step\(action\) -> StepResult",
    ),
    "a session that cannot be made": (
        SESSION.format("def __init__(self): self.x = {}['port']"),
        r"session\(\) raised KeyError: 'port'",
    ),
    "functions of values that wait": (
        "class Own(Guess):\n    async def step(self, state, action): ...",
        r"step is async; expected step\(state, action\) -> \(state, StepResult\) without async",
    ),
    "no members": (
        "class Own: ...",
        r"lacks make_task\(seed, difficulty\) -> Task and reset\(task, seed\) -> state and step\(state, action\) -> "
        r"\(state, StepResult\); in the place of reset and step, session\(\) -> Session would do",
    ),
    "half of the functions": (
        "class Own(Guess): step = None",
        r"lacks step\(state, action\) -> \(state, StepResult\);",
    ),
    "other arguments": (
        "class Own(Guess):\n    def make_task(self, seed): ...",
        r"make_task is a function of \(seed\); expected make_task\(seed, difficulty\) -> Task",
    ),
    "no function": ("class Own(Guess): make_task = 3", r"make_task is a int; expected make_task\(seed, difficulty\)"),
    "cannot be made": ("class Own(Guess):\n    def __init__(self, size): ...", "making it raised TypeError"),
    "no range": ("class Own(Guess): DIFFICULTIES = [1, 2]", r"DIFFICULTIES is \[1, 2\]; expected a range"),
    "raises": (
        "class Own(Guess):\n    def make_task(self, seed, difficulty): return {}['a']",
        r"make_task\(0, 1\) raised KeyError: 'a'",
    ),
    "no task": (
        "class Own(Guess):\n    def make_task(self, seed, difficulty): return {}",
        "returned a dict; expected a ling_jax.envs.Task",
    ),
    "no JSON": (
        "class Own(Guess):\n    def make_task(self, s, d): return task(s, d, hidden={'n': {1, 2}})",
        "set is not JSON serializable",
    ),
    "no messages": (
        "class Own(Guess):\n    def make_task(self, s, d): return task(s, d, messages=[])",
        "messages is .*at least one",
    ),
    "no turns": (
        "class Own(Guess):\n    def make_task(self, s, d): return task(s, d, max_turns=0)",
        "max_turns is 0; expected a whole number from 1",
    ),
    "another task each time": (
        "class Own(Guess):\n    def make_task(self, s, d): return task(random.randrange(1 << 60), d, "
        "hidden={'n': random.random()})",
        r"make_task\(0, 1\) of .* made two different tasks; draw from random.Random\(seed\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_an_environment_is_refused_with_what_would_do(own, what):
    code, message = REFUSED[what]
    with pytest.raises(ValueError) as error:
        check_tasks(TaskSource(environment=own(code), count=4), "tasks[0]")
    assert re.search(message, str(error.value)), str(error.value)
    assert str(error.value).startswith("tasks[0]") or "environment own_environment" in str(error.value)


@pytest.mark.parametrize("solution", ["return 1 / 0", "return 'text'", "return [1]"])
def test_a_solution_that_is_none_names_its_environment(own, solution):
    name = own(f"class Own(Guess):\n    def solution(self, task): {solution}")
    with pytest.raises(ValueError, match=f"environment {name}: solution of task 0"):
        environment(name).solution(next(tasks(TaskSource(environment=name, count=1))))


def test_a_name_without_a_module_offers_the_nearest_and_the_form_that_works():
    with pytest.raises(ValueError, match=r"'lookups', did you mean 'lookup'.*or module:name for one of your own"):
        environment("lookups")
    with pytest.raises(ValueError, match=r"tasks.0.: environment is 'no_such_module:Env': there is no module no_such"):
        check_tasks(TaskSource(environment="no_such_module:Env", count=1), "tasks[0]")
    with pytest.raises(ValueError, match=r"tasks.0. has neither path nor environment"):
        check_tasks(TaskSource(), "tasks[0]")


def test_draws_that_all_ask_the_same_thing_end_with_what_to_change():
    def draw(rng, difficulty):
        return dict(messages=[{"role": "user", "content": "Guess."}], hidden={}, max_tokens=1, max_turns=1)

    with pytest.raises(ValueError, match="none of 1000 draws of difficulty 1 has a prompt that is"):
        for seed in (0, HELD_OUT_SEEDS):
            draw_task("guess", seed, 1, range(1, 2), draw)
