import importlib.util

import pytest

from ling_jax.run.wandb_run import check_wandb, open_wandb
from ling_jax.train.config import LoopConfig

MISSING = importlib.util.find_spec("wandb") is None


@pytest.mark.skipif(not MISSING, reason="wandb is installed")
def test_a_project_without_wandb_is_answered_with_the_extra_to_install():
    check_wandb("")
    with pytest.raises(ValueError, match=r"train.wandb is 'ling'.* pip install wandb"):
        check_wandb("ling")


@pytest.mark.skipif(MISSING, reason="needs the extra wandb")
def test_the_metrics_of_a_step_are_kept_offline_until_they_are_synchronised(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = open_wandb("ling", tmp_path, LoopConfig(steps=2, batch_size=1, wandb="ling"))
    run.add({"step": 1, "time": 0.0, "nonfinite": 0, "loss": 2.5, "kernel": "xla", "mfu": float("nan")})
    run.close()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(kept.glob("*.wandb")).stat().st_size > 0
    assert f"`wandb sync {kept}` sends this run" in capsys.readouterr().out
