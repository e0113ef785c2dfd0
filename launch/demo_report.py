"""What the demo found: the table, report.json and report.html, from the files that its stages wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import machine
from launch.demo_page import page, shown
from launch.demo_rules import EXPECTED, KPOP_ENDS, TITLES, Answers, agreement, finding, masked
from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.data.json_lines import read_objects
from ling_jax.evaluate.statistics import wilson_interval
from ling_jax.evaluate.viewer import read_trajectories, viewer_page
from ling_jax.files import read_object, replacing, write_json
from ling_jax.model import model_spec
from ling_jax.run.metrics import read_metrics

COMPARISONS = "alignment/report.json"  # what benchmarks.alignment leaves in the demo's folder


def write(
    folder: Path,
    stages: Sequence[str],
    times: Mapping[str, float],
    models: Mapping[str, ModelConfig],
) -> str:
    """Writes report.json, report.html and, where there are trajectories, trajectories.html; returns the table,
    verdicts and claims.

    `models` are the configs of the migration's "base" and of its "hybrid".
    """
    metrics = {stage: stage_metrics(folder / stage) for stage in stages}
    answers = {s: a for s in stages if (a := read_lines(folder / "evaluation" / s / "samples.jsonl"))}
    rows = [describe(stage, metrics[stage], answers.get(stage, []), times.get(stage, 0.0)) for stage in stages]
    ends = dict(zip(KPOP_ENDS, own_answers(folder / "kpop"), strict=True))
    rows[-1]["own"] = {end: results(lines)["digit_sums"] for end, lines in ends.items()}
    asked = {answer["environment"] for lines in answers.values() for answer in lines}  # without a sandbox no functions
    expected = [one for one in EXPECTED if one.environment in asked]
    found = [finding(one, answers | ends) for one in expected] + [masked(metrics["kpop"])]
    report = {
        "machine": machine(),
        "seconds": sum(times.values()),
        "parameters": specs.count(model_spec(models["hybrid"])),
        "tasks": {name: part["n"] for name, part in results(next(iter(answers.values()), [])).items()},
        "stages": [row | origin(folder / row["name"], stages) for row in rows],
        "claims": [agreement(metrics)],
        "findings": found + compared(folder),
        "comparisons": f"python -m benchmarks.alignment --workdir={folder}",  # the command that makes more findings
    }
    write_json(report, folder / "report.json")
    timeline, viewer = read_lines(folder / "kpop" / "timeline.jsonl"), write_trajectories(folder, stages)
    text = page(report, metrics, answers, migration_reports(folder / "migrate"), models, timeline, viewer)
    with replacing(folder / "report.html") as file:
        file.write(text.encode())
    claims = [f"  {'holds' if c['holds'] else 'outside its bar':<18} {_claim(c)}" for c in report["claims"]]
    longer = "; ".join(f"{end}: {percent(part)}" for end, part in rows[-1]["own"].items())
    return "\n".join([table(rows), longer, "", *map(_verdict, report["findings"]), *claims])


def write_trajectories(folder: Path, stages: Sequence[str]) -> str:
    """Writes the page of the trajectories that the stages' evaluations kept; returns its name, "" without any."""
    files = [folder / "evaluation" / stage / "trajectories.jsonl" for stage in stages]
    found = [trajectory for file in files if file.exists() for trajectory in read_trajectories(file)]
    if not found:
        return ""
    with replacing(folder / "trajectories.html") as file:
        file.write(viewer_page(found, "The demo's trajectories").encode())
    return "trajectories.html"


def compared(folder: Path) -> list[dict[str, Any]]:
    """Findings of benchmarks.alignment, where it has run, each with its command."""
    if not (path := folder / COMPARISONS).exists():
        return []
    command = f"python -m benchmarks.alignment --workdir={folder}"
    return [found | {"seeds": len(found["seeds"]), "command": command} for found in read_object(path)["findings"]]


def _verdict(found: Mapping[str, Any]) -> str:
    line = f"  {found['verdict']:<18} {found['name']:<48} {shown(found['value'])} {shown(found['ci95'])}"
    return f"{line}\n  {'':<18} likely reason: {found['why']}" if found["why"] else line


def _claim(claim: Mapping[str, Any]) -> str:
    value = f"{claim['name']}: {claim['value']:.2g}"
    return value if claim["holds"] else f"{value} (bar {claim['bar']:g}). {claim['why']}"


def migration_reports(workdir: Path) -> list[dict[str, Any]]:
    """Of the migration's stages, in their order."""
    return [read_object(path) for path in sorted(workdir.glob("[0-9]*_*/report.json"))]


def stage_metrics(workdir: Path) -> Answers:
    """A line each step; those of a migration's stages, one behind the other."""
    lines: Answers = []
    for file in [*workdir.glob("metrics.jsonl"), *sorted(workdir.glob("[0-9]*_*/metrics.jsonl"))]:
        begun = len(lines)
        lines += [line | {"step": begun + line["step"]} for line in read_metrics(file)]
    return lines


def read_lines(path: Path) -> Answers:
    return [line for _, line in read_objects(path)] if path.exists() else []


def own_answers(workdir: Path) -> list[Answers]:
    """To the held-out tasks that a run of `launch.rl` asks its own model: at its start and at its end."""
    folders = sorted((workdir / "evaluation").iterdir())
    return [read_lines(folder / "samples.jsonl") for folder in (folders[0], folders[-1])]


def origin(workdir: Path, stages: Sequence[str]) -> dict[str, str]:
    """{"from": the stage that a run starts from, "environment": of its tasks}, where there is one."""
    path = workdir / "config.json"
    config = read_object(path) if path.exists() else {}
    parts = reversed(Path(config.get("start_from") or config.get("source") or "").parts)
    before = next((part for part in parts if part in stages), None)
    environments = {task["environment"] for task in config.get("tasks", ())}
    environment = environments.pop() if len(environments) == 1 else None
    return {key: value for key, value in (("from", before), ("environment", environment)) if value}


def describe(stage: str, metrics: Answers, answers: Answers, seconds: float) -> dict[str, Any]:
    """A row of the table."""
    row = {"name": stage, "title": TITLES[stage], "seconds": round(seconds, 1), "steps": len(metrics)}
    if metrics and "eval_loss" in metrics[-1]:
        row["eval_loss"] = metrics[-1]["eval_loss"]
    return row | results(answers)


def results(answers: Answers) -> dict[str, dict[str, Any]]:
    """{environment: accuracy with Wilson's interval, means of tokens and superfluous calls}."""
    found = {}
    for environment in dict.fromkeys(answer["environment"] for answer in answers):
        of = [answer for answer in answers if answer["environment"] == environment]
        accuracy = float(np.mean([answer["outcome"] for answer in of]))
        found[environment] = {"n": len(of), "accuracy": accuracy, "ci95": wilson_interval(accuracy, len(of))}
        # The run's own evaluation of sums says nothing of calls.
        found[environment] |= {
            name: float(np.mean([a.get(name, 0.0) for a in of])) for name in ("tokens", "superfluous_calls")
        }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        ("stage", "time", "steps", "sums right", "tokens", "lookups right", "extra calls", "searches", "functions")
    ]
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
                percent(row.get("search")),
                percent(row.get("functions")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def percent(part: Mapping[str, Any] | None) -> str:
    """Accuracy with its interval, such as 65% [60, 69]."""
    if part is None:
        return "-"
    low, high = part["ci95"]
    return f"{part['accuracy']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
