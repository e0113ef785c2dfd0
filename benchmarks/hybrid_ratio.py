"""How many Lightning layers to a softmax layer: small models of equal training FLOPs (report §2.1.2).

The report compares groups of 2, 4, 8 and 16 layers between 1e18 and 3e20 FLOPs; here are four orders less.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from benchmarks.migration_recovery import DATA, LENGTH, OPTIMIZER
from benchmarks.report import Finding
from ling_jax.config import ModelConfig, model_config
from ling_jax.model.flops import flops_per_token
from ling_jax.run.loop import prepare, train
from ling_jax.train.config import LoopConfig, PretrainConfig

ROWS = 8
GROUPS = (1, 2, 4, 8, 16)  # layers to one softmax layer; 1: softmax alone
REPORTED_BEST = 8


def model_of(group: int) -> ModelConfig:
    return model_config(
        "tiny-2.6", vocab_size=1024, hidden_size=48, num_layers=16, layer_group_size=group, num_heads=2, head_dim=24,
        num_norm_groups=2, rotary_dim=12, q_lora_rank=36, kv_lora_rank=24, nope_dim=24, rope_dim=12, v_dim=24,
        ffn_size=96, first_dense_layers=16, mtp_depth=0, max_length=LENGTH, loss_chunk=128,
        init_std=0.1,
    )  # fmt: skip


def losses(budgets: tuple[float, ...], folder: Path, seed: int = 0) -> dict[int, list[float]]:
    """{group: held-out loss after each budget of training FLOPs}; tokens are those of the study's base.

    Budgets are multiples of the first. One run at a constant rate passes through all of a group's (report §2.3.1).
    """
    return {group: _losses(model_of(group), budgets, folder, seed) for group in GROUPS}


def _losses(model: ModelConfig, budgets: tuple[float, ...], folder: Path, seed: int) -> list[float]:
    first = round(budgets[0] / (flops_per_token(model, LENGTH) * LENGTH * ROWS))
    steps = [first * round(budget / budgets[0]) for budget in budgets]
    data = dataclasses.replace(DATA, folder=str(folder / "tokens"), tokenizer=str(folder / "base_0/tokenizer"))
    loop = LoopConfig(
        steps=steps[-1], batch_size=ROWS, seed=seed, log_every=50, eval_every=first, save_every=first, keep=1
    )
    workdir = folder / f"ratio_{model.layer_group_size}"
    train(prepare(PretrainConfig(model=model, data=data, optimizer=OPTIMIZER, train=loop), workdir))
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [lines[step - 1]["eval_loss"] for step in steps]


def fits(budgets: tuple[float, ...], found: dict[int, list[float]]) -> dict[int, tuple[float, float]]:
    """{group: (slope, intercept) of log loss over log10 FLOPs}: a power law without an irreducible part."""
    return {group: tuple(np.polyfit(np.log10(budgets), np.log(values), 1)) for group, values in found.items()}


def finding(budgets: tuple[float, ...], found: dict[int, list[float]]) -> Finding:
    """Which group's trend is lowest at ten times the largest budget."""
    at = np.log10(10 * budgets[-1])
    ahead = {group: slope * at + intercept for group, (slope, intercept) in fits(budgets, found).items()}
    best = min(ahead, key=ahead.get)
    told = ", ".join(f"{group}: {value:.4f}" for group, value in ahead.items())
    rule = (
        f"reproduced if the trend of log loss at ten times the largest budget is lowest for groups of {REPORTED_BEST}; "
        f"not testable with fewer than three budgets; found {told}"
    )
    verdict = "not testable here" if len(budgets) < 3 else "reproduced" if best == REPORTED_BEST else "not seen"
    return Finding("hybrid_ratio", "§2.1.2", float(best), None, len(budgets) * len(GROUPS), [0], rule, verdict)


def figure(budgets: tuple[float, ...], found: dict[int, list[float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    chart, axes = plt.subplots(figsize=(6, 4))
    for group, values in found.items():
        (line,) = axes.plot(budgets, values, "o", label=f"{group - 1} : 1" if group > 1 else "softmax alone")
        slope, intercept = fits(budgets, found)[group]
        axes.plot(budgets, np.exp(slope * np.log10(budgets) + intercept), color=line.get_color(), linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="held-out loss, nats/token")
    axes.legend(title="Lightning : softmax")
    chart.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(chart)
