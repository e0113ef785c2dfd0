"""A finished demo's folder, written by hand: the files that its report and its page are made from."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launch import demo_report, demo_rules
from launch.demo import STAGES
from ling_jax.config import model_config

MODELS = {"base": model_config("tiny-2.0"), "hybrid": model_config("tiny-2.6")}
NAMES = [stage.name for stage in STAGES]
TASKS = 100
STEPS = 3
SLOTS = 4
CALL = {
    "role": "assistant",
    "content": "<tool_call>get\n<arg_key>name</arg_key>\n<arg_value>a</arg_value>\n</tool_call>",
}


def answers(solved: int, tokens: int, extra: int) -> Iterator[dict[str, Any]]:
    """To `TASKS` tasks of each kind, of which the first `solved` are right; a lookup has `extra` superfluous calls."""
    for environment in ("digit_sums", "lookup", "search", "functions"):
        for i in range(TASKS):
            messages = [{"role": "assistant", "content": f"A:{solved} & 2"}]
            if environment == "lookup":
                messages = [CALL, {"role": "tool", "content": "the number is 2"}, *messages]
            answer = {
                "environment": environment,
                "prompt": f"?{i}<b>",
                "messages": messages,
                "expected": "3",
                "tokens": tokens + i % 3,
            }
            yield answer | {"outcome": float(i < solved), "superfluous_calls": extra if environment == "lookup" else 0}


def trajectory(stage: str) -> dict[str, Any]:
    """The least that a stage keeps of an answer."""
    steps = [{"step_id": 1, "source": "user", "message": "?1<b>"}, {"step_id": 2, "source": "agent", "message": "A:1"}]
    about = {"stage": stage, "environment": "digit_sums", "rewards": {"outcome": 1.0}}
    return {"schema_version": "ATIF-v1.7", "steps": steps, "extra": about}


def timeline(steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """Two seconds a step; a rollout takes three, so every second one meets new weights."""
    for step in range(steps):
        for begun in sorted({(2 * step) // 3, (2 * step + 1) // 3}):
            start, stop = max(2 * step, 3 * begun), min(2 * step + 2, 3 * begun + 3)
            for i in range(begun * SLOTS, (begun + 1) * SLOTS):
                span = {"rollout": i, "version": step, "start": 1e9 + start, "stop": 1e9 + stop}
                yield {"step": step} | span | {"tokens": 8 * (stop - start)}


def write_demo(folder: Path, steps: int = STEPS) -> None:
    """Every stage solves five tasks more with two tokens less than the one before; the last is as the one before, and
    solves one more of its own tasks."""
    for number, name in enumerate(NAMES):
        run = folder / name / ("0_linear_warmup" if name == "migrate" else "")
        run.mkdir(parents=True)
        write_lines(run / "metrics.jsonl", [{"step": step} | _metrics(name) for step in range(steps)])
        if name == "migrate":
            losses = {"loss_before": 2.0, "loss_converted": 3.0, "loss_after": 2.1}
            for folder_name in ("0_linear_warmup", "1_continued"):
                (run.parent / folder_name).mkdir(exist_ok=True)
                text = json.dumps({"stage": folder_name[2:]} | losses)
                (run.parent / folder_name / "report.json").write_text(text)
        if number < 3:  # they answer nothing
            continue
        grade = min(number - 2, len(NAMES) - 4)
        source = "migrate/0_linear_warmup" if name == "sft" else NAMES[number - 1]
        config = {"start_from": str(folder / source)}
        if "reward" in _metrics(name):
            kinds = ("lookup", "search", "functions") if name == "agentic" else ("digit_sums",)
            config["tasks"] = [{"environment": kind} for kind in kinds]
        (run / "config.json").write_text(json.dumps(config))
        (folder / "evaluation" / name).mkdir(parents=True)
        lines = answers(50 + 5 * grade, 40 - 2 * grade, 1 if name == "sft" else 0)
        write_lines(folder / "evaluation" / name / "samples.jsonl", lines)
        write_lines(folder / "evaluation" / name / "trajectories.jsonl", [trajectory(name)])
    write_lines(folder / "kpop" / "timeline.jsonl", timeline(steps))
    for step, solved in ((0, 40), (steps, 41)):
        own = folder / "kpop" / "evaluation" / f"{step:06}"
        own.mkdir(parents=True)
        sums = [answer for answer in answers(solved, 70, 0) if answer["environment"] == "digit_sums"]
        for answer in sums:
            del answer["superfluous_calls"]  # launch.rl writes it under "rewards", if the environment has it
        write_lines(own / "samples.jsonl", sums)


def _metrics(name: str) -> dict[str, float]:
    if name in ("pretrain", "migrate", "sft"):
        return {"main_loss": 1.0, "eval_loss": 1.1}
    if name == "experts":
        return {"main_loss": 1.0, "eval_loss": 1.1, "mtp_loss_0": 1.5, "load_max_over_mean": 1.2}
    found = {"reward": 0.5, "accuracy": 0.6, "tokens_per_answer": 20.0, demo_rules.MISMATCH: 2e-6}
    stale = {"masked_fraction": 0.3, "staleness/max": 2, "staleness/mean": 0.4}
    stale |= {"generated_tokens": 90, "tokens_beside": 30}
    bands = {"masked_fraction/0.0-0.5": 0.0, "masked_fraction/0.5-1.0": 0.4}
    return found | stale | bands if name == "kpop" else found


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, lines)))


def write_report(folder: Path) -> tuple[str, dict[str, Any]]:
    """(the table, report.json) after report.json and report.html are written."""
    table = demo_report.write(folder, NAMES, {"sft": 12.0, "kpop": 30.0}, MODELS)
    return table, json.loads((folder / "report.json").read_text())
