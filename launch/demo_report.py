"""What the demo found: the table, report.json and report.html, from the files that its stages wrote.

The rules below give the verdicts; they were fixed before the numbers were seen.
"""

import base64
import html
import io
import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine
from ling_jax.data.json_lines import read_objects
from ling_jax.evaluate.statistics import Z95, wilson_interval
from ling_jax.files import replacing, write_json

Answers = list[dict[str, Any]]  # of one stage to the held-out tasks: lines of evaluation/STAGE/samples.jsonl
MOST_MISMATCH = 1e-5  # between log-probs as they were sampled and as the trainer computes them
_environment = operator.itemgetter("environment")
MARGIN = 0.05  # of accuracy that "keeps" may cost
TITLES = {
    "pretrain": "A Ling 2.0 base on English and on sums",
    "migrate": "Migration to Lightning and MLA layers",
    "sft": "Supervised fine-tuning on conversations",
    "evo_cot": "Evo-CoT with LPO",
    "shortest_correct": "Distillation of shortest correct answers",
    "agentic": "The agentic specialist, with GSPO",
    "specialists": "Two specialists in one model",
    "preference": "Preference alignment with the focal reward",
    "kpop": "KPop with partial rollouts",
}
# (what the report says, where, "raises" | "lowers" | "keeps" of what in which tasks, from which stage to which)
EXPECTED = (
    ("LPO raises accuracy", "Ling 2.6 §3.1.2", "raises", "outcome", "digit_sums", "sft", "evo_cot"),
    ("Evo-CoT shortens answers", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums", "sft", "evo_cot"),
    ("Shortest correct answers are shorter", "Ling 2.6 §3.1.2", "lowers", "tokens", "digit_sums", "evo_cot",
     "shortest_correct"),
    ("Shortest correct answers stay right", "Ling 2.6 §3.1.2", "keeps", "outcome", "digit_sums", "evo_cot",
     "shortest_correct"),
    ("Agentic GSPO raises accuracy", "Ling 2.6 §3.1.2", "raises", "outcome", "lookup", "sft", "agentic"),
    ("Agentic GSPO saves calls", "Ling 2.6 §3.1.2", "lowers", "superfluous_calls", "lookup", "sft", "agentic"),
    ("Merging keeps the sums", "Ling 2.6 §3.1", "keeps", "outcome", "digit_sums", "shortest_correct", "specialists"),
    ("Merging keeps the tools", "Ling 2.6 §3.1", "keeps", "outcome", "lookup", "agentic", "specialists"),
    ("Preference alignment keeps accuracy", "Ling 2.6 §3.1.3", "keeps", "outcome", "digit_sums", "specialists",
     "preference"),
    ("KPop raises accuracy with stale samples", "Ling 2.6 §3.2.3", "raises", "outcome", "digit_sums", "preference",
     "kpop"),
)  # fmt: skip
RULES = {
    "raises": "the 95 % interval of the mean difference, task by task, is above 0",
    "lowers": "the 95 % interval of the mean difference, task by task, is below 0",
    "keeps": f"the 95 % interval of the mean difference, task by task, is above {-MARGIN:g}",
}


def write(folder: Path, stages: Sequence[str], times: Mapping[str, float]) -> str:
    """Writes report.json and report.html; returns the table, verdicts and claims."""
    metrics = {stage: read_metrics(folder / stage) for stage in stages}
    answers = {s: a for s in stages if (a := read_lines(folder / "evaluation" / s / "samples.jsonl"))}
    rows = [describe(stage, metrics[stage], answers.get(stage, []), times.get(stage, 0.0)) for stage in stages]
    report = {
        "machine": machine(),
        "seconds": sum(times.values()),
        "stages": rows,
        "claims": [agreement(metrics)],
        "findings": [finding(*expected, answers) for expected in EXPECTED] + [masked(metrics["kpop"])],
    }
    write_json(report, folder / "report.json")
    with replacing(folder / "report.html") as file:
        file.write(page(report, metrics, answers).encode())
    found = [f"  {f['verdict']:<10} {f['name']:<42} {shown(f['value'])} {shown(f['ci95'])}" for f in report["findings"]]
    claims = [f"  {'holds' if c['holds'] else 'FAILS':<10} {c['name']}: {c['value']:.2g}" for c in report["claims"]]
    files = f"files: {folder}/report.json, report.html; each stage's own in {folder}/STAGE"
    return "\n".join([table(rows), "", *found, *claims, "", files])


def read_metrics(workdir: Path) -> Answers:
    """A line each step; those of a migration's stages, one behind the other."""
    lines: Answers = []
    for file in [workdir / "metrics.jsonl", *sorted(workdir.glob("[0-9]*_*/metrics.jsonl"))]:
        begun = len(lines)
        lines += [line | {"step": begun + line["step"]} for line in read_lines(file)]
    return lines


def read_lines(path: Path) -> Answers:
    return [line for _, line in read_objects(path)] if path.exists() else []


def describe(stage: str, metrics: Answers, answers: Answers, seconds: float) -> dict[str, Any]:
    """A row of the table. Intervals are Wilson's for accuracy."""
    row = {"name": stage, "title": TITLES[stage], "seconds": round(seconds, 1), "steps": len(metrics)}
    if metrics and "held_out_loss" in metrics[-1]:
        row["held_out_loss"] = metrics[-1]["held_out_loss"]
    for environment in dict.fromkeys(answer["environment"] for answer in answers):
        of = [answer for answer in answers if answer["environment"] == environment]
        accuracy = float(np.mean([answer["outcome"] for answer in of]))
        row[environment] = {"n": len(of), "accuracy": accuracy, "ci95": wilson_interval(accuracy, len(of))}
        row[environment] |= {name: float(np.mean([a[name] for a in of])) for name in ("tokens", "superfluous_calls")}
    return row


def finding(
    name: str, ref: str, kind: str, what: str, environment: str, before: str, after: str, answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """The mean difference of two stages' answers to the same tasks, and what it says."""
    pairs = zip(answers[before], answers[after], strict=True)
    first, then = np.array([(a[what], b[what]) for a, b in pairs if a["environment"] == environment], np.float64).T
    change = then - first
    mean, half = float(change.mean()), float(Z95 * change.std(ddof=1) / np.sqrt(len(change)))
    low, high = mean - half, mean + half
    seen = {"raises": low > 0, "lowers": high < 0, "keeps": low > -MARGIN}[kind]
    to_lose = kind != "keeps" or first.mean() > MARGIN
    return {
        "name": name,
        "report_ref": ref,
        "value": mean,
        "ci95": [low, high],
        "n": len(change),
        "seeds": 1,
        "rule": f"{what} of {environment}, {before} -> {after}: {RULES[kind]}",
        "verdict": ("reproduced" if seen else "not seen") if to_lose else "not testable here",
    }


def masked(kpop: Answers) -> dict[str, Any]:
    """The share of tokens that KPop's mask took away, over the steps that had stale ones."""
    stale = [line["masked_fraction"] for line in kpop if line.get("staleness/max", 0) > 0]
    mean = float(np.mean(stale)) if stale else None
    half = float(Z95 * np.std(stale, ddof=1) / np.sqrt(len(stale))) if len(stale) > 1 else None
    return {
        "name": "KPop masks 22 to 34 % of tokens",
        "report_ref": "Ling 2.6 §3.2.3, figure 7",
        "value": mean,
        "ci95": None if half is None else [mean - half, mean + half],
        "n": len(stale),
        "seeds": 1,
        "rule": "mean masked fraction of steps with stale tokens, from 0.22 to 0.34",
        "verdict": "not testable here" if not stale else "reproduced" if 0.22 <= mean <= 0.34 else "not seen",
    }


def agreement(metrics: Mapping[str, Answers]) -> dict[str, Any]:
    """The largest difference of any step between log-probs as sampled and as recomputed, same weights."""
    found = [line[MISMATCH] for lines in metrics.values() for line in lines if MISMATCH in line]
    worst = max(found, default=0.0)
    name = f"sampled and recomputed log-probs differ by at most, over {len(found)} steps"
    return {"name": name, "value": worst, "bar": MOST_MISMATCH, "holds": bool(found) and worst <= MOST_MISMATCH}


MISMATCH = "mismatch_same_version/max"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [("stage", "time", "steps", "sums: accuracy", "tokens", "tools: accuracy", "superfluous calls")]
    for row in rows:
        sums, tools = row.get("digit_sums"), row.get("lookup")
        lines.append(
            (
                row["name"],
                f"{row['seconds']:.0f} s",
                str(row["steps"]),
                percent(sums),
                f"{sums['tokens']:.1f}" if sums else "-",
                percent(tools),
                f"{tools['superfluous_calls']:.2f}" if tools else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def percent(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "-"
    low, high = part["ci95"]
    return f"{part['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def shown(value) -> str:
    if value is None:
        return "-"
    return f"[{', '.join(f'{x:.3g}' for x in value)}]" if isinstance(value, (list, tuple)) else f"{value:.3g}"


def page(report: Mapping[str, Any], metrics: Mapping[str, Answers], answers: Mapping[str, Answers]) -> str:
    """One HTML file without scripts and links."""
    findings = "".join(
        f"<tr><td>{html.escape(f['name'])}<td>{shown(f['value'])}<td>{shown(f['ci95'])}<td>{f['n']}"
        f"<td>{html.escape(f['rule'])}<td>{html.escape(f['report_ref'])}<td><b>{f['verdict']}</b></tr>"
        for f in report["findings"]
    )
    sections = "".join(section(row["name"], metrics[row["name"]], answers) for row in report["stages"])
    return (
        "<!doctype html><meta charset=utf-8><title>ling_jax demo</title>"
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}pre,table{font-size:13px}"
        "td,th{padding:.2em .6em;text-align:left;vertical-align:top}img{max-width:100%}</style>"
        f"<h1>From a base model to KPop</h1><p>{html.escape(report['machine'])}; {report['seconds']:.0f} s in all.</p>"
        f"<pre>{html.escape(table(report['stages']))}</pre>"
        "<h2>Findings</h2><table><tr><th>what<th>difference<th>95 %<th>n<th>rule<th>report<th>verdict</tr>"
        f"{findings}</table>{sections}"
    )


def section(stage: str, metrics: Answers, answers: Mapping[str, Answers]) -> str:
    image = base64.b64encode(figure(metrics)).decode()
    examples = [a for _, of in itertools.groupby(answers.get(stage, []), _environment) for a in itertools.islice(of, 2)]
    told = "\n\n".join("\n".join([answer["prompt"], *answer["turns"]]) for answer in examples)
    return (
        f"<h2>{html.escape(TITLES[stage])}</h2>"
        f"<img alt='metrics of {stage} by step' src='data:image/png;base64,{image}'>"
        + (f"<p>Answers to held-out tasks:</p><pre>{html.escape(told)}</pre>" if told else "")
    )


PANELS = {
    "main_loss": "loss, nats per token",
    "reward": "reward",
    "accuracy": "accuracy of samples",
    "tokens_per_answer": "tokens per answer",
    "masked_fraction": "masked fraction",
}


def figure(metrics: Answers) -> bytes:
    """PNG: what a stage's metrics.jsonl holds of `PANELS`, by step."""
    from matplotlib.figure import Figure  # not at the top: the stages should begin at once

    names = [name for name in PANELS if metrics and name in metrics[0]]
    drawn = Figure(figsize=(3.2 * max(len(names), 1), 2.6), layout="constrained")
    for axes, name in zip(np.atleast_1d(drawn.subplots(1, max(len(names), 1))), names, strict=False):
        axes.plot([line["step"] + 1 for line in metrics], [line[name] for line in metrics], linewidth=1)
        held_out = [(line["step"] + 1, line["held_out_loss"]) for line in metrics if "held_out_loss" in line]
        if name == "main_loss" and held_out:
            axes.plot(*zip(*held_out, strict=True), "o", color="tab:red", label="held out")
            axes.legend()
        axes.set(xlabel="step", title=PANELS[name])
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
