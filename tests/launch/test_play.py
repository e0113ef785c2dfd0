"""A task by hand in the terminal."""

import os
import re
import subprocess
import sys

import pytest

from launch.play import turn_of
from ling_jax.envs import environment, parse_action
from tests.helpers.faults import ROOT
from tests.helpers.sandboxes import sandbox_or_skip

TOOLS = environment("tools").make_task(0, 2).tools
SHELL = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {p: {"type": "string"} for p in of}}}}
    for name, of in (
        ("execute_bash", ["command"]),
        ("search_replace", ["path", "search", "replace"]),
        ("task_done", []),
    )
]


OWN = """
from ling_jax.envs import StepResult, Task

class Mute:
    def make_task(self, seed, difficulty):
        return Task("mute", difficulty, seed, [{"role": "user", "content": f"say {seed}"}], {}, 9, 1)
    def reset(self, task, seed):
        return task
    def step(self, task, action):
        return task, StepResult([], {"outcome": float(action.content == task.prompt)}, True, False, None)

class Echo(Mute):
    def solution(self, task):
        return (task.prompt,)
"""


@pytest.fixture(scope="module", autouse=True)
def own_module(tmp_path_factory):
    """A module of the user's own, with two environments."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "echoes.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


def play(*flags, said=""):
    command = [sys.executable, "-m", "launch.play", *flags]
    return subprocess.run(command, cwd=ROOT, env=os.environ, input=said, capture_output=True, text=True, timeout=120)


def calls(text, tools=SHELL):
    action = parse_action(turn_of(text, tools), tools)
    assert not action.errors
    return [(call["name"], call["arguments"]) for call in action.tool_calls]


def test_a_line_is_the_call_that_it_says():
    assert calls("/execute_bash ls -l | grep 'a b' > x=1") == [
        ("execute_bash", {"command": "ls -l | grep 'a b' > x=1"})
    ]
    assert calls("/task_done") == [("task_done", {})]
    assert calls("/search_replace path=a.py search='x = 1' replace=") == [
        ("search_replace", {"path": "a.py", "search": "x = 1", "replace": ""})
    ]
    assert calls('/search_replace {"path": "a", "search": "1\\n2", "replace": "<arg_value>"}') == [
        ("search_replace", {"path": "a", "search": "1\n2", "replace": "<arg_value>"})
    ]
    assert calls("/transfer to=ann amount=3", [_tool("transfer", to="string", amount="integer")]) == [
        ("transfer", {"to": "ann", "amount": 3})
    ]
    assert calls("no call, a path /tmp") == []


def _tool(name, **types):
    return {"type": "function", "function": {"name": name, "parameters": {
        "properties": {key: {"type": kind} for key, kind in types.items()}}}}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/execute_bsh ls", r"there is no /execute_bsh, did you mean 'execute_bash'\?; there are /execute_bash"),
        ("/search_replace a.py", r"'a.py' has no name; write path=… search=… replace=…"),
        ("/search_replace {nothing", r"is not JSON"),
        ("/search_replace path='a", r"No closing quotation"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(text, problem):
    with pytest.raises(ValueError, match=problem):
        turn_of(text, SHELL)


def test_a_task_without_tools_is_answered_in_a_line():
    task = environment("running_sums").make_task(3, 1)
    (turn,) = environment("running_sums").solution(task)
    ran = play("--task=running_sums", "--seed=3", said=f"{turn}\n")
    assert ran.returncode == 0 and task.prompt in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("finished after 1 turn: outcome 1")


def test_a_wrong_line_is_said_again_and_the_episode_goes_on():
    ran = play("--task=tools", "--difficulty=1", said="/nothing\nI do nothing.\n")
    assert ran.returncode == 0 and "error: there is no /nothing" in ran.stderr
    assert "finished after 1 turn: outcome 0" in ran.stdout and "── tools ──" in ran.stdout


def test_the_end_of_input_leaves_the_episode_without_rewards():
    ran = play("--task=lookup", said="")
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "the episode has not ended: no rewards"


@pytest.mark.parametrize("name", ["running_sums", "tools", "lookup", "echoes:Echo", "functions", "repositories"])
def test_the_solution_is_played(name):
    if name in ("functions", "repositories"):
        tier = sandbox_or_skip().tier
    ran = play(f"--task={name}", "--solution")
    assert (f"sandbox {tier}" in ran.stdout) if name in ("functions", "repositories") else "sandbox" not in ran.stdout
    assert ran.returncode == 0, ran.stderr
    assert "outcome 1" in ran.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--task=runing_sums"], "environment is 'runing_sums', did you mean 'running_sums'?"),
        (["--task=tools", "--difficulty=99"], "tools: difficulty is 99; expected 1 to 12"),
        (["--task=tests/fixtures/harbor", "--seed=9"], "--seed=9: tests/fixtures/harbor has 2 tasks, from 0 to 1"),
        (["--task=launch"], "launch holds no task: no folder in it has task.toml"),
        (["--task=echoes:Mute", "--solution"], "--solution: environment .* knows no solutions"),
    ],
)
def test_a_task_that_is_not_there_is_one_line(flags, problem):
    ran = play(*flags)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1 and re.search(problem, ran.stderr), ran.stderr
