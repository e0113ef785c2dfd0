"""The figures of the demo's page, each a pure function of what the stages wrote."""

import html
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.demo_rules import ON_TEXTS, TITLES, Answers
from launch.demo_slots import slots
from launch.svg import Series, bars, chart, padded, strip, values_of
from ling_jax.config import ModelConfig
from ling_jax.evaluate.statistics import Z95

Stages = Sequence[Mapping[str, Any]]  # rows of report.json, a stage each
Interval = tuple[float, float]

TASKS = {  # environment -> title; others have their name
    "digit_sums": "Sums",
    "lookup": "Lookups",
    "search": "Searches",
    "functions": "Functions",
}
LAYERS = {
    "GQA": "var(--c3)",
    "Lightning": "var(--c0)",
    "MLA": "var(--c1)",
    "dense": "var(--c4)",
    "experts": "var(--c2)",
}
BAND = "masked_fraction/"  # metrics of the mask among tokens of a range of probability
CONTEXTS = [2**n for n in range(7, 18)]


class Measure(NamedTuple):
    """What training curves show: metrics with the names of their lines, and the result of evaluations beside them."""

    title: str
    metrics: Mapping[str, str]
    result: str = ""  # of a stage's row in report.json; "": none
    of_stage: Callable[[str], bool] = lambda stage: True
    percent: bool = False
    caption: str = ""


def on_texts(stage: str) -> bool:
    """Whether the loss of a stage is one of plain texts; that of the others is one of answers."""
    return stage in ON_TEXTS


def of_experts(stage: str) -> bool:
    """Whether it is the stage whose model has experts and MTP."""
    return stage == "experts"


LOSS = {"main_loss": "training", "eval_loss": "held out"}
MEASURES = (
    Measure(
        "Loss on texts, nats per token",
        LOSS,
        of_stage=on_texts,
        caption="Most training rows are tasks, with a lower loss than English has; of the held-out rows half are.",
    ),
    Measure(
        "Losses of the next tokens, nats per token",
        {"main_loss": "the next", "mtp_loss_0": "the one after it, by MTP"},
        of_stage=of_experts,
    ),
    Measure(
        "Load of the busiest expert over the mean",
        {"load_max_over_mean": "training"},
        of_stage=of_experts,
        caption="The router's bias moves against the load; at 1 all experts have the same number of tokens.",
    ),
    Measure("Loss on answers, nats per token", LOSS, of_stage=lambda stage: not on_texts(stage)),
    Measure("Reward", {"reward": "training"}, caption="Each stage has a reward of its own."),
    Measure(
        "Accuracy",
        {"accuracy": "samples in training"},
        result="accuracy",
        percent=True,
        caption="Samples are drawn at temperature 1; evaluations are greedy, on held-out tasks, before and after.",
    ),
    Measure("Tokens per answer", {"tokens_per_answer": "samples in training"}, result="tokens"),
)


def environments(stages: Stages) -> list[str]:
    """The kinds of tasks that the stages' models were evaluated on."""
    return list(dict.fromkeys(name for row in stages for name, part in row.items() if _is_result(part)))


def task_title(environment: str) -> str:
    return TASKS.get(environment, environment)


def evaluated(stages: Stages) -> list[Mapping[str, Any]]:
    """The stages whose model has answered all kinds of tasks."""
    names = environments(stages)
    return [row for row in stages if names and all(name in row for name in names)]


def _is_result(part: Any) -> bool:
    return isinstance(part, Mapping) and "accuracy" in part


def mean_interval(values: Iterable[float]) -> tuple[float, Interval]:
    """(mean, its 95 % interval by the normal approximation)."""
    array = np.array(list(values), np.float64)
    half = Z95 * array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), (float(array.mean() - half), float(array.mean() + half))


def tokens_of(answers: Answers, environment: str) -> tuple[float, Interval]:
    """Mean tokens of an answer to these tasks, with its interval."""
    return mean_interval(answer["tokens"] for answer in answers if answer["environment"] == environment)


def figure(drawing: str, caption: str = "") -> str:
    """A card with a chart and a sentence below it."""
    return f'<div class="card">{drawing}{f"<p class=caption>{html.escape(caption)}</p>" if caption else ""}</div>'


def hero(stages: Stages, answers: Mapping[str, Answers]) -> str:
    """Accuracy and tokens per answer by stage, with 95 % intervals; lines follow the model that a stage starts from."""
    rows = evaluated(stages)
    names = [row["name"] for row in rows]
    if not rows:
        return ""
    links = [(names.index(row["from"]), place) for place, row in enumerate(rows) if row.get("from") in names]
    accuracy, tokens = [], []
    for environment in environments(rows):
        title, results = task_title(environment), [row[environment] for row in rows]
        points = [(place, result["accuracy"]) for place, result in enumerate(results)]
        accuracy.append(Series(title, points, [result["ci95"] for result in results], links=links))
        means = [tokens_of(answers[name], environment) for name in names]
        points = [(place, mean) for place, (mean, _) in enumerate(means)]
        tokens.append(Series(title, points, [interval for _, interval in means], links=links))
    size = dict(width=400, max_width=520)
    charts = [
        chart("Accuracy, with 95 % intervals", accuracy, x_names=names, y_range=(0, 1), percent=True, **size),
        chart("Tokens per answer, with 95 % intervals", tokens, x_names=names, **size),
    ]
    return f'<div class="grid wide">{"".join(map(figure, charts))}</div>'


def migration(reports: Sequence[Mapping[str, Any]], models: Mapping[str, ModelConfig]) -> str:
    """The losses of each stage, the layers before and after, and the cache against the context."""
    if not reports:
        return ""
    names = [report["stage"] for report in reports]
    kinds = {"before": "loss_before", "converted": "loss_converted", "after training": "loss_after"}
    series = [
        Series(name, [(x, report[key]) for x, report in enumerate(reports) if report.get(key)], dots=True)
        for name, key in kinds.items()
    ]
    base, hybrid = models["base"], models["hybrid"]
    rows = [("Ling 2.0 base", layer_kinds(base)), ("hybrid", layer_kinds(hybrid)), ("feed-forward", ffn_kinds(hybrid))]
    used = {kind: LAYERS[kind] for kind in LAYERS if any(kind in kinds for _, kinds in rows)}
    caches = [
        Series(name, [(tokens, cache_bytes(config, tokens) / 1e3) for tokens in CONTEXTS])
        for name, config in (("Ling 2.0 base", base), ("hybrid", hybrid))
    ]
    saved = cache_bytes(base, CONTEXTS[-1]) / cache_bytes(hybrid, CONTEXTS[-1])
    figures = [
        figure(
            chart("Held-out loss, nats per token", series, x_names=names),
            "A conversion changes layers and raises the loss; the training after it brings the loss back.",
        ),
        figure(
            strip("Layers, from the first to the last", rows, used),
            "Lightning layers keep a state of fixed size; GQA layers keep keys and values of every token, MLA layers "
            "one small latent.",
        ),
        figure(
            chart("Cache of one sequence, kB", caches, x_label="tokens of context", log=True),
            f"At {CONTEXTS[-1]:,} tokens the hybrid's cache is {saved:.1f} times smaller.",
        ),
    ]
    return f"<div class=grid>{''.join(figures)}</div>"


def layer_kinds(config: ModelConfig) -> list[str]:
    full = {"mla": "MLA", "gqa": "GQA"}[config.full_attention]
    return [full if config.is_full_attention_layer(layer) else "Lightning" for layer in range(config.num_layers)]


def ffn_kinds(config: ModelConfig) -> list[str]:
    return ["dense" if layer < config.first_dense_layers else "experts" for layer in range(config.num_layers)]


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """Of one sequence: latents or keys and values in bfloat16, Lightning states in float32."""
    kinds = layer_kinds(config)
    per_token = {"MLA": config.kv_lora_rank + config.rope_dim, "GQA": 2 * config.num_kv_heads * config.head_dim}
    grows = sum(2 * per_token[kind] * tokens for kind in kinds if kind in per_token)
    return grows + 4 * kinds.count("Lightning") * config.num_heads * config.head_dim**2


def larger_cache_below(models: Mapping[str, ModelConfig]) -> int:
    """The context in tokens up to which the hybrid's cache is larger than the base's; 0 where it never is."""
    extra = cache_bytes(models["hybrid"], 0) - cache_bytes(models["base"], 0)
    slope = cache_bytes(models["base"], 1) - cache_bytes(models["base"], 0)
    slope -= cache_bytes(models["hybrid"], 1) - cache_bytes(models["hybrid"], 0)
    return extra // slope if slope > 0 else 0


def curves(stages: Stages, metrics: Mapping[str, Answers]) -> str:
    """Small charts of the stages' metrics by step, those of one measure with the same axes."""
    rows = {row["name"]: row for row in stages}
    parts = []
    for measure in MEASURES:
        by_stage = {}
        for stage, lines in metrics.items():
            found = _logged(lines, measure.metrics) if measure.of_stage(stage) else []
            if found:
                by_stage[stage] = [*found, *_evaluations(rows, stage, measure.result, len(lines))]
        parts.append(_small_multiples(measure, by_stage))
    return "".join(parts)


def _logged(lines: Answers, names: Mapping[str, str]) -> list[Series]:
    """A series for each metric that the lines have; `eval_loss` is measured at some steps only, and is dots."""
    found = []
    for key, name in names.items():
        points = [(line["step"] + 1, line[key]) for line in lines if _is_number(line.get(key))]
        if points:
            found.append(Series(name, points, dots=key == "eval_loss"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _evaluations(rows: Mapping[str, Mapping[str, Any]], stage: str, key: str, steps: int) -> list[Series]:
    """Dots for the held-out results of the model that a stage starts from, at step 0, and of its own, at the end.

    KPop's are of held-out tasks of its own kind, since its tasks are others than those that all stages are asked.
    """
    row = rows.get(stage, {})
    environment = row.get("environment")
    before, after = rows.get(row.get("from", ""), {}).get(environment), row.get(environment)
    if "own" in row:
        before, after = row["own"].values()
    points = [(step, result[key]) for step, result in ((0, before), (steps, after)) if result and key]
    return [Series("evaluation", points, dots=True)] if points else []


def _small_multiples(measure: Measure, by_stage: Mapping[str, Sequence[Series]]) -> str:
    """A heading and a chart for each stage, all with the same axes."""
    if not by_stage:
        return ""
    series = list(itertools.chain.from_iterable(by_stage.values()))
    steps = [x for one in series for x, _ in one.points]
    axes = dict(
        x_label="step",
        x_range=(min(steps), max(steps)),
        y_range=(0, 1) if measure.percent else padded(values_of(series)),
        percent=measure.percent,
    )
    charts = [figure(chart(TITLES.get(stage, stage), shown, **axes)) for stage, shown in by_stage.items()]
    caption = f"<p class=caption>{html.escape(measure.caption)}</p>" if measure.caption else ""
    return f"<h3>{html.escape(measure.title)}</h3>{caption}<div class=grid>{''.join(charts)}</div>"


def kpop(lines: Answers, timeline: Iterable[Mapping[str, Any]]) -> str:
    """Staleness by step, what is drawn beside learning, what the mask drops by step and by a token's probability, and
    who held the slots."""
    drawn = []
    if ages := _logged(lines, {"staleness/max": "oldest token", "staleness/mean": "mean of tokens"}):
        caption = "How many updates lie between the sampling of a token and the step that learns from it."
        drawn.append(figure(chart("Staleness, weight versions", ages, x_label="step"), caption))
    if any(line.get("tokens_beside") for line in lines):
        tokens = _logged(lines, {"generated_tokens": "of the step's version", "tokens_beside": "beside the step"})
        caption = (
            "Generation goes on while the weights learn. What is drawn beside a step comes from the weights before it, "
            "and counts towards the next version."
        )
        drawn.append(figure(chart("Tokens drawn, by step", tokens, x_label="step"), caption))
    if dropped := _logged(lines, {"masked_fraction": "dropped"}):
        caption = "The share of a step's tokens whose probability has moved too far since they were sampled."
        title = "Tokens that the mask drops, by step"
        drawn.append(figure(chart(title, dropped, x_label="step", percent=True), caption))
    stale = [line for line in lines if _is_number(line.get("staleness/max")) and line["staleness/max"] > 0]
    if bands := [name for name in (stale[0] if stale else ()) if name.startswith(BAND)]:
        values = [sum(line[name] for line in stale) / len(stale) for name in bands]
        names = [name.removeprefix(BAND) for name in bands]
        caption = (
            f"Mean of the {len(stale)} steps that had stale tokens. KPop's bound on the divergence is loose for rare "
            "tokens and tight for nearly certain ones."
        )
        drawn.append(figure(bars("Tokens dropped, by their probability", names, values, percent=True), caption))
    grid = f"<div class=grid>{''.join(drawn)}</div>" if drawn else ""
    return grid + slots(timeline)
