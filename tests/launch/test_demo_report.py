"""The demo's report from files that are written by hand."""

import json

import pytest

from launch import demo_report, demo_rules
from tests.helpers.demo_folder import NAMES, TASKS, answers, write_demo
from tests.helpers.demo_folder import write_report as write


@pytest.fixture
def folder(tmp_path):
    write_demo(tmp_path)
    return tmp_path


def test_verdicts_follow_their_rules(folder):
    _, report = write(folder)
    verdicts = {finding["name"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts.pop("KPop raises accuracy with stale samples") == "not seen"
    assert set(verdicts.values()) == {"reproduced"}
    lpo = next(finding for finding in report["findings"] if finding["name"] == "LPO raises accuracy")
    assert lpo["value"] == pytest.approx(0.05) and lpo["n"] == TASKS and lpo["seeds"] == 1
    half = 1.96 * (0.05 * 0.95 / (TASKS - 1)) ** 0.5
    assert lpo["ci95"] == pytest.approx([0.05 - half, 0.05 + half], abs=1e-4)
    calls = next(finding for finding in report["findings"] if finding["name"] == "Agentic GSPO saves calls")
    assert calls["ci95"] == [-1, -1]


def test_what_is_kept_may_cost_less_than_the_margin(folder):
    path = folder / "evaluation" / "specialists" / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, answers(40, 30, 0))))
    verdicts = {finding["name"]: finding["verdict"] for finding in write(folder)[1]["findings"]}
    assert verdicts["Merging keeps the sums"] == verdicts["Merging keeps the tools"] == "not seen"


def test_kpop_is_judged_by_tasks_of_its_own_kind(folder):
    table, report = write(folder)
    (found,) = [f for f in report["findings"] if f["name"] == "KPop raises accuracy with stale samples"]
    assert (found["value"], found["n"], found["verdict"]) == (pytest.approx(0.01), TASKS, "not seen")
    assert "longer sums before kpop: 40% [31, 50]; longer sums after kpop: 41% [32, 51]" in table
    assert [part["accuracy"] for part in report["stages"][-1]["own"].values()] == [0.4, 0.41]


def test_nothing_can_be_kept_where_nothing_was_right(folder):
    for name in ("agentic", "specialists"):
        path = folder / "evaluation" / name / "samples.jsonl"
        path.write_text("\n".join(map(json.dumps, answers(0, 30, 0))))
    verdicts = {finding["name"]: finding["verdict"] for finding in write(folder)[1]["findings"]}
    assert verdicts["Merging keeps the tools"] == "not testable here"


def test_without_a_sandbox_nothing_is_said_of_functions(folder):
    for path in folder.glob("evaluation/*/samples.jsonl"):
        path.write_text("\n".join(line for line in path.read_text().splitlines() if "functions" not in line))
    table, report = write(folder)
    assert not [found for found in report["findings"] if "functions" in found["name"]]
    assert table.splitlines()[4].split()[-1] == "-"


def test_one_step_beyond_the_bar_breaks_the_claim(folder):
    (claim,) = write(folder)[1]["claims"]
    assert claim["holds"] and claim["value"] == 2e-6
    with (folder / "agentic" / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 3, "reward": 0.5, demo_rules.MISMATCH: 1.1e-5}))
    (claim,) = write(folder)[1]["claims"]
    assert not claim["holds"] and claim["value"] == 1.1e-5


def test_without_stale_tokens_the_mask_is_not_testable(folder):
    (folder / "kpop" / "metrics.jsonl").write_text(json.dumps({"step": 0, "reward": 1.0, "masked_fraction": 0.0}))
    found = write(folder)[1]["findings"][-1]
    assert (found["value"], found["ci95"], found["verdict"]) == (None, None, "not testable here")


def test_the_table_has_a_line_per_stage(folder):
    table, report = write(folder)
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(NAMES)]] == NAMES
    assert lines[4].count("55% [45, 64]") == 4 and "12 s" in lines[4]
    assert report["seconds"] == 42 and report["stages"][3]["digit_sums"]["accuracy"] == 0.55
    assert not any("digit_sums" in row for row in report["stages"][:3])


def test_the_steps_of_a_migrations_stages_follow_each_other(folder):
    (folder / "migrate" / "1_next").mkdir()
    (folder / "migrate" / "1_next" / "metrics.jsonl").write_text('{"step": 0, "main_loss": 2.0}')
    lines = demo_report.stage_metrics(folder / "migrate")
    assert [(line["step"], line["main_loss"]) for line in lines] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_row_names_the_stage_that_it_starts_from_and_the_tasks_that_it_trains_on(folder):
    rows = {row["name"]: row for row in write(folder)[1]["stages"]}
    assert (rows["sft"]["from"], rows["evo_cot"]["from"]) == ("migrate", "sft")
    assert rows["preference"]["environment"] == "digit_sums"
    assert "environment" not in rows["agentic"]  # it has three
    assert not {"from", "environment"} & rows["pretrain"].keys()
