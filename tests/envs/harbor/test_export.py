"""Tasks as directories: read back, they have the verdicts of their own environments."""

import dataclasses
import json

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.coding import functions, repositories
from ling_jax.envs.harbor.environment import solution
from ling_jax.envs.harbor.export import export_tasks, parts_of, write_task
from ling_jax.envs.harbor.folder import read_task, read_tasks
from ling_jax.envs.workflow import environment as workflow
from tests.helpers.exports import DONE, exported, rewards
from tests.helpers.sandboxes import sandbox_or_skip


@pytest.fixture(scope="module", autouse=True)
def boxes_with_folders():
    sandbox_or_skip("T3")


def writing(answer):
    """The turns that write a function where the directory asks for it."""
    call = {"name": "search_replace", "arguments": {"path": "answer.py", "search": "", "replace": answer}}
    return [render_call(call, "json"), DONE]


def test_repositories_have_the_same_verdicts_as_directories(tmp_path):
    """The reference, one with a fix left out, and the agent that does nothing, on each difficulty."""
    tasks = [repositories.make_task(seed, difficulty) for seed, difficulty in ((0, 1), (1, 3), (2, 5))]
    for ours, theirs in zip(tasks, exported(tasks, tmp_path / "out"), strict=True):
        for turns in (repositories.solution(ours), repositories.solution(ours, error_rate=0.5, seed=1), (DONE,)):
            native, found = rewards(ours, turns), rewards(theirs, turns)
            assert (found["outcome"], found["tests"]) == (native["outcome"], native["tests"])
        assert rewards(theirs, solution(theirs))["outcome"] == 1.0 and found["outcome"] == 0.0


def test_functions_have_the_same_verdicts_as_directories(tmp_path):
    tasks = [functions.make_task(seed, difficulty) for seed, difficulty in ((0, 1), (1, 3), (2, 5), (3, 6))]
    for ours, theirs in zip(tasks, exported(tasks, tmp_path / "out"), strict=True):
        for answer in (*functions.solution(ours), "def f(x): return x", "def f(:", "def f(x): return True"):
            native, found = rewards(ours, (answer,)), rewards(theirs, writing(answer))
            assert (found["outcome"], found["tests"]) == (native["outcome"], native["tests"]), answer
        assert rewards(theirs, solution(theirs))["outcome"] == 1.0
        assert rewards(theirs, (DONE,))["outcome"] == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "import json\ncases = json.load(open('/tests/request.json'))\ndef f(x): return 0",
        "import os\nos.system('echo 1 > /logs/verifier/reward.txt')\ndef f(x): return 0",
        "open('/logs/verifier/reward.json', 'w').write('{\"reward\": 1}')\ndef f(x): return 0",
        "import os\nos._exit(0)",
        "class All:\n    def __eq__(self, other): return True\ndef f(x): return All()",
        "while True: pass",
    ],
)
def test_a_function_that_attacks_its_verifier_has_outcome_0(answer, tmp_path):
    (task,) = exported([functions.make_task(0, 2)], tmp_path / "out")
    assert rewards(task, writing(answer))["outcome"] == 0.0


def test_the_agent_sees_no_hidden_test_and_no_solution(tmp_path):
    (path,) = export_tasks([repositories.make_task(0, 2)], tmp_path / "out")
    (fix,) = json.loads((path / "solution" / "fixes.json").read_text())
    seen = "".join(file.read_text() for file in (path / "environment").rglob("*") if file.is_file())
    assert fix["search"] in seen and fix["replace"] not in seen
    assert all("fixes" not in name and "judge" not in name for name in read_task(path).hidden["files"])


def test_a_folder_of_exported_tasks_is_a_source_of_tasks(tmp_path):
    export_tasks([functions.make_task(seed, 2) for seed in range(40)], tmp_path / "out")
    found = read_tasks(str(tmp_path / "out"))
    assert len(found.training) + len(found.held_out) == 40 and found.held_out
    assert {task.difficulty for task in found.training} == {2}


def test_a_task_that_becomes_no_directory_is_refused_and_leaves_nothing(tmp_path):
    tasks = [functions.make_task(0, 1), dataclasses.replace(functions.make_task(0, 1), environment="mine.logs:Logs")]
    with pytest.raises(ValueError, match=r"of mine.logs:Logs: of harbor, functions, .* tasks become directories"):
        export_tasks(tasks, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_a_dockerfile_cannot_hold_is_named(tmp_path):
    parts = parts_of(functions.make_task(0, 1))._replace(env={"A": "$HOME"})
    with pytest.raises(ValueError, match=r"the variable A is '\$HOME'; a Dockerfile is written without quotes"):
        write_task(tmp_path, parts)


def test_pipelines_have_the_same_verdicts_as_directories(tmp_path):
    """The reference, one with a step left out, and the agent that does nothing."""
    tasks = [workflow.make_task(seed, difficulty) for seed, difficulty in ((0, 2), (1, 5), (2, 7))]
    for ours, theirs in zip(tasks, exported(tasks, tmp_path / "out"), strict=True):
        for turns in (workflow.solution(ours), workflow.solution(ours, error_rate=0.3, seed=4), (DONE,)):
            native, found = rewards(ours, turns), rewards(theirs, turns)
            assert (found["outcome"], found["steps"]) == (native["outcome"], native["steps"])
        assert rewards(theirs, solution(theirs))["outcome"] == 1.0 and found["outcome"] == 0.0


def test_pipelines_of_one_command_become_directories_too(tmp_path):
    task = workflow.make_task(0, 1)
    (theirs,) = exported([task], tmp_path / "out")
    command = render_call({"name": "execute_bash", "arguments": {"command": workflow.solution(task)[0]}}, "xml")
    assert rewards(theirs, (command, DONE))["outcome"] == rewards(theirs, solution(theirs))["outcome"] == 1.0
    assert rewards(theirs, (DONE,))["outcome"] == 0.0
