"""The smallest runs of reinforcement learning that have all parts, on a random model."""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ling_jax import data
from ling_jax.align.rewards import configured_reward
from ling_jax.envs.sources import TaskSource
from ling_jax.rl import loop
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.rl.prepare import Run, prepare
from ling_jax.train.config import OptimizerConfig
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import tiny_config

# Dense: where two experts are as good, round-off chooses, and then sampling and training do not agree to 1e-5.
MODEL = tiny_config(
    vocab_size=263, hidden_size=24, num_layers=2, first_dense_layers=2, num_norm_groups=1, compute_dtype="float32",
    remat="none", init_std=0.2,
)  # fmt: skip


@functools.cache
def tokenizer():
    """Bytes and special tokens."""
    return data.train_bpe([], 263)


def write_start(folder: Path) -> Path:
    """What a stage before leaves."""
    write_stage(folder, MODEL)
    return folder


def small_config(start: Path, *, objective="kpop", reward="preference", rollout=(), **train) -> RLConfig:
    """KPop with partial rollouts: answers of up to 48 and 96 tokens, a budget of half a piece of decoding.

    With all that has to last from step to step: pass rates, and a reward that remembers. `objective` is a name or an
    ObjectiveConfig.
    """
    objective = ObjectiveConfig(name=objective) if isinstance(objective, str) else objective
    sizes = dict(context=184, slots=16, group_size=4, prompts_per_step=1)
    stale = dict(token_budget=60, max_staleness=4, max_retention=4) if objective.name == "kpop" else {}
    return RLConfig(
        start_from=str(start),
        tasks=(TaskSource(environment="running_sums", difficulties=(1, 2), count=50),),
        reward=reward,
        objective=objective,
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=2),
        rollout=RolloutConfig(**(sizes | stale | dict(rollout))),
        train=LoopConfig(**(dict(steps=6, save_every=2, dpr_steps=6) | train)),
    )


def prepared(config: RLConfig, workdir) -> Run:
    return prepare(config, configured_reward(config, workdir), workdir)


def lines_of(workdir: Path, name: str = "metrics") -> list[dict]:
    """The lines of a run's NAME.jsonl."""
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def steps_compiled_once() -> Iterator[None]:
    """The real programs of each objective, once for all runs here: they differ in nothing else that these know."""
    compile_step, programs = loop._compile, {}

    def once(run, link):
        config = run.config
        key = config.model, config.objective, config.rows, config.train.updates_per_batch, config.train.microbatches
        programs[key] = programs.get(key) or compile_step(run, link)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_compile", once)
        yield
