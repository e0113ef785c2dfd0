"""The recovery study: small Ling 2.0 bases become hybrids in several ways; tokens and losses of each step.

Every run is a folder that goes on where it was, so a study that is stopped loses little.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping
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
from ling_jax.run.loop import prepare, train
from ling_jax.train.config import DataConfig, LoopConfig, OptimizerConfig, PretrainConfig, Source

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


EVAL_BATCHES = 4
MERGED = 5  # checkpoints
# Of the plan's stages, chosen on seed 0. Lower rates behind the first stage: what is nearly right is hurt more by steps
# of the base's size than it learns from them.
RATES = {"linear_warmup": OPTIMIZER.peak_lr, "partial": 1.5e-3, "mla_warmup": 1.5e-3, "continued": 1e-3}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Steps of 4096 tokens."""

    base: int
    linear: int  # of the stages with frozen parts
    partial: int
    mla: int
    repeat: int  # of a whole migration with repeated heads, and of what is compared with its end
    random: int  # of one with random heads
    one_rate: int  # of each schedule
    eval_every: int
    calibration: int  # tokens
    ways: tuple[str, ...]  # of `WAYS`
    seeds: tuple[int, ...]
    ratio_budgets: tuple[float, ...]  # training FLOPs of each hybrid ratio; none: they are not compared
    mtp_steps: int  # of the base and of three depths; 0: they are not compared


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to migrate, by what differs from the report's steps with repeated heads."""

    conversion: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gate: bool = False
    stages: int = 4  # the first so many
    shared: int = 0  # of these, the first ones that are those of `repeat`, and are taken from there
    form: str = ""  # all stages have it and train everything: stages, rates and tokens stay
    schedule: str = ""  # all is one such stage at the base's rate


WAYS: dict[str, Way] = {
    "repeat": Way(),
    "random": Way(conversion=dict(kv_heads="random")),
    "trained on": Way(form="gqa"),  # the base, which no stage converts
    "at once": Way(form="mla"),
    "random, gate": Way(conversion=dict(kv_heads="random"), gate=True, stages=1),
    "dropped": Way(conversion=dict(qk_norm="drop"), stages=2, shared=1),
    "real": Way(conversion=dict(pca="real"), stages=3, shared=2),
    "merge": Way(form="gqa", schedule="wsm"),  # and then the mean of the last checkpoints
    "cosine": Way(form="gqa", schedule="cosine"),
}

FULL = Preset(
    base=450, linear=30, partial=20, mla=5, repeat=105, random=135, one_rate=50, eval_every=10, calibration=16384,
    seeds=(0, 1, 2), ways=tuple(WAYS), ratio_budgets=(2e11, 6e11, 1.8e12), mtp_steps=120,
)  # fmt: skip
QUICK = Preset(
    base=10, linear=2, partial=2, mla=2, repeat=8, random=8, one_rate=10, eval_every=2, calibration=4096,
    seeds=(0,), ways=("repeat", "real", "trained on"), ratio_budgets=(), mtp_steps=0,
)  # fmt: skip


def train_base(preset: Preset, seed: int, folder: Path) -> None:
    """Leaves the workdir base_SEED."""
    data = dataclasses.replace(DATA, folder=str(folder / "tokens"))
    save_every = math.ceil(preset.base / 3)
    loop = LoopConfig(
        steps=preset.base, batch_size=ROWS, seed=seed, eval_batches=EVAL_BATCHES, save_every=save_every, keep=3
    )
    train(prepare(PretrainConfig(model=BASE, data=data, optimizer=OPTIMIZER, train=loop), folder / f"base_{seed}"))


def stages(preset: Preset, name: str) -> tuple[Stage, ...]:
    """Nothing ends early: budgets are used up, so that ways can be compared."""
    way, total = WAYS[name], preset.random if name == "random" else preset.repeat
    if way.schedule:
        one = Stage(name="one_rate", form=way.form, trains=EVERYTHING, tokens=preset.one_rate * STEP_TOKENS)
        return (one, Stage(name="merge", form=way.form, merges=MERGED)) if way.schedule == "wsm" else (one,)
    steps = dict(linear=preset.linear, partial=preset.partial, mla=preset.mla)
    steps["continued"] = total - sum(steps.values())
    plan = migration(TARGET, **{stage: count * STEP_TOKENS for stage, count in steps.items()}, gate=way.gate)
    other = dict(form=way.form, trains=EVERYTHING) if way.form else {}
    return tuple(
        dataclasses.replace(stage, peak_lr=RATES[stage.name], recovers=False, **other) for stage in plan[: way.stages]
    )


def migrate(preset: Preset, name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The reports of one way's stages."""
    way, workdir = WAYS[name], folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    how = dict(kv_heads="repeat", calibration_tokens=preset.calibration, held_out_tokens=4096, seed=seed)
    config = MigrateConfig(
        source=str(folder / f"base_{seed}"),
        target=TARGET,
        stages=stages(preset, name),
        data=dataclasses.replace(DATA, folder=str(folder / "tokens")),
        optimizer=dataclasses.replace(OPTIMIZER, warmup_steps=5, schedule=way.schedule or OPTIMIZER.schedule),
        train=StageLoop(
            batch_size=ROWS,
            seed=seed,
            eval_every=preset.eval_every,
            eval_batches=EVAL_BATCHES,
            save_every=preset.eval_every,
            keep=1,
        ),
        seen_tokens=preset.base * STEP_TOKENS,
        conversion=Conversion(**how | way.conversion),
    )
    for stage in sorted((folder / f"repeat_{seed}").glob("[0-9]*_*"))[: way.shared]:
        if not (workdir / stage.name).exists():
            with new_folder(workdir / stage.name) as partial:
                shutil.copytree(stage, partial, dirs_exist_ok=True)
    return run_plan(prepare_plan(config, workdir))


def curve(reports: list[dict[str, Any]]) -> list[tuple[int, float, str]]:
    """(tokens so far, held-out loss, form) of a migration: at each conversion and each evaluation."""
    points, before = [], 0
    for report in reports:
        if "loss_converted" in report:
            points.append((before, report["loss_converted"], report["form"]))
        points += [(before + step * STEP_TOKENS, loss, report["form"]) for step, loss in report.get("curve", [])]
        before += report.get("tokens", 0)
    return points


def recovery_tokens(reports: list[dict[str, Any]]) -> float:
    """Tokens, all stages included, after which the hybrid is within 1 % of the base and stays so; infinity if never."""
    points, base_loss = curve(reports), reports[0]["loss_before"]
    outside = [i for i, (_, loss, form) in enumerate(points) if form != "mla" or loss > RECOVERED * base_loss]
    behind = points[outside[-1] + 1 :] if outside else points
    return behind[0][0] if behind else math.inf


def figure(ways: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Held-out loss over tokens: {way: reports of each seed}; the mean over seeds."""
    import matplotlib.pyplot as plt

    chart, axes = plt.subplots(figsize=(8, 5))
    for way, seeds in ways.items():
        points = [[(tokens, loss) for tokens, loss, _ in curve(reports)] for reports in seeds]
        tokens = [tokens for tokens, _ in points[0]]
        axes.plot(tokens, np.mean([[loss for _, loss in seed] for seed in points], axis=0), label=way)
    base = np.mean([seed[0]["loss_before"] for seed in ways["repeat"]])
    axes.axhline(base, color="black", linewidth=1, label="base")
    axes.axhline(RECOVERED * base, color="black", linewidth=1, linestyle=":", label="base + 1 %")
    axes.set(xlabel="tokens behind the base", ylabel="held-out loss, nats/token")
    axes.legend()
    chart.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(chart)
