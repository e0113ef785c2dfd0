"""Asynchronous learning beside synchronous, on one engine, with environments whose answers take their time.

A batch is 64 rollouts in groups of 8. Each calls a slow tool once; the latencies are lognormal, their 99th percentile
is 8 times their median, and their mean twice the mean time in which an episode is generated.
"""

import dataclasses
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.slow_tools import SlowTool
from ling_jax import data, model
from ling_jax.align.rewards import configured_reward
from ling_jax.chat.end_tokens import end_ids, save_end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.tool_calls import MARKUP
from ling_jax.checkpoint import orbax
from ling_jax.config import model_config
from ling_jax.envs.reasoning import running_sums
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import LoopConfig, ObjectiveConfig, RLConfig, RolloutConfig
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import Run, prepare
from ling_jax.rl.replay import replay
from ling_jax.train.config import OptimizerConfig

CONFIG = model_config(
    "tiny-2.6", vocab_size=512, hidden_size=32, num_layers=4, layer_group_size=4, first_dense_layers=4, num_heads=4,
    num_norm_groups=2, q_lora_rank=32, kv_lora_rank=32, mtp_depth=0, max_length=256, compute_dtype="float32",
    init_std=0.1, remat="none",
)  # fmt: skip
GROUPS, GROUP_SIZE, SLOTS, STALENESS = 8, 8, 32, 4
SIGMA = math.log(8) / 2.326  # of a lognormal whose 99th percentile is 8 times its median
LATENCY_OVER_GENERATION = 2.0
MICROBATCHES = 16  # of four rows: those that hold no answers are not computed


class Tool(SlowTool):
    """A tool that takes the latency of its seed, and one of two outcomes by it."""

    mean_seconds = 1.0

    async def open(self, task, seed) -> None:
        """The latency is drawn once."""
        self._seconds = self.mean_seconds * random.Random(seed).lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        self._outcome, self._steps = float(seed % 2), 0


class Tools:
    """Running sums whose tool is slow."""

    DIFFICULTIES = range(1, 3)
    session = Tool

    @staticmethod
    def make_task(seed, difficulty):
        """That of running sums, with two turns."""
        task = running_sums.make_task(seed, difficulty)
        return dataclasses.replace(task, environment="benchmarks.async_rl:Tools", max_turns=2, max_tokens=144)


class Measured(NamedTuple):
    """What the runs of the workload took; the first steps of each are left out."""

    sync: float  # trained samples a second
    asynchronous: float
    busy: float  # samples a second where tools answer at once
    live: float  # slots that were taken while an episode waited for one
    engine_idle: float  # of the asynchronous run's time, that in which all episodes waited for their environments
    trainer_idle: float
    train_over_generate: float  # of a batch
    latency: float  # mean seconds of a tool

    def __str__(self) -> str:
        return (
            f"batches of {GROUPS} x {GROUP_SIZE}, {SLOTS} slots, staleness {STALENESS}, tools of {self.latency:.2f} s "
            f"in the mean; {self.asynchronous:.1f} samples a second against {self.sync:.1f}, and {self.busy:.1f} in "
            f"turns with tools that answer at once; training {self.train_over_generate:.2f} of generation; engine idle "
            f"{self.engine_idle:.0%}, trainer {self.trainer_idle:.0%}"
        )


def measure(batches: int) -> Measured:
    """The workload in turns, all episodes of a batch at once, and asynchronous."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_start(folder / "start")
        Tool.mean_seconds = 0.0
        busy = _run(folder, "busy", batches, episodes=GROUPS * GROUP_SIZE)
        generation = _mean(busy, "engine/generate_seconds") * SLOTS / (GROUPS * GROUP_SIZE)
        Tool.mean_seconds = LATENCY_OVER_GENERATION * generation
        sync = _run(folder, "sync", batches, episodes=GROUPS * GROUP_SIZE)
        asynchronous = _run(folder, "async", 3 * batches, **STALE)
    return Measured(
        sync=_samples_per_second(sync),
        asynchronous=_samples_per_second(asynchronous),
        busy=_samples_per_second(busy),
        live=_mean(asynchronous, "engine/live"),
        engine_idle=_share(asynchronous, "engine/wait_seconds"),
        trainer_idle=1 - _share(asynchronous, "optimise_seconds"),
        train_over_generate=_mean(busy, "optimise_seconds") / _mean(busy, "engine/generate_seconds"),
        latency=Tool.mean_seconds,
    )


def replay_equal(steps: int) -> float:
    """1 where a stale run on three engines, with tools in threads, replays bit for bit on one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_start(folder / "start")
        Tool.mean_seconds = 0.2
        run = _prepared(folder, "stale", steps, **STALE, engines=3, slots=3 * GROUP_SIZE)
        train(run)
        again = _prepared(folder, "stale", steps, **STALE, engines=3, slots=3 * GROUP_SIZE)
        try:
            return float(replay(again) == steps)
        except ValueError as error:
            print(error, flush=True)
            return 0.0


def staleness0_equal(steps: int) -> float:
    """1 where a run without staleness on three engines ends with the weights of one in turns, bit for bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_start(folder / "start")
        Tool.mean_seconds = 0.05
        for kind, options in {"turns": {}, "beside": dict(engines=3, overlap=True)}.items():
            train(_prepared(folder, kind, steps, slots=3 * GROUP_SIZE, **options))
        ends = [orbax.load_params(folder / kind / "checkpoints")[0] for kind in ("turns", "beside")]
        pairs = zip(*map(jax.tree.leaves, ends), strict=True)
        return float(all(np.array_equal(a, b) for a, b in pairs))


STALE = dict(episodes=4 * SLOTS, token_budget=10**6, max_staleness=STALENESS, max_retention=STALENESS, overlap=True)
SKIPPED = 2  # steps of a run that compile and fill the slots; of the asynchronous one thrice as many


def _write_start(folder: Path) -> None:
    """A random model whose turns end after some forty tokens."""
    tokenizer = data.train_bpe(_prompts(), CONFIG.vocab_size, words=MARKUP)
    orbax.save_params(folder / "checkpoints", model.init(jax.random.key(0), CONFIG), CONFIG)
    data.save_tokenizer(tokenizer, folder / "tokenizer")
    save_end_ids(end_ids(tokenizer) | set(range(20, 29)), folder / "tokenizer")


def _prompts() -> Iterator[str]:
    """Rendered tasks, of which the tokenizer is made: short prompts leave most of a batch to answers."""
    tool = {"role": "tool", "content": "2"}
    for seed in range(200):
        task = Tools.make_task(seed, 1 + seed % 2)
        pieces = ChatTemplate().render([*task.messages, {"role": "assistant", "content": ""}, tool], tools=task.tools)
        yield "\n".join(piece.text for piece in pieces if not piece.special)


def _prepared(folder: Path, name: str, steps: int, **rollout: Any) -> Run:
    sizes = dict(context=192, slots=SLOTS, group_size=GROUP_SIZE, prompts_per_step=GROUPS)
    config = RLConfig(
        start_from=str(folder / "start"),
        tasks=(TaskSource(environment="benchmarks.async_rl:Tools", difficulties=(1, 2), count=500),),
        reward="outcome",
        objective=ObjectiveConfig(name="kpop"),
        optimizer=OptimizerConfig(peak_lr=1e-5, warmup_steps=0),
        rollout=RolloutConfig(**(sizes | rollout)),
        train=LoopConfig(steps=steps, save_every=10**6, microbatches=MICROBATCHES),
    )
    return prepare(config, configured_reward(config, folder / name), folder / name)


def _run(folder: Path, name: str, steps: int, **rollout: Any) -> list[dict[str, Any]]:
    """The metrics of the steps of a run."""
    train(_prepared(folder, name, steps, **rollout))
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return lines[SKIPPED * (3 if rollout.get("overlap") else 1) :]


def _samples_per_second(lines: list[dict[str, Any]]) -> float:
    return sum(line["answers"] for line in lines[1:]) / (lines[-1]["time"] - lines[0]["time"])


def _mean(lines: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([line[name] for line in lines]))


def _share(lines: list[dict[str, Any]], name: str) -> float:
    """Of the time of a run."""
    return sum(line[name] for line in lines[1:]) / (lines[-1]["time"] - lines[0]["time"])
