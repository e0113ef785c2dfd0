"""Every shipped config of alignment and RL makes one real step: its objective, its reward, its tasks."""

import json

import pytest

from configs.align import tiny_agentic, tiny_evo_cot, tiny_preference
from configs.rl import tiny_adaptive, tiny_kpop, tiny_questions
from ling_jax.checkpoint.folder import load_model
from ling_jax.rl.config import RLConfig
from ling_jax.rl.loop import train
from ling_jax.train.config import from_dict
from tests.helpers.rl_run import prepared, steps_compiled_once, write_start

CONFIGS = {
    "evo_cot": (tiny_evo_cot, "clip_fraction"),
    "preference": (tiny_preference, "reward/brief"),
    "agentic": (tiny_agentic, "reward/superfluous_calls"),
    "kpop": (tiny_kpop, "masked_fraction"),
    "questions": (tiny_questions, "reward/outcome"),
    "adaptive": (tiny_adaptive, "reward/length"),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with steps_compiled_once():
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_real_step(name, start, tmp_path, capsys):
    module, metric = CONFIGS[name]
    config = module.get_config()
    config.start_from = str(start)
    config.train.steps, config.train.microbatches, config.train.eval_tasks = 1, 1, 2
    config.rollout.slots, config.rollout.prompts_per_step, config.rollout.group_size = 16, 1, 4
    config.rollout.context, config.rollout.max_tokens = 184, 16
    config.rollout.token_budget = min(config.rollout.token_budget, 64)
    line = train(prepared(from_dict(RLConfig, config.to_dict()), tmp_path))
    assert line["step"] == 0 and line["groups"] == 1 and not line["nonfinite"] and metric in line
    assert line["mismatch_same_version/max"] <= 1e-5 and line["mismatch_same_version/tokens"] > 0
    out = capsys.readouterr().out
    assert f"objective  {config.objective.name}: mean" in out and "old = policy" in out and "step=1/1" in out
    for step in ("000000", "000001"):
        summary = json.loads((tmp_path / "evaluation" / step / "summary.json").read_text())
        assert summary["step"] == int(step) and summary["metrics"][0]["n"] == 2
    assert load_model(tmp_path).config.vocab_size == 263
