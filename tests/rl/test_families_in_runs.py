"""Searches and puzzles in runs: named in a config, played, paid, and counted on held-out tasks."""

import dataclasses
import json

import pytest

from ling_jax.envs import environment
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.loop import train
from tests.helpers.rl_run import prepared, small_config

SOURCES = (
    TaskSource(environment="search", difficulties=(1,), count=50),
    TaskSource(environment="knights", difficulties=(2,), count=50),
)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_mixes_searches_and_puzzles_and_loses_none(start, tmp_path):
    sizes = dict(context=320, max_tokens=48)
    config = small_config(start, objective="grpo", reward="agentic", rollout=sizes, dpr_steps=0, steps=2, eval_tasks=4)
    line = train(prepared(dataclasses.replace(config, tasks=SOURCES), tmp_path))
    assert line["env_failed"] == line["infra_failed"] == 0 and line["answers"] == 4
    metrics = json.loads((tmp_path / "evaluation/000002/summary.json").read_text())["metrics"]
    counted = {metric["name"]: metric["n"] for metric in metrics}
    assert counted["search/accuracy"] == counted["knights/accuracy"] == 4
    samples = [*map(json.loads, (tmp_path / "evaluation/000002/samples.jsonl").read_text().splitlines())]
    assert {sample["environment"] for sample in samples} == {"search", "knights"}


def test_a_search_as_the_reference_makes_it_is_paid_in_full(played):
    env = environment("search")
    task = env.make_task(4, 2)
    episode = played(task, env.solution(task))
    assert episode.rewards == {"outcome": 1.0, "found": 1.0, "calls": 2.0, "superfluous_calls": 0.0}
    assert episode.calls == list(task.hidden["calls"])
