"""The demo's page: one HTML file with its charts inside, without scripts, links or network; light and dark."""

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from launch.demo_rules import TITLES, Answers
from launch.svg import Series, bars, chart, strip
from ling_jax.config import ModelConfig

TASKS = {"digit_sums": "Sums, worked out", "lookup": "Sums over a tool's numbers"}
COLOURS = {"GQA": "var(--c3)", "Lightning": "var(--c0)", "MLA": "var(--c1)"}
BAND = "masked_fraction/"  # metrics of the mask among tokens of a range of probability
PANELS = {
    "main_loss": "Loss, nats per token",
    "reward": "Reward",
    "accuracy": "Accuracy of samples",
    "tokens_per_answer": "Tokens per answer",
}
CALL_LINE = ">\n<"  # between the parts of a tool call, which take a line each
SHOWN_STAGES = 3  # conversations of a task side by side: the first stage, the middle one and the last
STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--text:#1c1c1e;--muted:#6a6a70;--grid:#e4e4e2;--line:#dcdcda;
--c0:#2f6fde;--c1:#d9663b;--c2:#2f9e6e;--c3:#8a63c9;--good:#1d7f4e;--bad:#b3382c;--none:#77777d;--said:#eef3fd}
@media(prefers-color-scheme:dark){:root{--bg:#131315;--card:#1c1c1f;--text:#ececee;--muted:#a0a0a8;--grid:#2c2c31;
--line:#33333a;--c0:#7aa7ff;--c1:#ff9b73;--c2:#5fd0a0;--c3:#bb9af0;--good:#5fd0a0;--bad:#ff8a7d;--none:#9a9aa2;
--said:#202a3d}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:20px 16px 60px}h1{font-size:28px;margin:.2em 0}h2{font-size:20px;
margin:2em 0 .5em}h3{font-size:15px;margin:1.2em 0 .4em}p{max-width:75ch}.muted{color:var(--muted)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin-top:10px}.facts b{display:block;font-size:18px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:12px}
.wide{grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr))}
svg{width:100%;height:auto;display:block;font-family:inherit}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;min-width:100%}td,th{padding:6px 8px;vertical-align:top;text-align:left;
border-bottom:1px solid var(--line);white-space:nowrap}th{font-weight:600}tr>th:first-child{white-space:normal}
.good{color:var(--good)}.bad{color:var(--bad)}
.badge{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 9px;font-size:12px;
font-weight:600}.none{color:var(--none)}.said{background:var(--said);border-radius:8px;padding:6px 9px;margin:5px 0;
font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.tool{border-left:3px solid var(--c3)}code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace}
"""


def page(
    report: Mapping[str, Any],
    metrics: Mapping[str, Answers],
    answers: Mapping[str, Answers],
    migration: Sequence[Mapping[str, Any]],
    models: Mapping[str, ModelConfig],
) -> str:
    """The page of a finished demo.

    `metrics` and `answers` are each stage's lines of metrics.jsonl and samples.jsonl, `migration` the reports of the
    migration's stages, `models` the configs of its base ("base") and of its result ("hybrid").
    """
    parts = [
        header(report),
        hero(report["stages"]),
        section("Report card", report_card(report["stages"])),
        section("The same tasks, stage by stage", conversations(answers)),
        section("Migration", migrated(migration, models)),
        section("Training", curves(metrics)),
        section("KPop: staleness and its mask", kpop(metrics.get("kpop", ()))),
        section("Findings", findings(report)),
        section("Where we lose", losses(report)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><title>ling_jax: from a base model to KPop</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def header(report: Mapping[str, Any]) -> str:
    facts = {
        "machine": report["machine"],
        "time": f"{report['seconds'] / 60:.1f} minutes",
        "model": f"{report['parameters'] / 1e6:.2f} M parameters",
        "stages": str(len(report["stages"])),
        "held-out tasks": f"{report['tasks']} of each kind",
    }
    shown = "".join(f"<div><span class=muted>{name}</span><b>{html.escape(v)}</b></div>" for name, v in facts.items())
    return (
        "<h1>From a base model to KPop</h1><p>Every stage of the Ling-2.6 report at toy scale, on this machine: a Ling "
        "2.0 base, its migration to Lightning and MLA layers, fine-tuning, reinforcement learning and distillation. "
        "After each stage the model answers the same held-out tasks, greedily.</p>"
        f'<div class="card"><div class=facts>{shown}</div></div>'
    )


def section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def examined(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The stages whose model has answered the tasks."""
    return [row for row in stages if all(task in row for task in TASKS)]


def hero(stages: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy with 95 % intervals and tokens per answer, by stage."""
    asked = examined(stages)
    names = [row["name"] for row in asked]
    accuracy = [
        Series(
            title,
            [(x, row[task]["accuracy"]) for x, row in enumerate(asked)],
            [row[task]["ci95"] for row in asked],
        )
        for task, title in TASKS.items()
    ]
    tokens = [Series(title, [(x, row[task]["tokens"]) for x, row in enumerate(asked)]) for task, title in TASKS.items()]
    charts = [
        chart("Accuracy, with 95 % intervals", accuracy, x_names=names, y_range=(0, 1), percent=True, width=520),
        chart("Tokens per answer", tokens, x_names=names, width=520),
    ]
    return f'<div class="grid wide" style="margin-top:14px">{"".join(card(one) for one in charts)}</div>'


def card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def report_card(stages: Sequence[Mapping[str, Any]]) -> str:
    """Rows are measures, columns stages; a change of accuracy is coloured where the intervals are apart."""
    asked = examined(stages)
    head = "".join(f"<th>{html.escape(row['name'])}" for row in asked)
    rows = []
    for task, title in TASKS.items():
        cells = [_accuracy(row[task], before and before[task]) for before, row in itertools.pairwise([None, *asked])]
        rows.append((f"{title}: right", cells))
        rows.append((f"{title}: tokens", [f"{row[task]['tokens']:.1f}" for row in asked]))
    rows.append(("superfluous tool calls", [f"{row['lookup']['superfluous_calls']:.2f}" for row in asked]))
    body = "".join(f"<tr><th>{html.escape(name)}<td>{'<td>'.join(cells)}" for name, cells in rows)
    times = "<td>".join(f"{row['seconds']:.0f} s" for row in asked)
    return (
        f'<div class="card scroll"><table><tr><th><span class=muted>tasks</span>{head}{body}'
        f"<tr><th>time of the stage<td>{times}</table></div>"
        "<p class=muted>Green or red: the 95 % interval lies above or below that of the stage before.</p>"
    )


def _accuracy(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    (low, high), kind = now["ci95"], ""
    if before:
        kind = "good" if low > before["ci95"][1] else "bad" if high < before["ci95"][0] else ""
    return f'<b class="{kind}">{now["accuracy"]:.1%}</b><br><span class=muted>{low:.0%} to {high:.0%}</span>'


def conversations(answers: Mapping[str, Answers]) -> str:
    """Of each kind a task that the stages answer differently, and one that the last stage gets wrong, if there is."""
    stages = list(answers)
    if not stages:
        return ""
    shown = list(dict.fromkeys([stages[0], stages[len(stages) // 2], stages[-1]]))[:SHOWN_STAGES]
    return "".join(
        f"<h3>{html.escape(TASKS.get(name, name))}{' (the last stage is wrong)' if failed else ''}</h3>"
        f"<div class=grid>{''.join(card(_conversation(stage, answers[stage][number])) for stage in shown)}</div>"
        for name, number, failed in _chosen(answers, stages[0], stages[-1])
    )


def _chosen(answers: Mapping[str, Answers], first: str, last: str) -> list[tuple[str, int, bool]]:
    """(kind, number of the task, whether it is a failure of the last stage)."""
    chosen = []
    by_kind = itertools.groupby(enumerate(answers[last]), lambda item: item[1]["environment"])
    for name, numbered in by_kind:
        items = list(numbered)
        learned = [n for n, answer in items if answer["outcome"] > answers[first][n]["outcome"]]
        solved = [n for n, answer in items if answer["outcome"]]
        failures = [n for n, answer in items if not answer["outcome"]]
        chosen += [(name, n, False) for n in (learned or solved)[:1]]
        chosen += [(name, n, True) for n in failures[:1]]
    return chosen


def _conversation(stage: str, answer: Mapping[str, Any]) -> str:
    right = bool(answer["outcome"])
    said = [f'<div class="said muted">{html.escape(answer["prompt"])}</div>']
    for message in answer["messages"]:
        kind = "said tool" if message["role"] == "tool" else "said"
        said.append(f'<div class="{kind}">{html.escape(message["content"].replace(CALL_LINE, "> <"))}</div>')
    verdict = f'<span class="{"good" if right else "bad"}">{"right" if right else "wrong"}</span>'
    if not answer["messages"]:
        said.append('<div class="said muted">(cut off by the limit of tokens)</div>')
    return f"<b>{html.escape(stage)}</b> {verdict}{''.join(said)}<span class=muted>expected: {_expected(answer)}</span>"


def _expected(answer: Mapping[str, Any]) -> str:
    return html.escape(str(answer.get("expected", "")))


def migrated(migration: Sequence[Mapping[str, Any]], models: Mapping[str, ModelConfig]) -> str:
    """The losses of each stage, the layers before and after, and what decoding keeps of the past."""
    if not migration:
        return ""
    names = [report["stage"] for report in migration]
    kinds = {"before": "loss_before", "converted": "loss_converted", "after": "loss_after"}
    series = [
        Series(name, [(x, report[key]) for x, report in enumerate(migration) if report.get(key)], dots=True)
        for name, key in kinds.items()
    ]
    series = [one for one in series if one.points]
    base, hybrid = models["base"], models["hybrid"]
    rows = [("Ling 2.0 base", layer_kinds(base)), ("hybrid", layer_kinds(hybrid))]
    used = {kind: COLOURS[kind] for kind in COLOURS if any(kind in kinds for _, kinds in rows)}
    contexts = [2**n for n in range(7, 18)]
    caches = [
        Series(name, [(n / 1000, cache_bytes(config, n) / 1e6) for n in contexts])
        for name, config in (("base", base), ("hybrid", hybrid))
    ]
    charts = [
        chart("Held-out loss, nats per token", series, x_names=names),
        strip("Kinds of layers", rows, used),
        chart("What decoding keeps of a text, MB", caches, x_label="thousand tokens"),
    ]
    return f"<div class=grid>{''.join(map(card, charts))}</div>"


def layer_kinds(config: ModelConfig) -> list[str]:
    softmax = {"mla": "MLA", "gqa": "GQA"}[config.full_attention]
    return [softmax if config.is_full_attention_layer(layer) else "Lightning" for layer in range(config.num_layers)]


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """Of one row: latents or keys and values in bfloat16, Lightning states in float32."""
    kinds = layer_kinds(config)
    per_token = {"MLA": config.kv_lora_rank + config.rope_dim, "GQA": 2 * config.num_kv_heads * config.head_dim}
    grows = sum(2 * per_token[kind] * tokens for kind in kinds if kind in per_token)
    return grows + 4 * kinds.count("Lightning") * config.num_heads * config.head_dim**2


def curves(metrics: Mapping[str, Answers]) -> str:
    """What each stage's metrics.jsonl holds of `PANELS`, by step."""
    parts = []
    for stage, lines in metrics.items():
        charts = []
        for name, title in PANELS.items():
            points = [(line["step"] + 1, line[name]) for line in lines if name in line]
            if not points:
                continue
            series = [Series("training", points)]
            held_out = [(line["step"] + 1, line["eval_loss"]) for line in lines if "eval_loss" in line]
            if name == "main_loss" and held_out:
                series.append(Series("held out", held_out, dots=True))
            charts.append(chart(title, series, x_label="step"))
        if charts:
            parts.append(f"<h3>{html.escape(TITLES[stage])}</h3><div class=grid>{''.join(map(card, charts))}</div>")
    return "".join(parts)


def kpop(lines: Answers) -> str:
    """How stale the samples of a step are, and what the mask drops by a token's probability."""
    stale = [line for line in lines if line.get("staleness/max", 0) > 0]
    charts = []
    steps = [(line["step"] + 1, line["staleness/max"]) for line in lines if "staleness/max" in line]
    if steps:
        charts.append(chart("Staleness, weight versions", [Series("largest of a step", steps)], x_label="step"))
    bands = [name for name in (stale[0] if stale else ()) if name.startswith(BAND)]
    if bands:
        values = [sum(line[name] for line in stale) / len(stale) for name in bands]
        names = [name.removeprefix(BAND) for name in bands]
        charts.append(bars("Tokens that the mask drops, by their probability", names, values, percent=True))
    return f"<div class=grid>{''.join(map(card, charts))}</div>" if charts else ""


def findings(report: Mapping[str, Any]) -> str:
    """A badge for each finding, with its rule, and why one was not seen."""
    kinds = {"reproduced": "good", "not seen": "bad", "not testable here": "none"}
    parts = []
    for found in report["findings"]:
        why = f"<br><span class=muted>Why not at this size: {html.escape(found['why'])}</span>" if found["why"] else ""
        parts.append(
            f'<tr><td><span class="badge {kinds[found["verdict"]]}">{found["verdict"]}</span>'
            f'<td style="white-space:normal"><b>{html.escape(found["name"])}</b> <span class=muted>'
            f"{html.escape(found['report_ref'])}</span><br>{html.escape(found['rule'])}{why}"
            f"<td>{shown(found['value'])}<td>{shown(found['ci95'])}<td>{found['n']}"
        )
    return (
        "<div class='card scroll'><table><tr><th>verdict<th>what the report says; rule<th>measured<th>95 %<th>n"
        f"{''.join(parts)}</table></div><p class=muted>One seed; the rules were fixed before the numbers.</p>"
    )


def shown(value: Any) -> str:
    """A number or an interval, as the table and the page have it."""
    if value is None:
        return "-"
    return f"[{', '.join(f'{x:.3g}' for x in value)}]" if isinstance(value, (list, tuple)) else f"{value:.3g}"


def losses(report: Mapping[str, Any]) -> str:
    """What is outside of its bar here, and what others do better."""
    failing = [claim for claim in report["claims"] if not claim["holds"]]
    lines = [f"{claim['name']}: {claim['value']:.2g}, the bar is {claim['bar']:g}. {claim['why']}" for claim in failing]
    lines += [
        "A run on a toy says that the code does what the report describes, not that the method wins at scale.",
        "On a CPU a step of a model this small is mostly overhead; eager PyTorch is timed beside it by "
        "`python -m benchmarks.train_step`.",
    ]
    items = "".join(f"<li>{html.escape(line)}" for line in lines)
    return f"<ul>{items}</ul>"
