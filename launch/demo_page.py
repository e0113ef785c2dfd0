"""The demo's page: one HTML file with its charts inside, no scripts, no network; light and dark, desktop and phone."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import demo_figures as figures
from launch.demo_figures import Interval, Stages, environments, evaluated, task_title
from launch.demo_rules import TITLES, Answers
from ling_jax.chat.tool_calls import parse_either
from ling_jax.config import ModelConfig

STYLE = Path(__file__).with_suffix(".css")
BADGES = {"reproduced": "good", "not seen": "bad", "not testable here": "none"}
KNOWN_LOSSES = (  # (what we do worse or cannot say, the command that shows it)
    (
        "Eager PyTorch with MKL trains faster on a CPU: our step of a hybrid of 110 M parameters runs at 0.88 to 0.94 "
        "times its speed, measured in four runs on two cores.",
        "python -m benchmarks.train_step",
    ),
    (
        "On a CPU the experts take 1.8 to 1.9 times as long as their matrix products would at the machine's peak.",
        "python -m benchmarks.train_step",
    ),
    (
        "Nothing has run on a TPU. The programs are compiled for TPUs, which gives memory and a lower bound on time, "
        "and no measured speed.",
        "python -m launch.compile --config=configs/pretrain/ling_2_6_1t.py --topology=v5p:8x8x16",
    ),
    (
        "A run of a toy shows that the code does what the report describes. It does not show that a method helps at "
        "scale, and one seed says little of the spread.",
        "",
    ),
)


def page(
    report: Mapping[str, Any],
    metrics: Mapping[str, Answers],
    answers: Mapping[str, Answers],
    migration: Sequence[Mapping[str, Any]],
    models: Mapping[str, ModelConfig],
    timeline: Iterable[Mapping[str, Any]],
    viewer: str = "",
) -> str:
    """The page of a finished demo.

    `report` is report.json, `metrics` and `answers` are each stage's lines of metrics.jsonl and samples.jsonl,
    `migration` the reports of the migration's stages, `models` the configs of its base ("base") and of its result
    ("hybrid"), `timeline` the spans of the KPop stage, `viewer` the page of trajectories beside this one, if there is
    one.
    """
    stages = report["stages"]
    sections = {
        "Report card": report_card(stages, answers),
        "The same tasks, stage by stage": conversations(answers, viewer),
        "Migration": figures.migration(migration, models),
        "Training": figures.curves(stages, metrics),
        "KPop: asynchronous, stale samples, their mask, the slots": figures.kpop(metrics.get("kpop", ()), timeline),
        "Findings": findings(report),
        "Where we lose": losses(report, models),
    }
    sections = {title: content for title, content in sections.items() if content}
    links = "".join(f'<a href="#{_anchor(title)}">{html.escape(title)}</a>' for title in sections)
    body = "".join(
        f'<h2 id="{_anchor(title)}">{html.escape(title)}</h2>{content}' for title, content in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><title>ling_jax: from a base model to KPop</title>'
        f"<style>{STYLE.read_text()}</style></head><body><main>{header(report, models['hybrid'])}"
        f"{figures.hero(stages, answers)}<nav>{links}</nav>{body}</main></body></html>"
    )


def _anchor(title: str) -> str:
    return title.split(",")[0].split(":")[0].lower().replace(" ", "-")


def header(report: Mapping[str, Any], config: ModelConfig) -> str:
    experts = f", {config.num_experts} experts, {config.top_k} a token" if _has_experts(config) else ""
    seen = [found["verdict"] for found in report["findings"]]
    facts = {
        "machine": report["machine"],
        "time": f"{report['seconds'] / 60:.1f} minutes",
        "model": f"{report['parameters'] / 1e6:.2f} M parameters, {config.num_layers} layers{experts}"
        + (f", {config.mtp_depth} MTP layer{'s' * (config.mtp_depth > 1)}" if config.mtp_depth else ""),
        "stages": str(len(report["stages"])),
        "held-out tasks": ", ".join(f"{count} {task_title(name).lower()}" for name, count in report["tasks"].items()),
        "findings": f"{seen.count('reproduced')} of {len(seen)} reproduced",
    }
    shown = "".join(f"<div><span class=muted>{name}</span><b>{html.escape(v)}</b></div>" for name, v in facts.items())
    return (
        "<h1>From a base model to KPop</h1><p>Every stage of the Ling-2.6 report at toy scale, on this machine: a Ling "
        "2.0 base, its migration to Lightning and MLA layers, fine-tuning, reinforcement learning and distillation. "
        "After each stage the model answers the same held-out tasks, greedily.</p>"
        f'<div class="card facts">{shown}</div>'
    )


def _has_experts(config: ModelConfig) -> bool:
    return config.first_dense_layers < config.num_layers


def report_card(stages: Stages, answers: Mapping[str, Answers]) -> str:
    """Rows are measures of the tasks, columns stages; a change against the stage that one starts from is coloured."""
    rows = evaluated(stages)
    if not rows:
        return ""
    names = [row["name"] for row in rows]
    lines = []
    for environment in environments(rows):
        results = {row["name"]: row[environment] for row in rows}
        accuracy = {name: (result["accuracy"], result["ci95"]) for name, result in results.items()}
        tokens = {name: figures.tokens_of(answers[name], environment) for name in names}
        title = task_title(environment)
        lines.append((f"{title}: right", [_cell(row, accuracy, percent=True) for row in rows]))
        lines.append((f"{title}: tokens", [_cell(row, tokens, fewer=True) for row in rows]))
        if any(result.get("superfluous_calls") for result in results.values()):
            calls = [f"{result['superfluous_calls']:.2f}" for result in results.values()]
            lines.append((f"{title}: superfluous calls", calls))
    lines.append(("starts from", [html.escape(row.get("from") or "-") for row in rows]))
    lines.append(("time of the stage", [f"{row['seconds']:.0f} s" for row in rows]))
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    body = "".join(f"<tr><th>{html.escape(title)}{_cells(names, cells)}" for title, cells in lines)
    return (
        f'<div class="card report"><table><tr><th>{head}{body}</table></div><p class=muted>Below a value is its 95 % '
        "interval. Green is better and red is worse than the stage that this one starts from: their intervals do not "
        f"meet. Fewer tokens count as better.{_own_tasks(stages)}</p>"
    )


def _own_tasks(stages: Stages) -> str:
    """A sentence on the last stage's results on tasks of its own kind."""
    parts = [
        f"{name} {part['accuracy']:.1%} ({part['ci95'][0]:.0%} to {part['ci95'][1]:.0%})"
        for name, part in stages[-1].get("own", {}).items()
    ]
    return html.escape(f" Right answers to KPop's own kind of tasks: {', '.join(parts)}.") if parts else ""


def _cells(names: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(f'<td data-stage="{html.escape(name)}">{cell}' for name, cell in zip(names, cells, strict=True))


def _cell(
    row: Mapping[str, Any],
    values: Mapping[str, tuple[float, Interval]],
    *,
    percent: bool = False,
    fewer: bool = False,
) -> str:
    mean, (low, high) = values[row["name"]]
    before, kind = values.get(row.get("from", "")), ""
    if before and (low > before[1][1] or high < before[1][0]):
        kind = "bad" if (mean > before[0]) == fewer else "good"
    value, interval = (
        (f"{mean:.1%}", f"{low:.0%} to {high:.0%}") if percent else (f"{mean:.1f}", f"{low:.1f} to {high:.1f}")
    )
    return f'<b class="{kind}">{value}</b><small>{interval}</small>'


def conversations(answers: Mapping[str, Answers], viewer: str = "") -> str:
    """Of each kind a task that the stages learned, and one task that the last stage gets wrong, if there is one."""
    if not answers:
        return ""
    stages = list(answers)
    learned, failed = _chosen(answers[stages[0]], answers[stages[-1]])
    shown = [(number, "") for number in learned] + [(number, ": wrong after the last stage") for number in failed]
    parts = []
    for number, remark in shown:
        first = answers[stages[0]][number]
        talks = "".join(_conversation(names, answer) for names, answer in _distinct(answers, number))
        parts.append(
            f"<h3>{html.escape(task_title(first['environment']) + remark)}</h3>"
            f'<div class="said user"><small>user</small>{html.escape(first["prompt"])}</div>'
            f"<p>Expected answer: <b>{html.escape(str(first.get('expected', '-')))}</b></p>"
            f'<div class="grid talks">{talks}</div>'
        )
    more = f' <a href="{viewer}">More of them, turn by turn and token by token</a>.' if viewer else ""
    return f"<p class=muted>Stages that give the same answer share a card.{more}</p>{''.join(parts)}"


def _chosen(first: Answers, last: Answers) -> tuple[list[int], list[int]]:
    """(a task of each kind that the last stage solves and, if possible, the first does not; at most one failure)."""
    learned: dict[str, int] = {}
    by_change = sorted(range(len(last)), key=lambda number: first[number]["outcome"])  # stable: failures come first
    for number in by_change:
        if last[number]["outcome"]:
            learned.setdefault(last[number]["environment"], number)
    return sorted(learned.values()), [number for number, answer in enumerate(last) if not answer["outcome"]][:1]


def _distinct(answers: Mapping[str, Answers], number: int) -> list[tuple[list[str], Mapping[str, Any]]]:
    """(stages, the answer that they have in common) to a task, in the order of the stages."""
    found: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for stage, lines in answers.items():
        found.setdefault(str(lines[number]["messages"]), ([], lines[number]))[0].append(stage)
    return list(found.values())


def _conversation(stages: Sequence[str], answer: Mapping[str, Any]) -> str:
    right = bool(answer["outcome"])
    said = [_message(message) for message in answer["messages"]]
    if not said:
        said.append('<div class="said muted">(cut off by the limit of tokens)</div>')
    verdict = f'<span class="badge {"good" if right else "bad"}">{"right" if right else "wrong"}</span>'
    return (
        f'<div class="card"><b>{html.escape(", ".join(stages))}</b> {verdict}{"".join(said)}'
        f"<span class=muted>{answer['tokens']} tokens</span></div>"
    )


def _message(message: Mapping[str, Any]) -> str:
    """What the assistant wrote, a tool call as call(argument=value), or what a tool returned."""
    if message["role"] == "tool":
        return f'<div class="said tool"><small>tool</small>{html.escape(message["content"])}</div>'
    parsed = parse_either(message["content"])
    calls = [
        f"{call['name']}({', '.join(f'{key}={value}' for key, value in call['arguments'].items())})"
        for call in parsed.tool_calls
    ]
    return f'<div class="said">{html.escape(chr(10).join(filter(None, [parsed.content.strip(), *calls])))}</div>'


def findings(report: Mapping[str, Any]) -> str:
    """A badge for each finding, with its rule, and why one was not seen; the command that makes more, if any."""
    found = report["findings"]
    if not found:
        return ""
    more = report.get("comparisons")
    is_new = more and all(one.get("command") != more for one in found)
    command = f" More comparisons: <code>{html.escape(more)}</code>" if is_new else ""
    seeds = max(one.get("seeds", 1) for one in found)
    return (
        f'<div class="card">{"".join(map(_finding, found))}</div><p class=muted>'
        f"{'One seed' if seeds == 1 else f'At most {seeds} seeds'}; the rules were fixed before the numbers were seen."
        f"{command}</p>"
    )


def _finding(one: Mapping[str, Any]) -> str:
    why = f"<p class=muted>Why not at this size: {html.escape(one['why'])}.</p>" if one.get("why") else ""
    command = f"<p><code>{html.escape(one['command'])}</code></p>" if one.get("command") else ""
    interval = "" if one["ci95"] is None else f"<br>95 %: {shown(one['ci95'])}"
    return (
        f'<div class=finding><div><span class="badge {BADGES.get(one["verdict"], "none")}">'
        f"{html.escape(one['verdict'])}</span></div><div><b>{html.escape(one['name'])}</b> "
        f"<span class=muted>{html.escape(one['report_ref'])}</span><p>Rule: {html.escape(one['rule'])}.</p>{why}"
        f"{command}</div><p class=muted>measured <b>{shown(one['value'])}</b>{interval}<br>n = {one['n']}</p></div>"
    )


def shown(value: Any) -> str:
    """A number or an interval, as the table and the page have it."""
    if value is None:
        return "-"
    return f"[{', '.join(f'{x:.3g}' for x in value)}]" if isinstance(value, (list, tuple)) else f"{value:.3g}"


def losses(report: Mapping[str, Any], models: Mapping[str, ModelConfig]) -> str:
    """What is outside of its bar, which stages cost accuracy, and what others do better, each with a command."""
    here = [
        f"{claim['name']}: {claim['value']:.2g}, the bar is {claim['bar']:g}. {claim['why']}"
        for claim in report["claims"]
        if not claim["holds"]
    ]
    here += _lost_accuracy(report["stages"])
    if context := figures.larger_cache_below(models):
        here.append(
            f"Up to {context:,} tokens the hybrid's cache is larger than that of its base, because a Lightning state "
            "has the same size for any context."
        )
    lines = [(text, "python -m launch.demo") for text in here] + [*KNOWN_LOSSES]
    items = (
        f"<li>{html.escape(text[0].upper() + text[1:])}{f'<code>{html.escape(command)}</code>' if command else ''}</li>"
        for text, command in lines
    )
    return f"<ul>{''.join(items)}</ul>"


def _lost_accuracy(stages: Stages) -> list[str]:
    """A sentence for each stage whose accuracy lies below that of the stage it starts from, intervals apart."""
    rows = {row["name"]: row for row in evaluated(stages)}
    found = []
    for name, row in rows.items():
        before = rows.get(row.get("from", ""))
        for environment in environments([row]) if before else ():
            was, now = before[environment], row[environment]
            if now["ci95"][1] < was["ci95"][0]:
                found.append(
                    f"{TITLES.get(name, name)} costs accuracy of {task_title(environment).lower()}: "
                    f"{was['accuracy']:.1%} before, {now['accuracy']:.1%} after."
                )
    return found
