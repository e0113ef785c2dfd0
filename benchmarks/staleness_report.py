"""The report of the study of staleness, by the rule of docs/staleness.md, which was written before the first run."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks.report import Finding
from ling_jax.evaluate.statistics import Z95
from ling_jax.files import replacing

MARGIN = 0.05  # of accuracy that "no loss" may cost
MIN_AGE = 2.0  # versions: younger tokens say nothing of staleness
STALE, FRESH, NONE = 8, 0, "none"
NAMES = {NONE: "none", "tis": "TIS", "icepop": "IcePop", "kpop": "KPop"}

Result = Mapping[str, Any]  # a line of results.jsonl
Arm = tuple[str, int, str]  # task, staleness, correction


class Interval(NamedTuple):
    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def word(self) -> str:
        """What rule 4 says of it."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not told apart"

    def __str__(self) -> str:
        """In points."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


class Comparison(NamedTuple):
    kind: str  # "cost", "help" or "control"
    task: str
    correction: str
    difference: Interval
    word: str  # "higher", "lower" or "not told apart", with the control of rule 6


def write(folder: Path, results: Sequence[Result], formulas: Mapping[str, str]) -> list[Finding]:
    """Writes report.md and staleness.svg; the findings of the arms whose runs have all ended."""
    arms = arms_of(results)
    found = comparisons(arms)
    with replacing(folder / "report.md") as file:
        file.write(page(arms, found, formulas).encode())
    if found:
        figure(found, folder / "staleness.svg")
    print((folder / "report.md").read_text())
    return [finding(one, arms) for one in found if one.kind != "control"]


def arms_of(results: Sequence[Result]) -> dict[Arm, list[Result]]:
    """{arm: its results, by seed}; arms with fewer seeds than others are left out."""
    arms: dict[Arm, list[Result]] = {}
    for line in sorted(results, key=lambda line: line["seed"]):
        arms.setdefault((line["task"], line["staleness"], line["correction"]), []).append(line)
    most = max(map(len, arms.values()), default=0)
    return {arm: lines for arm, lines in arms.items() if len(lines) == most}


def comparisons(arms: Mapping[Arm, Sequence[Result]]) -> list[Comparison]:
    """Of rule 2 and, for the control, of rule 6: those whose two arms are there."""
    found = []
    for task, correction in dict.fromkeys((task, correction) for task, _, correction in arms):
        pairs = {"cost": ((STALE, correction), (FRESH, correction))}
        if correction != NONE:
            pairs["help"] = ((STALE, correction), (STALE, NONE))
            pairs["control"] = ((FRESH, correction), (FRESH, NONE))
        of_kind = {
            kind: difference(arms[task, *a], arms[task, *b])
            for kind, (a, b) in pairs.items()
            if (task, *a) in arms and (task, *b) in arms
        }
        fails = "control" in of_kind and of_kind["control"].word != "not told apart"
        for kind, one in of_kind.items():
            word = "not told apart" if kind == "help" and fails else one.word
            found.append(Comparison(kind, task, correction, one, word))
    return sorted(found, key=lambda one: ("cost", "help", "control").index(one.kind))


def difference(ours: Sequence[Result], others: Sequence[Result]) -> Interval:
    """Of the accuracies of two arms of a task, paired by seed and held-out task."""
    return interval([outcomes(a["outcomes"]) - outcomes(b["outcomes"]) for a, b in zip(ours, others, strict=True)])


def learnt(results: Sequence[Result]) -> Interval:
    """What an arm gained over its start."""
    return interval([outcomes(one["outcomes"]) - outcomes(one["outcomes_before"]) for one in results])


def interval(differences: Sequence[np.ndarray]) -> Interval:
    """The mean of [seeds, tasks] and the 95 % half-width of rule 3; infinite with one seed."""
    values = np.stack(differences)
    seeds, tasks = values.shape
    if seeds == 1:
        return Interval(float(values.mean()), math.inf)
    over_seeds = scipy.stats.t.ppf(0.975, seeds - 1) * values.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
    over_tasks = Z95 * values.mean(axis=0).std(ddof=1) / math.sqrt(tasks)
    return Interval(float(values.mean()), float(max(over_seeds, over_tasks)))


def outcomes(digits: str) -> np.ndarray:
    return np.array([int(digit) for digit in digits], np.float64)


def finding(one: Comparison, arms: Mapping[Arm, Sequence[Result]]) -> Finding:
    """By rule 5."""
    task, correction, (mean, _) = one.task, NAMES[one.correction], one.difference
    stale = arms[task, STALE, one.correction]
    if one.kind == "cost":
        name, ref, bar = f"{correction} loses nothing by staleness {STALE}", "Ling 2.6 §4.2.1", -MARGIN
    else:
        name, ref, bar = f"{correction} is more accurate than no correction", "Ling 2.6 §3.2.3", 0.0
    base, age = arms.get((task, FRESH, NONE)), np.mean([line["mean_age"] for line in stale])
    testable = base is not None and learnt(base).low > 0 and age >= MIN_AGE
    seen = one.difference.low > bar and (one.kind == "cost" or one.word == "higher")
    return Finding(
        name=f"{name}, {task}",
        report_ref=ref,
        value=mean,
        ci95=(one.difference.low, one.difference.high) if math.isfinite(one.difference.half) else None,
        n=len(stale) * stale[0]["n"],
        seeds=[line["seed"] for line in stale],
        rule=f"the interval of the {one.kind} is above {bar:g}; docs/staleness.md has the rule",
        verdict=("reproduced" if seen else "not seen") if testable else "not testable here",
    )


def page(arms: Mapping[Arm, Sequence[Result]], found: Sequence[Comparison], formulas: Mapping[str, str]) -> str:
    """The report as Markdown."""
    lines = ["| task | staleness | correction | seeds | before | after, by seed | mean | age: mean, max | masked | "
             "mismatch | s a run | ended early |", "|---" * 12 + "|"]  # fmt: skip
    lines += [_arm_line(arm, results) for arm, results in sorted(arms.items())]
    lines += ["", *_declared(found)]
    lines += ["", "| comparison | correction | task | points, 95 % interval | it is |", "|---" * 5 + "|"]
    lines += [f"| {one.kind} | {NAMES[one.correction]} | {one.task} | {one.difference} | {one.word} |" for one in found]
    lines += ["", "What each correction maximises:", "", *(f"- {NAMES[name]}: `{f}`" for name, f in formulas.items())]
    return "\n".join(lines) + "\n"


def _arm_line(arm: Arm, results: Sequence[Result]) -> str:
    task, staleness, correction = arm
    mean = {name: np.mean([one[name] for one in results]) for name in ("accuracy_before", "accuracy", "mean_age")}
    masked = [one["masked"] for one in results if one["masked"] is not None]
    after = ", ".join(f"{one['accuracy']:.1%}" for one in results)
    fields = (
        task, staleness, NAMES[correction], len(results), f"{mean['accuracy_before']:.1%}", after,
        f"{mean['accuracy']:.1%}", f"{mean['mean_age']:.2f}, {max(one['max_age'] for one in results)}",
        f"{np.mean(masked):.2%}" if masked else "", f"{np.mean([one['mismatch'] for one in results]):.2g}",
        f"{np.mean([one['seconds'] for one in results]):.0f}", sum(bool(one["ended"]) for one in results),
    )  # fmt: skip
    return f"| {' | '.join(map(str, fields))} |"


def _declared(found: Sequence[Comparison]) -> list[str]:
    """What rule 4 declares: a sentence for each kind and correction."""
    told = []
    for kind, correction in itertools.product(("cost", "help"), NAMES):
        words = {one.task: one.word for one in found if (one.kind, one.correction) == (kind, correction)}
        if len(words) > 1:
            same, name = len({*words.values()}) == 1, NAMES[correction]
            what = f"staleness {STALE} against {FRESH}, correction {name}" if kind == "cost" else f"{name} against none"
            each = ", ".join(f"{word} on {task}" for task, word in words.items())
            told.append(f"- {what}: {next(iter(words.values())) + ' on all tasks' if same else each}")
    return told


def figure(found: Sequence[Comparison], path: Path) -> None:
    """A point with its interval for each comparison, a panel for each task."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(one.task for one in found))
    chart, panels = plt.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 4), sharey=True, squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        shown = [one for one in reversed(found) if one.task == task]
        half = [100 * one.difference.half if math.isfinite(one.difference.half) else 0.0 for one in shown]
        mean = [100 * one.difference.mean for one in shown]
        panel.errorbar(mean, range(len(shown)), xerr=half, fmt="o", capsize=3)
        panel.set_yticks(range(len(shown)), [f"{one.kind}: {NAMES[one.correction]}" for one in shown])
        panel.axvline(0, color="grey", linewidth=1)
        panel.set(title=task, xlabel="points of accuracy")
    chart.savefig(path, bbox_inches="tight")
    plt.close(chart)
