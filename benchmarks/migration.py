"""Migration: what is exact, what a layer of the 1T takes, and how soon a small base recovers.

python -m benchmarks.migration --json_out=migration.json --workdir=runs/migration_study

`--quick` (two minutes on 2 CPU cores) leaves out the recovery claims, since its base learns too little, and what takes
long. The study's runs stay in the workdir, with its figures, and a benchmark that is started again goes on. Rates and
lengths of stages were chosen on seed 0; seeds 1 and 2 have not been seen.
"""

import dataclasses
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats
from absl import app, flags, logging

from benchmarks import hybrid_ratio, mtp_depths
from benchmarks import migration_recovery as study
from benchmarks.json_out import JSON_OUT
from benchmarks.report import Claim, Finding, check_json_out, finish
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.layers import open_layers
from ling_jax.config import ModelConfig, model_config
from ling_jax.migrate.qk_fusion import fused_config
from ling_jax.migrate.transmla import gqa_to_mla, mla_config
from ling_jax.model.rope import inverse_frequencies
from ling_jax.spec import named_leaves
from ling_jax.train.merge import DECAYS, decay_weights, merge_checkpoints, merge_coefficients

QUICK = flags.DEFINE_bool("quick", False, "a study too short to recover, which shows that all runs")
WORKDIR = flags.DEFINE_string("workdir", None, "where the study's runs go; a temporary folder if not given")
LAYER = flags.DEFINE_bool("layer_1t", False, "only convert one layer of the 1T's shape; prints seconds and bytes")

LAYER_TOKENS = 8192  # of calibration: five times the query rank


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if LAYER.value:
        print(json.dumps(convert_1t_layer()))
        return
    check_json_out(JSON_OUT.value)
    preset = study.QUICK if QUICK.value else study.FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(WORKDIR.value or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = run_study(preset, folder)  # first: it goes on where it was, the others begin again
        claims = [*layer_1t_claims(), exact_claim("random", random_layer())]
        claims += [exact_claim("trained", trained_layer(folder / "base_0")), merge_claim(folder / "base_0")]
        findings = findings_of(results, preset)
        print(table(results, preset.ways))
        study.figure({way: [r[way] for r in results.values()] for way in preset.ways}, folder / "recovery.png")
        if not QUICK.value:
            claims += [recovery_claim(results, way, bar, preset) for way, bar in (("repeat", 0.25), ("random", 0.38))]
            findings += [mtp_depths.finding(mtp_depths.accepted_lengths(preset.mtp_steps, folder))]
            ratios = hybrid_ratio.losses(preset.ratio_budgets, folder)
            findings += [hybrid_ratio.finding(preset.ratio_budgets, ratios)]
            hybrid_ratio.figure(preset.ratio_budgets, ratios, folder / "hybrid_ratio.png")
    command = "python -m benchmarks.migration" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value, findings))


Result = dict[str, list[dict[str, Any]]]  # of one seed: reports of each way's stages


def run_study(preset: study.Preset, folder: Path) -> dict[int, Result]:
    """Of each seed; way by way, so that what is stopped has the first ways of all seeds."""
    for seed in preset.seeds:
        study.train_base(preset, seed, folder)
    results: dict[int, Result] = {seed: {} for seed in preset.seeds}
    for way, seed in itertools.product(preset.ways, preset.seeds):
        results[seed][way] = study.migrate(preset, way, seed, folder)
    return results


def convert_1t_layer() -> dict[str, float]:
    """Of random weights and inputs whose energy falls along the dims, as that of activations does."""
    source = fused_config(model_config("ling-1t"))
    target = mla_config(source, model_config("ling-2.6-1t"))
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32) * np.float32(0.01)  # noqa: E731
    c = source
    layer = {name: draw(c.hidden_size, c.num_kv_heads, c.head_dim) for name in ("k", "v")}
    layer |= {"q": draw(c.hidden_size, c.num_heads, c.head_dim), "out": draw(c.num_heads, c.head_dim, c.hidden_size)}
    x_ND = draw(LAYER_TOKENS, c.hidden_size) * 100 / np.sqrt(1 + np.arange(c.hidden_size, dtype=np.float32))
    start = time.perf_counter()
    _, kept = gqa_to_mla(layer, x_ND, source, target)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} | kept._asdict()


def layer_1t_claims() -> list[Claim]:
    """In a process of its own, for its memory."""
    command = [sys.executable, "-m", "benchmarks.migration", "--layer_1t"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    workload = f"hidden 8192, 64 heads, 8 key/value heads to ranks 1536 and 512; {LAYER_TOKENS} calibration tokens"
    return [
        Claim("layer_1t_seconds", found["seconds"], "s", "<=", 180.0, workload),
        Claim("layer_1t_gigabytes", found["kilobytes"] * 1024 / 1e9, "GB", "<=", 8.0, workload),
    ]


def random_layer() -> tuple[dict[str, np.ndarray], ModelConfig]:
    rng, config = np.random.default_rng(0), fused_config(study.BASE)
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    layer = {name: rng.normal(0, 0.1, (config.hidden_size, count, config.head_dim)) for name, count in heads.items()}
    return layer | {"out": rng.normal(0, 0.1, (config.num_heads, config.head_dim, config.hidden_size))}, config


def trained_layer(workdir: Path) -> tuple[dict[str, np.ndarray], ModelConfig]:
    """The last layer of a base, its QK-norms left out (fused or not makes no difference to what is exact)."""
    mixer = open_layers(workdir).layer(study.BASE.num_layers - 1)["mixer"]
    layer = {name: np.asarray(mixer[name], np.float64) for name in ("q", "k", "v", "out")}
    return layer, fused_config(study.BASE)


def exact_claim(name: str, of: tuple[dict[str, np.ndarray], ModelConfig]) -> Claim:
    """The worst relative error of the cases in which the conversion is exact, latent norms left out."""
    layer, source = of
    rng, half = np.random.default_rng(1), source.rotary_dim // 2
    one = layer | {kv: layer[kv][:, :1] for kv in ("k", "v")}
    rank_one = layer | {"k": layer["k"].copy()}
    for head in range(1, source.num_kv_heads):  # each rope key a complex multiple of the first one's, per frequency
        first = layer["k"][:, 0, :half] + 1j * layer["k"][:, 0, half : 2 * half]
        multiple = first * (rng.normal(size=half) + 1j * rng.normal(size=half))
        rank_one["k"][:, head, : 2 * half] = np.concatenate([multiple.real, multiple.imag], axis=1)
    cases = {
        "one key/value head": (one, dataclasses.replace(source, num_kv_heads=1), 1),
        "all components": (layer, source, source.num_kv_heads),
        "rank-1 rope keys": (rank_one, source, 1),
    }
    errors = {case: exact_error(*arguments, rng) for case, arguments in cases.items()}
    told = ", ".join(f"{case} {error:.1e}" for case, error in errors.items())
    return Claim(f"exact_{name}", max(errors.values()), "", "<=", 1e-6, f"float64, 64 tokens: {told}")


def exact_error(layer, source: ModelConfig, components: int, rng: np.random.Generator) -> float:
    rope, full = components * source.rotary_dim, 2 * source.num_kv_heads * source.head_dim
    ranks = dict(kv_lora_rank=min(source.hidden_size, full - rope), q_lora_rank=source.hidden_size)
    sizes = dict(nope_dim=source.head_dim, rope_dim=rope, v_dim=source.head_dim)
    target = dataclasses.replace(source, full_attention="mla", **ranks, **sizes)
    x_ND, x_TD = rng.normal(size=(1024, source.hidden_size)), rng.normal(size=(64, source.hidden_size))
    converted, _ = gqa_to_mla(layer, x_ND, source, target)
    wanted, found = plain_gqa(layer, x_TD, source), plain_mla(converted, x_TD, target, components)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def plain_gqa(layer, x_TD, config: ModelConfig):
    """GQA without QK-norm, written out."""
    q, k, v = (np.einsum("TD,DHK->HTK", x_TD, layer[name]) for name in ("q", "k", "v"))
    group, half = config.num_heads // config.num_kv_heads, config.rotary_dim // 2

    def turned(y):
        return np.concatenate([turn(y[..., :half], y[..., half : 2 * half], config), y[..., 2 * half :]], axis=-1)

    k, v = turned(k).repeat(group, axis=0), v.repeat(group, axis=0)
    return attend(turned(q), k, v, config.head_dim**-0.5, layer["out"])


def plain_mla(layer, x_TD, config: ModelConfig, components: int):
    """MLA without latent norms, written out; the rope table of one component repeats."""
    q = np.einsum("TD,DR,RHK->HTK", x_TD, layer["q_a"], layer["q_b"])
    down = x_TD @ layer["kv_a"]
    latent, rope = down[:, : config.kv_lora_rank], down[None, :, config.kv_lora_rank :]
    kv = np.einsum("TR,RHK->HTK", latent, layer["kv_b"])

    def turned(y):
        parts = np.split(y, components, axis=-1)
        return np.concatenate([turn(part[..., 0::2], part[..., 1::2], config) for part in parts], axis=-1)

    nope = config.nope_dim
    q = np.concatenate([q[..., :nope], turned(q[..., nope:])], -1)
    k = np.concatenate([kv[..., :nope], turned(rope).repeat(config.num_heads, axis=0)], -1)
    return attend(q, k, kv[..., nope:], (nope + config.rope_dim) ** -0.5, layer["out"])


def turn(a, b, config: ModelConfig):
    """Pairs (a, b) of [H, T, n/2] each, rotated by their token's angles."""
    frequencies, _ = inverse_frequencies(config.rotary_dim, config.rope_theta, None)
    angles = np.arange(a.shape[1])[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q, k, v, scale: float, out_HVD):
    score = np.where(np.tril(np.ones((q.shape[1],) * 2, bool)), np.einsum("HTK,HSK->HTS", q, k) * scale, -np.inf)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return np.einsum("HTS,HSV,HVD->TD", weight / weight.sum(axis=-1, keepdims=True), v, out_HVD)


def merge_claim(workdir: Path) -> Claim:
    """Merging checkpoints against applying decayed updates, on the checkpoints of a base: the worst leaf and decay."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    trees = [orbax.load_params(workdir / "checkpoints", step)[0] for step in steps]
    leaves = [named_leaves(jax.tree.map(np.asarray, tree)) for tree in trees]
    worst = 0.0
    for decay in DECAYS:
        weights = decay_weights(decay, len(leaves) - 1)
        merged = merge_checkpoints(iter(leaves), merge_coefficients(weights))
        for name, start in leaves[0].items():
            updates = [old[name].astype(np.float64) - new[name] for old, new in itertools.pairwise(leaves)]
            decayed = start - sum(w * u for w, u in zip(weights, updates, strict=True))
            worst = max(worst, float(np.abs(merged[name] - decayed).max()))
    return Claim("merged_equals_decayed", worst, "", "<=", 1e-6, f"{len(leaves)} checkpoints of a base, three decays")


def recovery_claim(results: dict[int, Result], way: str, bar: float, preset: study.Preset) -> Claim:
    """Mean over seeds of the tokens until the hybrid is within 1 % of the base and stays, over the base's tokens."""
    base_tokens = preset.base * study.STEP_TOKENS
    shares = {seed: study.recovery_tokens(result[way]) / base_tokens for seed, result in results.items()}
    told = ", ".join(f"seed {seed} {share:.3f}" for seed, share in shares.items())
    workload = f"0.86M parameters, base of {base_tokens} tokens: {told}"
    return Claim(f"recovery_tokens_over_base.{way}", statistics.mean(shares.values()), "", "<=", bar, workload)


Measure = Callable[[Result], float]
LINEAR, PARTIAL, MLA, LAST = 0, 1, 2, -1  # stages
# (name, report's section, ours, theirs): each a way, a stage of it and what its report says.
COMPARED = (
    ("hybrid_against_base_trained_on", "§2.1.3", ("repeat", LAST, "loss_after"), ("trained on", LAST, "loss_after")),
    ("repeat_against_random", "§2.1.3", ("repeat", LINEAR, "loss_after"), ("random", LINEAR, "loss_after")),
    ("complex_against_real", "§2.1.3", ("repeat", MLA, "loss_converted"), ("real", MLA, "loss_converted")),
    ("fused_against_dropped", "§2.1.3", ("repeat", PARTIAL, "loss_converted"), ("dropped", PARTIAL, "loss_converted")),
    ("fused_against_dropped_trained", "§2.1.3", ("repeat", PARTIAL, "loss_after"), ("dropped", PARTIAL, "loss_after")),
    ("gate_against_none", "§2.1.3", ("random, gate", LINEAR, "loss_after"), ("random", LINEAR, "loss_after")),
    ("steps_against_all_at_once", "§2.1.3", ("repeat", LAST, "loss_after"), ("at once", LAST, "loss_after")),
    ("merge_against_constant", "§2.3.1", ("merge", LAST, "loss_after"), ("merge", 0, "loss_after")),
    ("merge_against_cosine", "§2.3.1", ("merge", LAST, "loss_after"), ("cosine", LAST, "loss_after")),
)  # fmt: skip


def findings_of(results: dict[int, Result], preset: study.Preset) -> list[Finding]:
    """Differences of held-out losses, one a seed; below 0 where the first of the two is better.

    Both sides start from the same base, read the same tokens with the same rates, and differ in what is compared.
    """
    at = lambda way, stage, key: lambda result: result[way][stage][key]  # noqa: E731
    return [
        difference(name, ref, at(*ours), at(*theirs), results)
        for name, ref, ours, theirs in COMPARED
        if {ours[0], theirs[0]} <= set(preset.ways)
    ]


def difference(name: str, ref: str, ours: Measure, theirs: Measure, results: dict[int, Result]) -> Finding:
    values = [ours(result) - theirs(result) for result in results.values()]
    rule = (
        "reproduced if the 95 % interval of the difference over seeds lies below 0; not testable with one seed; found "
    )
    rule += ", ".join(f"{value:+.4f}" for value in values)
    mean = statistics.mean(values)
    if len(values) < 2:
        return Finding(name, ref, mean, None, len(values), list(results), rule, "not testable here")
    spread = statistics.stdev(values) / len(values) ** 0.5
    interval = tuple(float(x) for x in scipy.stats.t.interval(0.95, len(values) - 1, mean, spread))
    verdict = "reproduced" if interval[1] < 0 else "not seen"
    return Finding(name, ref, mean, interval, len(values), list(results), rule, verdict)


def table(results: dict[int, Result], ways: tuple[str, ...]) -> str:
    """Held-out losses along each way, a stage's before, between and after; seeds in columns."""
    lines = []
    for way in ways:
        for stage, report in enumerate(next(iter(results.values()))[way]):
            for key in ("loss_before", "loss_converted", "loss_after"):
                if key in report:
                    row = " ".join(f"{result[way][stage][key]:.4f}" for result in results.values())
                    lines.append(f"{way:<14} {report['stage']:<14} {key:<15} {row}")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
