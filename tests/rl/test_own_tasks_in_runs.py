"""Runs on files and environments of one's own: what is said before the first step, and that they learn."""

import dataclasses
import json

import pytest

from ling_jax.envs.reasoning import questions
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.loop import train
from ling_jax.rl.replay import replay
from tests.helpers.rl_run import prepared, small_config

GUESS = """
import random
from ling_jax.envs import StepResult, Task

class Guess:
    def make_task(self, seed, difficulty):
        number = random.Random(seed).randrange(1, 10)
        return Task(environment="guess", difficulty=difficulty, seed=seed,
            messages=[{"role": "user", "content": "Guess my number."}], hidden={"number": number},
            max_tokens=24, max_turns=3)
    def reset(self, task, seed):
        return 0
    def step(self, turns, action):
        right, last = str(9) in action.content, turns == 2
        told = [] if right or last else [{"role": "user", "content": "No."}]
        rewards = {"outcome": float(right)} if right or last else {}
        return turns + 1, StepResult(told, rewards, right, last and not right, None)
"""
HANGING = """
import asyncio

class Hanging(Guess):
    replayable = True
    session = lambda self: Hanging()
    solution = lambda self, task: ("9",)
    async def open(self, task, seed): ...
    async def step(self, action): await asyncio.sleep(60)
    async def close(self): ...
"""


def own_file(path, count=40, **fields):
    records = [{"prompt": f"Say {i}.", "answer": i} | fields for i in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return TaskSource(path=str(path))


def config_of(start, source, **fields):
    config = small_config(start, objective="grpo", reward="outcome", rollout=dict(max_tokens=24), dpr_steps=0, **fields)
    return dataclasses.replace(config, tasks=(source,))


@pytest.mark.usefixtures("compiled_once")
def test_a_file_of_prompts_is_learnt_from_and_its_held_out_ones_are_counted(start, tmp_path, capsys):
    source = own_file(tmp_path / "own.jsonl")
    train(prepared(config_of(start, source, steps=2, eval_tasks=30), tmp_path / "run"))
    told = capsys.readouterr().out
    held_out = 40 - source.size
    assert f"{source.size} of questions, from {source.path}" in told
    assert f"{held_out} distinct tasks, all that differ of the 30 of each source" in told
    metrics = json.loads((tmp_path / "run/evaluation/000002/summary.json").read_text())["metrics"]
    assert {metric["name"]: metric["n"] for metric in metrics}["questions/accuracy"] == held_out


@pytest.mark.usefixtures("compiled_once")
def test_an_environment_of_ones_own_is_played_in_several_turns(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_guess.py").write_text(GUESS)
    source = TaskSource(environment="own_guess:Guess", difficulties=(2, 3), count=50)
    line = train(prepared(config_of(start, source, steps=2, eval_tasks=4), tmp_path / "run"))
    assert line["env_failed"] == line["infra_failed"] == 0 and line["answers"] == 4
    told = capsys.readouterr().out
    assert "own_guess:Guess has no solution: nothing is played before the first step" in told
    assert "WARNING: 4 of 4 held-out tasks of own_guess:Guess are trained on, too" in told
    (record, *_) = map(json.loads, (tmp_path / "run/evaluation/000002/samples.jsonl").read_text().splitlines())
    assert record["environment"] == "own_guess:Guess"


@pytest.mark.usefixtures("compiled_once")
def test_seeds_of_which_an_environment_makes_no_task_are_passed_over(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picky = 'if 1000 < seed < 2**20:\n            raise ValueError("no task of this seed")\n        number ='
    (tmp_path / "own_picky.py").write_text(GUESS.replace("number =", picky, 1).replace("guess", "picky"))
    source = TaskSource(environment="own_picky:Guess", difficulties=(2,), count=9000)
    line = train(prepared(config_of(start, source, steps=2), tmp_path / "run"))
    events = [json.loads(text) for text in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    refused = [event for event in events if event["kind"] == "refused"]
    assert line["answers"] == 4 and refused and all("no task of this seed" in event["reason"] for event in refused)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_whose_questions_are_others_does_not_go_on(start, tmp_path):
    source = own_file(tmp_path / "own.jsonl")
    train(prepared(config_of(start, source, steps=1), tmp_path / "run"))
    lines = (tmp_path / "own.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "own.jsonl").write_text("".join(lines[::-1]))
    with pytest.raises(ValueError, match=r"own.jsonl holds other questions than the run began with; restore it"):
        train(prepared(config_of(start, source, steps=2), tmp_path / "run"))


@pytest.mark.usefixtures("compiled_once")
def test_a_run_whose_sessions_cannot_be_repeated_is_not_replayed(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = "    def session(self):\n        session = PureSession(self.reset, self.step)\n"
    session += "        session.replayable = False\n        return session\n"
    text = "from ling_jax.envs.pure import PureSession\n" + GUESS.replace("guess", "once") + session
    (tmp_path / "own_once.py").write_text(text)
    source = TaskSource(environment="own_once:Guess", difficulties=(2,), count=50)
    config = config_of(start, source, steps=1)
    train(prepared(config, tmp_path / "run"))
    with pytest.raises(ValueError, match="sessions of own_once:Guess cannot be repeated, and a replay would act in th"):
        replay(prepared(config, tmp_path / "run"))


def test_a_prompt_that_does_not_fit_is_named_by_its_line(start, tmp_path):
    source = own_file(tmp_path / "own.jsonl")
    with open(source.path, "a") as file:
        for i in range(40):
            file.write(json.dumps({"prompt": f"Say {i} " * 200, "answer": i}) + "\n")
    with pytest.raises(ValueError, match=r"own.jsonl, line \d\d: task .* has a prompt of .*; \d+ others are so"):
        prepared(config_of(start, source), tmp_path / "run")


def test_a_held_out_prompt_that_is_evaluated_has_to_fit(start, tmp_path):
    """Also behind the first 16, which are played before the start."""
    source, path = own_file(tmp_path / "own.jsonl", count=200), tmp_path / "long.jsonl"
    long = [{"prompt": f"Say {i} " * 200, "answer": i} for i in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in long))
    asked = questions.read_questions(str(path)).held_out[0].seed - 1
    with open(source.path, "a") as file:
        file.write(json.dumps(long[asked]) + "\n")
    prepared(config_of(start, source, eval_tasks=0), tmp_path / "unasked").lock.close()
    with pytest.raises(ValueError, match=r"own.jsonl, line 201: task .* has a prompt of"):
        prepared(config_of(start, source, eval_tasks=60), tmp_path / "run")


def test_a_held_out_task_that_is_evaluated_has_to_fit(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long_guess.py").write_text(
        GUESS.replace('"Guess my number."', '"?" * (500 if seed > 2**31 + 20 else 9)')
    )
    source = TaskSource(environment="long_guess:Guess", count=50)
    with pytest.raises(ValueError, match="has a prompt of"):
        prepared(config_of(start, source, eval_tasks=30), tmp_path / "run")


def test_a_session_that_hangs_before_the_start_has_its_deadline(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hanging.py").write_text(GUESS + HANGING)
    config = config_of(start, TaskSource(environment="hanging:Hanging", count=50))
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, session_seconds=0.2))
    with pytest.raises(OSError, match=r"of hanging:Hanging: its session gave no answer in 0.2 s"):
        prepared(config, tmp_path / "run")


def test_fewer_tasks_than_a_step_draws_are_said(start, tmp_path, capsys):
    source = own_file(tmp_path / "own.jsonl", count=4)
    config = config_of(start, source)
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompts_per_step=8))
    run = prepared(config, tmp_path / "run")
    run.lock.close()
    assert f"WARNING: {source.size} tasks, and a step draws 8 prompts" in capsys.readouterr().out


def test_a_budget_that_fills_no_batch_is_refused(start):
    config = small_config(start)
    with pytest.raises(ValueError, match=r"token_budget is 60, less than a token for each of a step's 32 x 4 answers"):
        dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, prompts_per_step=32))
