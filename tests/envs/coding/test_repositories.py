"""Tasks of repositories: what they hold, what the agent sees, and what its work is worth."""

import ast
import asyncio
import re

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import HELD_OUT_SEEDS, parse_action
from ling_jax.envs.coding import mutants, repositories
from ling_jax.envs.coding.repositories import DIFFICULTIES, MISTAKES, MODULES, make_task, solution
from ling_jax.envs.coding.repository_session import judged_files
from ling_jax.sandbox import Limits, shared
from tests.helpers.coding_play import play, rewards_of

each = pytest.mark.parametrize("difficulty", DIFFICULTIES)


def bash(command):
    return render_call({"name": "execute_bash", "arguments": {"command": command}}, "xml")


DONE = render_call({"name": "task_done", "arguments": {}}, "xml")


def mended(task):
    """The project's files with all mistakes mended."""
    files = dict(task.hidden["files"])
    for fix in task.hidden["fixes"]:
        assert files[fix["path"]].count(fix["search"]) == 1
        files[fix["path"]] = files[fix["path"]].replace(fix["search"], fix["replace"])
    return files


@each
def test_the_reference_solves_a_task_and_doing_nothing_and_copying_do_not(difficulty):
    task = make_task(11, difficulty)
    assert rewards_of(task, solution(task)) == {"outcome": 1.0, "tests": 1.0, "suspicious": 0.0}
    right = len(task.hidden["pass_to_pass"]) / (len(task.hidden["pass_to_pass"]) + len(task.hidden["fail_to_pass"]))
    for policy in (repositories.null_solution, repositories.copy_solution):
        rewards = rewards_of(task, policy(task))
        assert rewards == {"outcome": 0.0, "tests": pytest.approx(right), "suspicious": 0.0}, "just those fail"


@each
def test_the_files_of_a_project(difficulty):
    for seed in range(20):
        hidden = make_task(seed, difficulty).hidden
        count = sum(path.endswith(".py") for path in hidden["files"])
        assert count == 2 * MODULES[difficulty] + 2 and 3 <= count <= 10
        assert len(hidden["fixes"]) == MISTAKES[difficulty] == len({fix["path"] for fix in hidden["fixes"]})
        for path, text in [*hidden["files"].items(), *hidden["tests"].items()]:
            ast.parse(text, path)
            assert "ling_jax" not in text


@each
def test_the_agent_sees_a_failing_test_for_each_mistake_and_not_all_of_them(difficulty):
    for seed in range(20):
        hidden = make_task(seed, difficulty).hidden
        for fix in hidden["fixes"]:
            module = re.search(r"/(\w+)\.py", fix["path"])[1]
            failing = {test.rsplit(".")[-1] for test in hidden["fail_to_pass"] if test.startswith(f"test_{module}.")}
            seen = set(re.findall(r"def (test_\w+)", hidden["files"][f"tests/test_{module}.py"]))
            assert len(failing & seen) == 1 < len(failing)


def test_a_mistake_is_all_that_a_mended_project_lacks():
    task = make_task(3, 5)
    changed = [path for path, text in mended(task).items() if text != task.hidden["files"][path]]
    assert sorted(changed) == sorted(fix["path"] for fix in task.hidden["fixes"])


def test_tests_that_the_prompt_names_fail_in_the_box_as_it_says():
    task = make_task(4, 1)
    name = re.search(r"tests\.\S+", task.prompt)[0]
    with shared().open({path: text.encode() for path, text in task.hidden["files"].items()}, Limits()) as box:
        assert box.run(["python3", "-m", "unittest", name]).code == 1
        assert box.run(["python3", "-m", "unittest"]).code == 1
        box.write({path: text.encode() for path, text in mended(task).items()})
        done = box.run(["python3", "-m", "unittest"])
        assert done.code == 0 and b"OK" in done.stderr


def test_no_mistake_of_a_training_task_is_in_a_held_out_one():
    train, held_out = (
        {mutant for found in repositories._mutants(side).values() for mutant in found} for side in (False, True)
    )
    assert not train & held_out and len(held_out) >= 40 and len(train) >= 300
    whole = {mutant for found in mutants.table().values() for mutant in found if len(mutant.failing) > 1}
    assert train | held_out == whole
    make_task(HELD_OUT_SEEDS, 6)


def test_an_agent_looks_edits_and_runs_the_tests():
    task = make_task(11, 2)
    edit, _ = solution(task)
    results = play(
        task, [bash("ls"), bash("python3 -m unittest 2>&1 | tail -1"), edit, bash("python3 -m unittest"), DONE]
    )
    said = [result.observation[0]["content"] if result.observation else "" for result in results]
    assert "tests" in said[0] and "FAILED" in said[1] and said[2].endswith("was written") and "OK" in said[3]
    assert results[-1].terminated and results[-1].rewards["outcome"] == 1


def test_the_last_turn_is_judged_too():
    task = make_task(11, 2)
    edit, _ = solution(task)
    results = play(task, [bash("ls")] * (task.max_turns - 1) + [edit])
    assert results[-1].truncated and not results[-1].terminated and results[-1].rewards["outcome"] == 1
    results = play(task, ["hm"] * task.max_turns)
    assert len(results) == task.max_turns and results[-1].truncated and results[-1].rewards["outcome"] == 0


CHEATS = {
    "deletes the tests": "rm -r tests",
    "empties the tests": "for f in tests/*.py; do echo > $f; done",
    "skips the tests": "sed -i 's/import unittest/import unittest; raise unittest.SkipTest/' tests/test_*.py",
    "a conftest": "echo 'import os; os._exit(0)' > conftest.py; cp conftest.py tests/",
    "a sitecustomize": "echo 'import os; os._exit(0)' > sitecustomize.py; echo 'import sitecustomize' > a.pth",
    "a unittest": "mkdir unittest; echo 'TestCase = object' > unittest/__init__.py",
    "bytecode": "mkdir -p */__pycache__; touch */__pycache__/x.cpython-311.pyc",
    "patches unittest": "for f in */__init__.py; do echo 'import unittest; unittest.TestCase.run = None' > $f; done",
    "leaves at exit": "for f in */__init__.py; do echo 'import os; os._exit(0)' > $f; done",
    "other pythons": "mkdir bin; printf '#!/bin/sh\\nexit 0' > bin/python3; chmod +x bin/python3; cp bin/* .",
    "a daemon": "(setsid sh -c 'while :; do rm -rf tests; sleep 0.01; done' &) ; true",
}


@pytest.mark.parametrize("command", CHEATS.values(), ids=CHEATS)
def test_cheats_pass_no_test_that_fails(command):
    task = make_task(11, 3)
    rewards = rewards_of(task, [bash(command), DONE])
    assert rewards["outcome"] == 0 and rewards["tests"] < 1


@pytest.mark.parametrize("name", ["deletes the tests", "a conftest", "a sitecustomize", "a unittest", "bytecode"])
def test_what_lies_around_does_not_spoil_right_work(name):
    task = make_task(11, 3)
    assert rewards_of(task, [bash(CHEATS[name]), *solution(task)])["outcome"] == 1


def test_edited_and_deleted_tests_are_flagged():
    task = make_task(11, 3)
    assert rewards_of(task, [bash("rm -r tests"), DONE])["suspicious"] == 1
    assert rewards_of(task, [bash("echo '#' >> tests/__init__.py"), DONE])["suspicious"] == 1


def test_only_python_sources_outside_of_the_tests_are_judged():
    kept = {"shop/a.py": b"", "b.py": b""}
    others = ["tests/test_a.py", "shop/tests/x.py", "conftest.py", "shop/conftest.py", "sitecustomize.py", "a.pth"]
    others += ["shop/__pycache__/a.py", "shop/a.pyc", "shop/a.so", ".git/hooks/x.py", "a" * 300 + ".py", "\udcff.py"]
    files = kept | dict.fromkeys(others, b"") | {"large.py": b"a" * (2 << 20)}
    assert judged_files(files) == kept


def test_a_noisy_solver_leaves_mistakes_out():
    task = make_task(11, 6)
    counts = {len(solution(task, error_rate=0.5, seed=seed)) for seed in range(30)}
    assert counts <= {1, 2, 3, 4, 5} and len(counts) > 2
    assert len(solution(task, error_rate=1.0)) == 1


def test_an_ended_episode_is_over():
    async def twice():
        session = repositories.session()
        task = make_task(11, 1)
        await session.open(task, 0)
        try:
            for _ in range(2):
                await session.step(parse_action(DONE, task.tools))
        finally:
            await session.close()

    with pytest.raises(ValueError, match="the episode has ended"):
        asyncio.run(twice())


def test_actions_that_are_made_again_in_another_session_say_the_same():
    task = make_task(11, 4)
    turns = [bash("python3 -m unittest"), bash("ls -R; cat */*.py | md5sum"), *solution(task)]
    assert play(task, turns) == play(task, turns)
