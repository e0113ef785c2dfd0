"""A run whose tasks are a Harbor folder: they are played in boxes, judged by their own tests, and kept."""

import dataclasses
import shutil

import pytest

from ling_jax.envs.sources import TaskSource
from ling_jax.evaluate.viewer import read_trajectories
from ling_jax.rl.loop import train
from tests.helpers.faults import ROOT
from tests.helpers.rl_run import MODEL, prepared, small_config
from tests.helpers.sandboxes import sandbox_or_skip
from tests.helpers.small_stage import write_stage


def folder_of_tasks(folder, count):
    for i in range(count):
        shutil.copytree(ROOT / "tests/fixtures/harbor/greeting", folder / f"t{i}")
        (folder / f"t{i}" / "instruction.md").write_text(f"Do thing {i}.")
        config = folder / f"t{i}" / "task.toml"
        config.write_text(config.read_text().replace("ling-jax/greeting", f"ling-jax/t{i}"))
    (folder / "t0" / "environment" / "Dockerfile").write_text("FROM ubuntu\nRUN make\n")  # which is left out
    return TaskSource(path=str(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_run_learns_from_a_folder_of_tasks_and_asks_its_held_out_ones(tmp_path, capsys):
    sandbox_or_skip("T3")
    write_stage(tmp_path / "start", dataclasses.replace(MODEL, max_length=2048))
    source = folder_of_tasks(tmp_path / "tasks", 12)
    rollout = dict(max_tokens=16, context=1700)
    config = small_config(tmp_path / "start", objective="grpo", reward="outcome", rollout=rollout, dpr_steps=0, steps=1)
    config = dataclasses.replace(config, tasks=(source,), train=dataclasses.replace(config.train, eval_tasks=2))
    line = train(prepared(config, tmp_path / "run"))
    assert line["env_failed"] == line["infra_failed"] == 0 and line["answers"] == 4
    said = capsys.readouterr()
    assert f"{source.size} of harbor, from {source.path}" in said.out and said.err.count("RUN is not followed") == 1
    found = list(read_trajectories(tmp_path / "run"))
    assert found and all(one["extra"]["environment"] == "harbor" for one in found)
