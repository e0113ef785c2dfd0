"""The recovery study: small Ling 2.0 bases become hybrids in several ways; tokens and losses of each step.

Every run is a folder that goes on where it was, so a study that is stopped loses little.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ling_jax.config import model_config
from ling_jax.files import new_folder
from ling_jax.migrate.config import EVERYTHING, MigrateConfig, Stage, StageLoop
from ling_jax.migrate.convert import Conversion
from ling_jax.migrate.plan import prepare_plan
from ling_jax.migrate.run import RECOVERED, run_plan
from ling_jax.migrate.stages import migration
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source
from ling_jax.train.loop import prepare, train

LENGTH, ROWS = 256, 16
STEP_TOKENS = LENGTH * ROWS
# 0.86 M parameters, of which the mixers are a quarter.
SIZES = dict(
    vocab_size=1024, hidden_size=96, num_layers=8, num_heads=4, head_dim=24, rotary_dim=12, ffn_size=192,
    first_dense_layers=8, mtp_depth=0, max_length=LENGTH, lightning_chunk=64, loss_chunk=128,
    init_std=0.08,  # at this width 0.02 takes twice the tokens
)  # fmt: skip
BASE = model_config("tiny-2.0", **SIZES)
TARGET = model_config(
    "tiny-2.6", **SIZES, q_lora_rank=72, kv_lora_rank=60, nope_dim=24, rope_dim=12, v_dim=24, num_norm_groups=4
)
DATA = DataConfig(sources=(Source(kind="python"),), sequence_length=LENGTH, held_out_fraction=0.03)
OPTIMIZER = OptimizerConfig(peak_lr=3e-3, warmup_steps=20)


EVAL_BATCHES = 8
MERGED = 5  # checkpoints


@dataclasses.dataclass(frozen=True)
class Preset:
    """Steps of 4096 tokens."""

    base: int
    linear: int  # of the stages with frozen parts
    partial: int
    mla: int
    repeat: int  # of a whole migration with repeated heads, and of one that converts all at once
    random: int  # of one with random heads; the other ways end with the MLA warm-up
    eval_every: int
    calibration: int  # tokens
    ways: tuple[str, ...]  # of `WAYS`
    seeds: tuple[int, ...]
    ratio_budgets: tuple[float, ...]  # training FLOPs of each hybrid ratio; none: they are not compared
    mtp_steps: int  # of the base and of three depths; 0: they are not compared


# Ways to migrate: what differs from the report's steps with repeated heads.
WAYS: dict[str, dict[str, Any]] = {
    "repeat": {},
    "random": dict(kv_heads="random"),
    "random, gate": dict(kv_heads="random", gate=True),
    "real": dict(pca="real"),
    "dropped": dict(qk_norm="drop"),
    "at once": dict(at_once=True),  # and then the mean of its last checkpoints
    "at once, cosine": dict(at_once=True, schedule="cosine"),
}

FULL = Preset(
    base=450, linear=30, partial=20, mla=5, repeat=110, random=170, eval_every=10, calibration=16384, seeds=(0, 1, 2),
    ways=tuple(WAYS), ratio_budgets=(3e11, 1e12, 3e12), mtp_steps=150,
)  # fmt: skip
QUICK = Preset(
    base=10, linear=2, partial=2, mla=2, repeat=8, random=8, eval_every=2, calibration=4096, seeds=(0,),
    ways=("repeat",), ratio_budgets=(), mtp_steps=0,
)  # fmt: skip


def train_base(preset: Preset, seed: int, folder: Path) -> dict[int, float]:
    """{step: held-out loss} of a base to its end and on, for as many steps as the longest migration has."""
    data = dataclasses.replace(DATA, folder=str(folder / "tokens"))
    for steps in (preset.base, preset.base + preset.random):
        loop = LoopConfig(
            steps=steps,
            batch_size=ROWS,
            seed=seed,
            eval_every=preset.eval_every,
            eval_batches=EVAL_BATCHES,
            save_every=preset.base // 2,
            keep=3,
        )
        train(prepare(PretrainConfig(model=BASE, data=data, optimizer=OPTIMIZER, train=loop), folder / f"base_{seed}"))
        if steps == preset.base:
            port_base(folder / f"base_{seed}", folder / f"source_{seed}")
    lines = map(json.loads, (folder / f"base_{seed}/metrics.jsonl").read_text().splitlines())
    return {line["step"] + 1: line["held_out_loss"] for line in lines if "held_out_loss" in line}


def port_base(workdir: Path, source: Path) -> None:
    """Keeps the base as it is now: training on will replace its checkpoint."""
    if not source.exists():
        with new_folder(source) as partial:
            shutil.copytree(workdir, partial, dirs_exist_ok=True)


def stages(preset: Preset, steps: int, *, gate: bool = False, at_once: bool = False) -> tuple[Stage, ...]:
    frozen = preset.linear + preset.partial + preset.mla
    if at_once:
        everything = Stage(name="continued", form="mla", trains=EVERYTHING, tokens=steps * STEP_TOKENS)
        return everything, Stage(name="merge", form="mla", merges=MERGED)
    tokens = dict(linear=preset.linear, partial=preset.partial, mla=preset.mla, continued=steps - frozen)
    plan = migration(**{name: count * STEP_TOKENS for name, count in tokens.items()}, gate=gate)
    # Nothing ends early: budgets are used up, so that ways can be compared. A lower rate behind the first stage: what
    # is nearly right is hurt more by steps of the base's size than it learns from them. (A base that is trained on
    # keeps its rate, so a part of what separates the two is that of a decay.)
    same = dict(recovers=False, warmup_steps=5)
    rates = {"partial": 1.5e-3, "mla_warmup": 1.5e-3, "continued": 1e-3}
    return tuple(
        dataclasses.replace(stage, peak_lr=rates.get(stage.name, OPTIMIZER.peak_lr), **same)
        for stage in plan
        if stage.tokens
    )


def migrate(preset: Preset, way: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The reports of one way's stages."""
    options = dict(WAYS[way])
    how = {name: options.pop(name) for name in ("kv_heads", "pca", "qk_norm") if name in options}
    how = dict(kv_heads="repeat", calibration_tokens=preset.calibration, held_out_tokens=4096, seed=seed) | how
    frozen = preset.linear + preset.partial + preset.mla
    steps = preset.repeat if way == "repeat" or "at once" in way else preset.random if way == "random" else frozen
    optimizer = dataclasses.replace(OPTIMIZER, schedule=options.pop("schedule", OPTIMIZER.schedule))
    config = MigrateConfig(
        source=str(folder / f"source_{seed}"),
        target=TARGET,
        stages=stages(preset, steps, **options),
        data=dataclasses.replace(DATA, folder=str(folder / "tokens")),
        optimizer=optimizer,
        train=StageLoop(
            batch_size=ROWS,
            seed=seed,
            eval_every=preset.eval_every,
            eval_batches=EVAL_BATCHES,
            save_every=preset.eval_every,
            keep=1,
        ),
        seen_tokens=preset.base * STEP_TOKENS,
        conversion=Conversion(**how),
    )
    return run_plan(prepare_plan(config, folder / f"{way.replace(', ', '_').replace(' ', '_')}_{seed}"))


def curve(reports: list[dict[str, Any]]) -> list[tuple[int, float, str]]:
    """(tokens so far, held-out loss, form) of a migration: at each conversion and each evaluation."""
    points, before = [], 0
    for report in reports:
        if "loss_converted" in report:
            points.append((before, report["loss_converted"], report["form"]))
        points += [(before + step * STEP_TOKENS, loss, report["form"]) for step, loss in report.get("curve", [])]
        before += report.get("tokens", 0)
    return points


def recovery_tokens(reports: list[dict[str, Any]], base_loss: float) -> float:
    """Tokens, all stages included, after which the hybrid is within 1 % of the base and stays so; infinity if never."""
    points = curve(reports)
    outside = [i for i, (_, loss, form) in enumerate(points) if form != "mla" or loss > RECOVERED * base_loss]
    behind = points[outside[-1] + 1 :] if outside else points
    return behind[0][0] if behind else math.inf


def figure(ways: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Held-out loss over tokens: {way: reports of each seed}."""
    import matplotlib.pyplot as plt

    chart, axes = plt.subplots(figsize=(7, 4))
    for way, seeds in ways.items():
        points = [[(tokens, loss) for tokens, loss, _ in curve(reports)] for reports in seeds]
        tokens = [tokens for tokens, _ in points[0]]
        axes.plot(tokens, np.mean([[loss for _, loss in seed] for seed in points], axis=0), label=way)
    axes.axhline(np.mean([seed[0]["loss_before"] for seed in ways["repeat"]]), color="gray", label="base")
    axes.set(xlabel="tokens", ylabel="held-out loss, nats/token")
    axes.legend()
    chart.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(chart)
