"""The shipped recipe whose judge is a model of this project."""

import json

import numpy as np
import pytest

from configs.align import tiny_preference_engine
from ling_jax.rl import loop
from ling_jax.rl.config import RLConfig
from ling_jax.train.config import from_dict
from tests.helpers.rl_run import prepared, write_start
from tests.helpers.small_stage import write_judge


@pytest.mark.slow
def test_the_recipe_with_an_engine_judge_runs_its_ten_steps(tmp_path):
    config = tiny_preference_engine.get_config()
    config.start_from, config.judge.model = (
        str(make(tmp_path / name)) for name, make in (("start", write_start), ("judge", write_judge))
    )
    config.rollout.context, config.rollout.max_tokens, config.train.eval_tasks = 184, 32, 0
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.slots = 2, 4, 16
    loop.train(prepared(from_dict(RLConfig, config.to_dict()), tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and {line["reward_failed"] for line in lines} == {0}
    assert np.ptp([line["reward/logical"] for line in lines]) > 0
