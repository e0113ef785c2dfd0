"""What a policy does with held-out tasks."""

import pytest

from ling_jax.envs import environment
from ling_jax.envs.sources import held_out_tasks
from ling_jax.rl.collector import Collector
from ling_jax.rl.evaluation import evaluate, summarise
from tests.helpers.scripted_policy import reader, use_scripts, write_script


def test_evaluation_is_in_order_and_summed_up(monkeypatch):
    """Ten held-out tasks in two slots; the policy solves those with an even number."""
    use_scripts(monkeypatch)
    tasks = held_out_tasks("running_sums", (1, 2), 10)
    for i, task in enumerate(tasks):
        write_script(i, environment("running_sums").solution(task) if i % 2 == 0 else ["A:0"])
    with Collector(None, reader(), 2, temperature=0.0) as collector:
        records = evaluate(collector, None, tasks)
    assert [record["outcome"] for record in records] == [1, 0] * 5
    assert [record["task"] for record in records] == [task.id for task in tasks]
    accuracy, tokens = summarise(records)
    assert (accuracy.name, accuracy.value, accuracy.n) == ("running_sums/accuracy", 0.5, 10)
    low, high = accuracy.interval
    assert 0.2 < low < 0.5 < high < 0.8 and tokens.name == "running_sums/tokens" and tokens.value > 4


def test_rewards_are_means_over_the_episodes_that_have_them():
    about = {"environment": "lookup", "outcome": 1.0, "tokens": 3}
    records = [
        about | {"status": "finished", "rewards": {"outcome": 1.0, "superfluous_calls": 2.0}},
        about | {"status": "finished", "rewards": {"outcome": 1.0, "superfluous_calls": 1.0}},
        about | {"status": "truncated", "rewards": {}, "outcome": 0.0},
        about | {"status": "env_failed", "rewards": {}},
        about | {"status": "infra_failed", "rewards": {}},
    ]
    accuracy, tokens, calls = summarise(records)
    assert (accuracy.value, accuracy.n, tokens.n) == (pytest.approx(2 / 3), 3, 3)
    assert (calls.name, calls.value, calls.n) == ("lookup/superfluous_calls", 1.5, 2)


def test_samples_of_a_task_are_counted_together(monkeypatch):
    """Of four samples of each of six tasks: all right, one right, none right, twice over; one of the last failed."""
    use_scripts(monkeypatch)
    tasks = held_out_tasks("running_sums", (2,), 6)
    for i, task in enumerate(tasks):
        for sample in range(4):
            right = i % 3 == 0 or (i % 3 == 1 and sample == 2)
            turns = environment("running_sums").solution(task) if right else ["A:0"]
            write_script(100 + 4 * i + sample, turns)
    with Collector(None, reader(), 5) as collector:
        records = evaluate(collector, None, tasks, samples=4, seed=100)
    assert [record["task"] for record in records] == [task.id for task in tasks for _ in range(4)]
    assert [record["answer_seed"] for record in records] == list(range(100, 124))
    records[-1] |= {"status": "infra_failed"}
    metrics = {metric.name.removeprefix("running_sums/"): metric for metric in summarise(records, samples=4, ks=[2])}
    assert metrics.keys() == {"accuracy", "pass@2", "pass^2", "tokens"}
    assert metrics["accuracy"].value == pytest.approx(10 / 23) and metrics["accuracy"].n == 23
    assert metrics["pass@2"].value == pytest.approx((2 + 2 * 0.5) / 5) and metrics["pass@2"].n == 5
    assert metrics["pass^2"].value == pytest.approx(2 / 5) and metrics["tokens"].n == 6
    low, high = metrics["accuracy"].interval
    assert high - low > 0.5, "wider than the 0.38 of 23 independent answers"
