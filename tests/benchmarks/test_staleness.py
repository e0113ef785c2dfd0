"""The study of staleness: its rule, its report, and a small grid that is killed."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from benchmarks import staleness_report
from benchmarks import staleness_runs as staleness
from benchmarks.staleness_report import Interval, arms_of, comparisons, finding, interval
from ling_jax.data.json_lines import read_objects
from tests.helpers.faults import run_with_kills

FORMULAS = staleness.formulas(staleness.FULL)


def result(task, stale, correction, seed, solved, *, start=30, age=4.0):
    """A line of results.jsonl: of 100 held-out tasks `solved` are right."""
    digits = {name: "1" * count + "0" * (100 - count) for name, count in (("now", solved), ("before", start))}
    told = {"accuracy_before": start / 100, "accuracy": solved / 100, "n": 100, "steps": 2, "samples": 16}
    told |= {"mean_age": age if stale else 0.0, "max_age": stale, "masked": None, "mismatch": 0.1, "ended": ""}
    told |= {"mismatch_same_version": 1e-6, "seconds": 9.0, "outcomes_before": digits["before"]}
    cell = dict(task=task, staleness=stale, correction=correction, seed=seed)
    return cell | told | {"outcomes": digits["now"]}


def grid_of(solved, seeds=(0, 1, 2), **options):
    """Results where an arm (task, staleness, correction) solves as many as `solved` says, and a task more by seed."""
    cells = [cell for cell in staleness.cells_of(staleness.FULL) if cell.seed in seeds]
    return [result(*cell, solved(cell) + cell.seed, **options) for cell in cells]


def found_of(results):
    arms = arms_of(results)
    return arms, {(one.kind, one.task, one.correction): one for one in comparisons(arms)}


def costly(cell):
    """Staleness costs 30 points, of which KPop gives 20 back."""
    return 80 - 30 * (cell.staleness > 0) + 20 * (cell.staleness > 0 and cell.correction == "kpop")


def test_the_grid_has_every_run_once_and_whole_arms_first():
    cells = staleness.cells_of(staleness.FULL)
    assert len(set(cells)) == len(cells) == 48 and len({cell.name for cell in cells}) == 48
    assert [cell.seed for cell in cells] == [0] * 16 + [1] * 16 + [2] * 16


def test_runs_differ_in_what_the_cell_says_and_in_nothing_else(tmp_path):
    of = {c: staleness.config_of(c, staleness.FULL, tmp_path) for c in staleness.cells_of(staleness.FULL)}
    for cell, config in of.items():
        other = dataclasses.replace(config, objective=of[cell._replace(correction="none")].objective)
        assert other == of[cell._replace(correction="none")]
        assert config.rows == 64 and config.rollout.max_staleness == cell.staleness and not config.rollout.overlap
        assert config.rollout.slots == 64 * (1 + cell.staleness)
        fresh = of[cell._replace(staleness=0)]
        names = ("slots", "token_budget", "max_staleness", "max_retention")
        same = {name: getattr(fresh.rollout, name) for name in names}
        assert dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **same)) == fresh


def test_each_correction_says_its_formula_and_values():
    assert FORMULAS["none"].startswith("grpo: ") and "behaviour" not in FORMULAS["none"]
    assert "w = min(old/behaviour, 2.0)" in FORMULAS["tis"] and "0.5 <= k <= 5.0" in FORMULAS["icepop"]
    assert "kappa = min(old/behaviour, 2.0)" in FORMULAS["kpop"] and "D(old||behaviour) <= 0.02" in FORMULAS["kpop"]


def test_an_interval_is_the_wider_of_that_over_seeds_and_that_over_tasks():
    alike = interval([np.array([1.0, 0.0, 1.0, 0.0])] * 3)  # over tasks alone
    assert alike.mean == 0.5 and alike.half == pytest.approx(1.96 * np.std([1, 0, 1, 0], ddof=1) / 2, rel=1e-3)
    apart = interval([np.full(4, value) for value in (0.0, 0.1, 0.2)])  # over seeds alone
    assert apart == pytest.approx((0.1, 4.303 * 0.1 / math.sqrt(3)), rel=1e-3)
    assert interval([np.ones(4)]).half == math.inf, "one seed says nothing of another"


def test_words_follow_from_where_an_interval_lies():
    words = [Interval(mean, 0.05).word for mean in (0.06, -0.06, 0.04, -0.04)]
    assert words == ["higher", "lower", "not told apart", "not told apart"]


def test_costs_and_help_are_found_where_they_are():
    arms, found = found_of(grid_of(costly))
    words = {key: one.word for key, one in found.items()}
    for task in staleness.TASKS:
        assert words["cost", task, "none"] == words["cost", task, "tis"] == "lower"
        assert words["help", task, "kpop"] == "higher" and words["help", task, "icepop"] == "not told apart"
        assert words["control", task, "kpop"] == "not told apart"
    verdicts = {finding(one, arms).name: finding(one, arms).verdict for one in found.values() if one.kind != "control"}
    assert len(verdicts) == 14
    assert verdicts["none loses nothing by staleness 8, lookup"] == "not seen"
    assert verdicts["KPop is more accurate than no correction, lookup"] == "reproduced"
    assert verdicts["TIS is more accurate than no correction, lookup"] == "not seen"


def test_no_loss_is_seen_where_the_interval_is_above_its_margin():
    arms, found = found_of(grid_of(lambda cell: 80))
    assert {finding(one, arms).verdict for one in found.values() if one.kind == "cost"} == {"reproduced"}


def test_nothing_is_testable_of_a_start_that_does_not_learn_or_of_young_tokens():
    for options in (dict(start=80), dict(age=1.0)):
        arms, found = found_of(grid_of(costly, **options))
        told = {finding(one, arms).verdict for one in found.values() if one.kind != "control"}
        assert told == {"not testable here"}, options


def test_a_help_is_not_told_apart_where_its_control_is():
    """Without staleness all corrections are alike: what differs there differs by chance."""

    def better(cell):
        return costly(cell) + 15 * (cell.correction == "kpop" and not cell.staleness)

    _, found = found_of(grid_of(better))
    assert found["control", "lookup", "kpop"].word == "higher"
    assert found["help", "lookup", "kpop"].word == "not told apart"


def test_arms_that_have_not_ended_are_left_out_of_the_report(tmp_path, capsys):
    results = grid_of(costly)
    results.remove(next(line for line in results if (line["correction"], line["staleness"]) == ("tis", 8)))
    found = staleness_report.write(tmp_path, results, FORMULAS)
    names = {one.name for one in found}
    assert "TIS loses nothing by staleness 8, lookup" in names
    assert "TIS loses nothing by staleness 8, digit_sums" not in names and len(names) == 12
    page = (tmp_path / "report.md").read_text()
    assert page in capsys.readouterr().out and (tmp_path / "staleness.svg").read_text().count("<svg") == 1
    assert "- staleness 8 against 0, correction none: lower on all tasks" in page
    assert "| lookup | 8 | KPop | 3 | 30.0% | 70.0%, 71.0%, 72.0% | 71.0% | 4.00, 8 |" in page
    assert "| cost | none | lookup | -30.0 [-30.0, -30.0] | lower |" not in page, "the tasks' spread is not counted"


def test_a_folder_of_another_grid_is_refused(tmp_path):
    staleness.note_grid(staleness.QUICK_GRID, tmp_path)
    staleness.note_grid(staleness.QUICK_GRID, tmp_path)
    with pytest.raises(ValueError, match="runs of another grid, which differs in tasks, corrections, seeds"):
        staleness.note_grid(staleness.FULL, tmp_path)


def lines_of(folder):
    """Results without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "seconds"} for _, line in read_objects(folder / "results.jsonl")]


@pytest.mark.slow
def test_a_grid_that_is_killed_goes_on_and_ends_with_the_same_lines(tmp_path):

    def program(name):
        return [sys.executable, "-m", "benchmarks.staleness", f"--out={tmp_path / name}", "--quick"]

    log = tmp_path / "log"
    run_with_kills(program("alone"), kills=0, longest=0, seed=0, log=log)
    hits = run_with_kills(program("killed"), kills=3, longest=6, seed=1, log=log, begin="run ")
    assert hits, "every start had ended before it could be killed"
    alone, killed = lines_of(tmp_path / "alone"), lines_of(tmp_path / "killed")
    assert alone == killed and [line["staleness"] for line in alone] == [0, 8]
    assert [line["steps"] for line in alone] == [2, 2] and all(line["samples"] == 16 for line in alone)
    assert len(json.loads((tmp_path / "alone" / "grid.json").read_text())["formulas"]) == 1
