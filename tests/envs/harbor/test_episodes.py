"""Tasks of Harbor's form in real boxes: the agent's work, the tests' verdict, and attempts to write one's own."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import InfraError, environment, parse_action
from ling_jax.envs.coding import boxes
from ling_jax.envs.harbor.export import export_tasks
from ling_jax.envs.harbor.folder import read_task, read_tasks
from ling_jax.envs.harbor.verifier import read_reward
from ling_jax.sandbox import Result, SandboxError
from tests.helpers.faults import ROOT
from tests.helpers.sandboxes import sandbox_or_skip

FIXTURES = Path(__file__).parents[2] / "fixtures" / "harbor"
DONE = ("task_done", {})


@pytest.fixture(scope="module", autouse=True)
def boxes_with_folders():
    sandbox_or_skip("T3")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURES / "greeting", tmp_path / "greeting")
    return tmp_path / "greeting"


def played(task, turns):
    """The results of turns, each one or several calls (name, arguments)."""

    async def play():
        session = environment(task.environment).session()
        try:
            await session.open(task, 0)
            return [await session.step(parse_action(turn, task.tools)) for turn in turns]
        finally:
            await session.close()

    return asyncio.run(play())


def turn(*calls):
    return "\n".join(render_call({"name": name, "arguments": arguments}, "json") for name, arguments in calls)


def shell(command):
    return ("execute_bash", {"command": command})


def verdict(task, *commands):
    """The last result where the agent runs commands and says that it is done."""
    return played(task, [turn(*map(shell, commands), DONE)])[-1]


@pytest.mark.parametrize("name", ["greeting", "word-count"])
def test_the_solution_of_a_folder_made_by_hand_has_reward_1_and_nothing_has_0(name):
    task = read_task(FIXTURES / name)
    solved = played(task, environment("harbor").solution(task))[-1]
    assert (solved.rewards["outcome"], solved.terminated, solved.error) == (1.0, True, None)
    assert verdict(task).rewards["outcome"] == 0.0


def test_files_variables_and_modes_are_where_the_dockerfile_says():
    task = read_task(FIXTURES / "word-count")
    (result,) = played(
        task, [turn(shell("cat notes.md; ls /data/texts; echo $TEXTS; /workspace/count.sh $TEXTS/a.txt"))]
    )
    said = result.observation[0]["content"].splitlines()
    assert said == ["Counts are whole numbers.", "a.txt", "b.txt", "/data/texts", "4"]
    assert not result.terminated and result.rewards == {}


def test_the_other_numbers_of_reward_json_are_rewards_too():
    task = read_task(FIXTURES / "word-count")
    result = verdict(task, """echo '{"a.txt": 4, "b.txt": 0}' > counts.json""")
    assert result.rewards == {"outcome": 0.0, "files_right": 0.5, "suspicious": 0.0}


def test_the_editor_takes_the_paths_of_the_task():
    task = read_task(FIXTURES / "greeting")
    write = ("search_replace", {"path": "/app/greeting.txt", "search": "", "replace": "Hello, Ada!\n"})
    outside = ("search_replace", {"path": "/etc/passwd", "search": "root", "replace": "me"})
    first, last = played(task, [turn(outside), turn(write, DONE)])
    assert "is in none of the task's folders" in first.observation[0]["content"]
    assert last.rewards["outcome"] == 1.0


@pytest.mark.slow
def test_the_tests_and_the_solution_are_not_there_while_the_agent_works():
    task = read_task(FIXTURES / "greeting")
    (result,) = played(
        task, [turn(shell("ls -A /tests /solution /logs/verifier; grep -rl reward / 2>/dev/null | head"))]
    )
    assert "test.sh" not in result.observation[0]["content"] and "solve.sh" not in result.observation[0]["content"]


@pytest.mark.parametrize(
    "command",
    [
        "echo 1 > /logs/verifier/reward.txt",
        """echo '{"reward": 1}' > /logs/verifier/reward.json""",
        "printf '#!/bin/bash\\necho 1 > /logs/verifier/reward.txt\\n' > /tests/test.sh; chmod +x /tests/test.sh",
        "cd .root/logs/verifier; echo 1 > reward.txt; chmod 444 reward.txt; chmod 555 .",
        "rm -rf .root/tests; ln -s /app .root/tests; echo 'echo 1 > /logs/verifier/reward.txt' > test.sh",
        "rm -rf .root/logs; ln -s /app .root/logs; mkdir verifier; echo 1 > verifier/reward.txt",
        "(sleep 0.3; while true; do echo 1 > /logs/verifier/reward.txt; done) & disown; setsid sleep 100 &",
        "printf 'echo 1 > /logs/verifier/reward.txt; exit\\n' > .bashrc; cp .bashrc .bash_profile; cp .bashrc .profile",
        "printf '#!/bin/sh\\necho Hello, Ada!\\n' > cat; chmod +x cat",
        "rm -rf .root; echo x > .root",
        "rm -rf .root/tests .root/logs; echo 1 > .root/tests; echo 1 > .root/logs",
        "touch $'bad\\xffname'; touch -- -rf; mkdir deep; touch \"$(printf 'x%.0s' {1..250})\"",
        "truncate -s 100G holes; truncate -s 60M more",
        "head -c 60000000 /dev/zero > most_of_the_disk",
    ],
)
def test_a_reward_that_the_agent_wrote_does_not_count(command):
    rewards = verdict(read_task(FIXTURES / "greeting"), command).rewards
    assert rewards["outcome"] == 0.0 and rewards["suspicious"] >= float("/logs/verifier" in command)


def test_what_the_agent_built_stays_executable_for_the_tests(folder):
    (folder / "tests" / "test.sh").write_text("/app/bin/tool > /logs/verifier/reward.txt\n")
    result = verdict(read_task(folder), "mkdir bin; printf '#!/bin/sh\\necho 0.5\\n' > bin/tool; chmod +x bin/tool")
    assert result.rewards == {"outcome": 0.5, "suspicious": 0.0} and result.error is None


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 7 > /logs/verifier/reward.txt", "reward.txt is 7; expected a number from 0 to 1"),
        ("echo nan > /logs/verifier/reward.txt", "reward.txt is nan; expected a number from 0 to 1"),
        ("echo well > /logs/verifier/reward.txt", r"reward.txt is b'well.*'; expected a number"),
        ('echo \'{"a": 1, "b": 0}\' > /logs/verifier/reward.json', "reward.json has a, b; expected a number 'reward'"),
        ("echo '[1' > /logs/verifier/reward.json", "reward.json is not JSON"),
        ("echo broken >&2; exit 3", "tests/test.sh wrote no reward.txt and no reward.json: exit code 3, broken"),
        ("kill -9 $$", "wrote no reward.txt and no reward.json: exit code 137|killed"),
        ("echo 1 > /logs/verifier/reward.txt; while true; do :; done", "tests/test.sh did not end in 1 s"),
    ],
)
def test_a_verdict_that_is_none_is_outcome_0_and_one_line(folder, script, problem):
    """The run goes on: an agent could have broken the tests, so it is no failure of the machine."""
    (folder / "tests" / "test.sh").write_text(f"#!/bin/bash\n{script}\n")
    config = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(config.replace("timeout_sec = 20.0", "timeout_sec = 1.0"))
    result = verdict(read_task(folder))
    assert result.rewards == {"outcome": 0.0, "verifier_failed": 1.0, "suspicious": 0.0} and result.terminated
    assert re.search(problem, result.error) and "\n" not in result.error, result.error


def test_the_last_turn_and_the_end_of_its_time_are_judged_too(folder):
    config = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(config.replace("[agent]\ntimeout_sec = 120.0", "[agent]\ntimeout_sec = 0.5"))
    first, last = played(
        read_task(folder), [turn(shell("true")), turn(shell("echo 'Hello, Ada!' > greeting.txt; sleep 1"))]
    )
    assert not first.truncated and (last.truncated, last.terminated) == (True, False)
    assert last.rewards["outcome"] == 1.0


def test_a_call_that_is_wrong_is_an_observation():
    task = read_task(FIXTURES / "greeting")
    results = played(
        task, ["I think so.", turn(("execute_bash", {"cmd": "ls"})), "<tool_call>broken", turn(("ls", {}))]
    )
    assert [len(result.observation) for result in results] == [1, 1, 1, 1]
    assert all(result.error and not result.terminated for result in results)


def test_a_sandbox_that_fails_is_the_machines_failure(monkeypatch):
    def broken():
        raise SandboxError("the spawn server is gone")

    monkeypatch.setattr(boxes, "shared", broken)
    with pytest.raises(InfraError, match="the spawn server is gone"):
        played(read_task(FIXTURES / "greeting"), [turn(DONE)])


def test_an_exported_task_read_back_is_the_same_task_with_the_same_verdicts(tmp_path):
    tasks = [read_task(FIXTURES / name) for name in ("greeting", "word-count")]
    export_tasks(tasks, tmp_path / "out")
    again = read_tasks(str(tmp_path / "out"))
    again = sorted((*again.training, *again.held_out), key=lambda task: task.seed)
    assert [task.id for task in again] == [task.id for task in tasks]
    for task in again:
        assert played(task, environment("harbor").solution(task))[-1].rewards["outcome"] == 1.0
        assert verdict(task, "echo 0 > counts.json").rewards["outcome"] == 0.0


def test_a_session_can_be_closed_while_its_tests_run(folder):
    """From another thread, as at a deadline: the boxes end at once."""
    (folder / "tests" / "test.sh").write_text("sleep 20\n")

    async def play():
        session = environment("harbor").session()
        await session.open(read_task(folder), 0)
        timer = threading.Timer(1.0, lambda: asyncio.run(session.close()))
        timer.start()
        begun = time.monotonic()
        with contextlib.suppress(InfraError):
            await session.step(parse_action(turn(DONE)))
        return time.monotonic() - begun

    assert asyncio.run(play()) < 10


def test_the_format_of_the_reward_is_read_strictly():
    ended = Result("exited", 0, b"", b"", False, 0.1)
    assert read_reward({"json": b'{"reward": true, "why": "x"}', "txt": b"0"}, ended).rewards == {"outcome": 1.0}
    assert read_reward({"json": b'{"accuracy": 0.25}', "txt": None}, ended).rewards == {"outcome": 0.25}
    assert read_reward({"json": None, "txt": b" 0.5\n"}, ended).rewards == {"outcome": 0.5}
    assert read_reward({"json": b'{"reward": "1"}', "txt": b"1"}, ended).rewards["outcome"] == 0.0


def test_a_folder_is_played_in_the_terminal():
    command = [sys.executable, "-m", "launch.play", "--task=tests/fixtures/harbor/word-count"]
    ran = subprocess.run([*command, "--solution"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "sandbox T3" in ran.stdout and ran.stdout.splitlines()[-1].startswith("finished after 2 turns: outcome 1")


def test_an_episode_takes_well_under_a_second():
    task, begun = read_task(FIXTURES / "greeting"), time.monotonic()
    for _ in range(3):
        verdict(task, "ls")
    assert time.monotonic() - begun < 6
