"""docs/own_tasks.md, word by word: the files that it says to save, and its commands."""

import asyncio
import json
import re
import subprocess
import sys

import pytest

from ling_jax.align.rewards import named_reward
from ling_jax.envs import environment, parse_action
from ling_jax.envs.sources import TaskSource, check_tasks, held_out_of, tasks
from tests.helpers.faults import ROOT
from tests.test_docs import shell_lines

PAGE = ROOT / "docs" / "own_tasks.md"
FILES = dict(re.findall(r"[Ss]ave it as\s+`(mine/\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(), re.S))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with what the page says to save, which is the current one."""
    (tmp_path / "mine").mkdir()
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_page_says_what_to_save():
    assert list(FILES) == ["mine/make.py", "mine/curve.py", "mine/rewards.py", "mine/guess.py"]


def test_its_questions_reward_and_environment_are_what_a_run_takes(folder):
    subprocess.run([sys.executable, "mine/make.py"], check=True)
    source = TaskSource(path="mine/questions.jsonl")
    check_tasks(source, "tasks[0]")
    held_out = held_out_of(source, 99)
    assert source.size + len(held_out) == 200 and f"the {len(held_out)} held-out questions" in PAGE.read_text()
    asked = {task.prompt for task in (*tasks(source), *held_out)}
    chats = [json.loads(line)["messages"] for line in (folder / "mine/chats.jsonl").read_text().splitlines()]
    assert not asked & {messages[0]["content"] for messages in chats}
    assert named_reward("mine.rewards:score").high == 1
    own = TaskSource(environment="mine.guess:Guess", count=20)
    check_tasks(own, "tasks[0]")
    for task in tasks(own):
        assert guesses(task, "x", "20", f"so {task.hidden['number']}")[-1].rewards == {"outcome": 1.0}
        assert guesses(task, "0", "99", "0")[-1].rewards == {"outcome": 0.0}


def guesses(task, *turns):
    """The results of turns, up to the end of the episode."""

    async def played():
        session, found = environment(task.environment).session(), []
        await session.open(task, 0)
        for turn in turns:
            found.append(await session.step(parse_action(turn)))
            if found[-1].terminated:
                return found
        raise AssertionError(f"{turns} did not end {task}")

    return asyncio.run(played())


@pytest.mark.slow
def test_its_commands_run_in_their_order(folder, monkeypatch):
    """With fewer steps: what they reach stands on the page with the machine that it was measured on."""
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for line in shell_lines(PAGE):
        words = f"{line} --config.train.steps=2" if "-m launch" in line else line
        done = subprocess.run(words.replace("python", sys.executable, 1), shell=True, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if line == "python mine/curve.py":
            assert re.fullmatch(r"step   1  [01]\.\d\d\n", done.stdout)
