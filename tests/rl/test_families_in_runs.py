"""Searches and puzzles in runs: named in a config, played, paid, and counted on held-out tasks."""

import dataclasses
import json

import pytest

from ling_jax.envs import NAMES, environment
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.loop import train
from tests.helpers.rl_run import MODEL, prepared, small_config
from tests.helpers.sandboxes import sandbox_or_skip
from tests.helpers.small_stage import write_stage

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


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_twenty_steps_of_all_families_lose_no_rollout_to_the_machine(tmp_path):
    """One source for each environment that makes its tasks, drawn by their pass rates; some of them need boxes."""
    sandbox_or_skip("T3")
    start = tmp_path / "start"
    write_stage(start, dataclasses.replace(MODEL, max_length=3072))
    names = [name for name in NAMES if name not in ("questions", "harbor")]
    sources = tuple(
        TaskSource(environment=name, difficulties=(environment(name).DIFFICULTIES[0],), count=20) for name in names
    )
    sizes = dict(context=3072, max_tokens=32, group_size=2, prompts_per_step=8, slots=16)
    config = small_config(start, objective="grpo", reward="agentic", rollout=sizes, dpr_steps=20, steps=20)
    train(prepared(dataclasses.replace(config, tasks=sources), tmp_path / "run"))
    lines = [*map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())]
    assert sum(line["env_failed"] + line["infra_failed"] + line["refused"] for line in lines) == 0
    episodes = [*map(json.loads, (tmp_path / "run/episodes.jsonl").read_text().splitlines())]
    seen = {episode["environment"] for episode in episodes}
    print(f"\n{len(episodes)} episodes of {len(seen)} environments, none lost")
    assert len(episodes) == 20 * 16 and len(seen) >= 0.9 * len(names)


def test_a_search_as_the_reference_makes_it_is_paid_in_full(played):
    env = environment("search")
    task = env.make_task(4, 2)
    episode = played(task, env.solution(task))
    assert episode.rewards == {"outcome": 1.0, "found": 1.0, "calls": 2.0, "superfluous_calls": 0.0}
    assert episode.calls == list(task.hidden["calls"])
