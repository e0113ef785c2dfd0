"""Damage of any file of a stage's workdir is named when the same command continues, or made good."""

import random
import shutil

import pytest

from configs.align import tiny_shortest_correct
from ling_jax.align.sft import prepare_sft, tune
from ling_jax.align.specialists import prepare_distillation
from ling_jax.checkpoint.steps import newest_step, resume_step
from ling_jax.rl import loop
from ling_jax.run.workdir import unlock
from tests.align.test_stages import distil_config, sft_config
from tests.helpers import rl_run
from tests.helpers.compiled import shared_between_starts
from tests.helpers.damage import DAMAGES, files_below
from tests.helpers.small_stage import write_stage

# A lock holds nothing; fine-tuning writes samples for people, and a plan of rows is made again where it is damaged.
NOT_READ = (".lock", "samples.jsonl", ".npz")


@pytest.fixture(scope="module")
def distillation(tmp_path_factory):
    """(what begins a run in a workdir, what trains it, a workdir where it has ended)."""
    folder = tmp_path_factory.mktemp("distillation")
    with shared_between_starts(folder / "compiled"):
        write_stage(folder / "start")
        tune(prepare_sft(sft_config(folder / "start"), folder / "teacher"), samples=0)
        config = distil_config(tiny_shortest_correct, folder / "teacher")
        stage = (lambda workdir: prepare_distillation(config, workdir), lambda run: tune(run, samples=2))
        stage[1](stage[0](folder / "run"))
        yield *stage, folder / "run"


@pytest.fixture(scope="module")
def reinforcement(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reinforcement")
    config = rl_run.small_config(rl_run.write_start(folder / "start"), steps=2, eval_tasks=2)
    with rl_run.steps_compiled_once():
        loop.train(rl_run.prepared(config, folder / "run"))
        yield (lambda workdir: rl_run.prepared(config, workdir)), loop.train, folder / "run"


def goes_on(begin, train, workdir, changed, capsys) -> str:
    """What a start after a damage said: its error, or its warnings."""
    capsys.readouterr()
    try:
        run = begin(workdir)
        if any("checkpoints" in path.parts for path in changed):  # it would compute the lost steps again
            unlock(run.workdir, run.lock)
            resume_step(workdir / "checkpoints")
        else:
            train(run)
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1 or "holds another run" in str(error)
        return str(error)
    return capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distillation", "reinforcement"])
def test_none_of_a_hundred_damages_of_a_workdir_is_silent(stage, request, tmp_path, capsys):
    begin, train, whole = request.getfixturevalue(stage)
    newest = f"checkpoints/{newest_step(whole / 'checkpoints')}/"
    for seed in range(100):
        rng, workdir = random.Random(seed), tmp_path / "run"
        shutil.copytree(whole, workdir)
        names = [name for name in files_below(workdir) if name.startswith(newest) or "checkpoints/" not in name]
        kind = rng.choice(sorted(DAMAGES))
        changed = DAMAGES[kind]([workdir / name for name in sorted(names)], rng)
        told = goes_on(begin, train, workdir, changed, capsys)
        damage = f"seed {seed}: {kind} {', '.join(str(path.relative_to(workdir)) for path in changed)}: {told}"
        with capsys.disabled():
            print(damage, flush=True)
        unread = NOT_READ if stage == "distillation" else (".lock",)
        named = any(path.name in told or str(path.parent) in told for path in changed)
        assert named or all(path.name.endswith(unread) for path in changed), damage
        shutil.rmtree(workdir)
