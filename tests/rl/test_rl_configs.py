"""Every shipped config of alignment and RL makes one real step: its objective, its reward, its tasks."""

import json

import pytest

from ling_jax.checkpoint.folder import load_model
from ling_jax.rl.loop import train
from tests.helpers.rl_configs import CONFIGS, shrunk
from tests.helpers.rl_run import prepared

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.parametrize("name", CONFIGS)
def test_one_real_step(name, start, tmp_path, capsys):
    config, metric = shrunk(name, start, steps=1, eval_tasks=2), CONFIGS[name][1]
    line = train(prepared(config, tmp_path))
    assert line["step"] == 0 and not line["nonfinite"] and metric in line
    assert line["groups"] == line["updates"] == config.train.updates_per_batch
    assert line["mismatch_same_version/max"] <= 1e-5 and line["mismatch_same_version/tokens"] > 0
    out = capsys.readouterr().out
    assert f"objective  {config.objective.name}: mean" in out and "old = policy" in out and "step=1/1" in out
    for step in ("000000", "000001"):
        summary = json.loads((tmp_path / "evaluation" / step / "summary.json").read_text())
        assert summary["step"] == int(step) and summary["metrics"][0]["n"] == 2
    assert load_model(tmp_path).config.vocab_size == 263
