"""Toolkits, service and safety by name: rollouts, the agentic reward, evaluation, runs."""

import dataclasses
import json

import numpy as np
import pytest

from ling_jax.align.rewards import REWARDS
from ling_jax.envs import environment
from ling_jax.envs.sources import TaskSource, held_out_tasks
from ling_jax.rl.buffer import Group
from ling_jax.rl.collector import Collector
from ling_jax.rl.evaluation import evaluate, summarise
from ling_jax.rl.learner import reward_metrics
from ling_jax.rl.loop import train
from tests.helpers.rl_run import prepared, small_config
from tests.helpers.scripted_policy import reader, use_scripts, write_script

FAMILIES = ("toolkits", "service", "safety")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("difficulty", [1, 4])
def test_the_reference_is_a_perfect_rollout(name, difficulty, played):
    """With a template and an engine between them; the user's words are read like the tools' answers."""
    env = environment(name)
    task = env.make_task(3, difficulty)
    episode = played(task, env.solution(task), context=16_000)
    assert (episode.trajectory.status, episode.outcome) == ("finished", 1)
    assert episode.calls == task.hidden["calls"]
    heard = [message for message in episode.reply if message["role"] == "user"]
    assert bool(heard) == any("say" in turn for turn in task.hidden["turns"][:-1])
    pay, _ = REWARDS["agentic"].pay([[episode]], reader(), None)
    assert pay[0].parts["process"] == 0, "no call too many, none too few"


def test_evaluation_tells_harm_from_overrefusal(monkeypatch):
    """Of 32 held-out tasks every second one is solved; the other ones are refused."""
    use_scripts(monkeypatch)
    env, tasks = environment("safety"), held_out_tasks("safety", (1,), 32)
    for i, task in enumerate(tasks):
        write_script(i, env.solution(task) if i % 2 else ["A:cannot"])
    with Collector(None, reader(), 4, temperature=0.0) as collector:
        found = {metric.name: metric for metric in summarise(evaluate(collector, None, tasks))}
    benign = [i for i, task in enumerate(tasks) if task.hidden["benign"]]
    assert found["safety/overrefusal"].value == pytest.approx(sum(i % 2 == 0 for i in benign) / len(benign))
    assert found["safety/overrefusal"].n == len(benign) and found["safety/harm"].n == 32
    assert found["safety/harm"].value == 0 and 0.5 < found["safety/accuracy"].value < 1


def test_a_step_reports_what_environments_say_by_name(played):
    """Means over the answers of which they say it; the outcome is the accuracy."""
    env = environment("safety")
    tasks = [
        next(t for t in (env.make_task(i, 1) for i in range(200)) if t.hidden["benign"] == flag) for flag in (0, 1)
    ]
    episodes = [played(task, turns) for task in tasks for turns in (env.solution(task), ["A:cannot"])]
    pay, _ = REWARDS["outcome"].pay([episodes], reader(), None)
    metrics = reward_metrics([Group(0, tuple(episodes))], pay)
    assert metrics["safety/overrefusal"] == 0.5, "of two answers to a benign task one refused"
    assert metrics["safety/harm"] == 0 and "safety/outcome" not in metrics
    assert metrics["safety/answers"] == metrics["accuracy"] == np.mean([episode.outcome for episode in episodes])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_on_all_families_fails_nowhere(start, tmp_path, capsys):
    config = small_config(
        start, objective="grpo", reward="agentic", rollout=dict(context=512, max_tokens=24), dpr_steps=0, steps=3,
        eval_tasks=4,
    )  # fmt: skip
    sources = tuple(TaskSource(environment=name, difficulties=(1,), count=50) for name in FAMILIES)
    train(prepared(dataclasses.replace(config, tasks=sources), tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["answers"] for line in lines] == [4] * 3
    assert not any(line[status] for line in lines for status in ("env_failed", "infra_failed"))
    said = capsys.readouterr().out
    assert all(f"{name}/accuracy" in said for name in FAMILIES)
