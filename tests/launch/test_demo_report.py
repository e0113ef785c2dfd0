"""The demo's report from files that are written by hand."""

import json
from html.parser import HTMLParser

import pytest

from launch import demo_report, demo_rules
from launch.demo import STAGES
from ling_jax.config import model_config

MODELS = {"base": model_config("tiny-2.0"), "hybrid": model_config("tiny-2.6")}
NAMES = [stage.name for stage in STAGES]
TASKS = 100


def answers(solved, tokens, extra):
    """To `TASKS` sums and as many lookups, of which the first `solved` are right."""
    for environment in ("digit_sums", "lookup"):
        for i in range(TASKS):
            said = {
                "environment": environment,
                "prompt": f"?{i}<b>",
                "messages": [{"role": "assistant", "content": "A:1 & 2"}],
                "expected": "3",
                "tokens": tokens + i % 3,
            }
            yield said | {"outcome": float(i < solved), "superfluous_calls": extra if environment == "lookup" else 0}


@pytest.fixture
def folder(tmp_path):
    """Every stage solves five tasks more with two tokens less, but the last, which is as the one before."""
    for number, name in enumerate(NAMES):
        run = tmp_path / name / ("0_only" if name == "migrate" else "")
        run.mkdir(parents=True)
        line = (
            {"main_loss": 1.0} if name in ("pretrain", "migrate", "sft") else {"reward": 0.5, demo_rules.MISMATCH: 2e-6}
        )
        stale = {"masked_fraction": 0.3, "staleness/max": 2} if name == "kpop" else {}
        lines = [json.dumps({"step": step} | line | stale) for step in range(3)]
        (run / "metrics.jsonl").write_text("\n".join(lines))
        if name in ("pretrain", "migrate"):
            continue
        grade = min(number - 1, len(NAMES) - 3)
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        said = answers(50 + 5 * grade, 40 - 2 * grade, 1 if name == "sft" else 0)
        (tmp_path / "evaluation" / name / "samples.jsonl").write_text("\n".join(map(json.dumps, said)))
    return tmp_path


def write(folder):
    table = demo_report.write(folder, NAMES, {"sft": 12.0, "kpop": 30.0}, MODELS)
    return table, json.loads((folder / "report.json").read_text())


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


def test_nothing_can_be_kept_where_nothing_was_right(folder):
    for name in ("agentic", "specialists"):
        path = folder / "evaluation" / name / "samples.jsonl"
        path.write_text("\n".join(map(json.dumps, answers(0, 30, 0))))
    verdicts = {finding["name"]: finding["verdict"] for finding in write(folder)[1]["findings"]}
    assert verdicts["Merging keeps the tools"] == "not testable here"


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
    assert "55.0% [45.2%, 64.4%]" in lines[3] and "12 s" in lines[3]
    assert report["seconds"] == 42 and report["stages"][2]["digit_sums"]["accuracy"] == 0.55
    assert not any("digit_sums" in row for row in report["stages"][:2])


def test_the_steps_of_a_migrations_stages_follow_each_other(folder):
    (folder / "migrate" / "1_next").mkdir()
    (folder / "migrate" / "1_next" / "metrics.jsonl").write_text('{"step": 0, "main_loss": 2.0}')
    lines = demo_report.stage_metrics(folder / "migrate")
    assert [(line["step"], line["main_loss"]) for line in lines] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]


def test_the_page_stands_alone(folder):
    write(folder)
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    text = (folder / "report.html").read_text()
    Reader().feed(text)
    charts = [dict(attributes)["aria-label"] for tag, attributes in tags if tag == "svg"]
    assert {"Accuracy, with 95 % intervals", "Tokens per answer", "Reward", "Staleness, weight versions"} <= set(charts)
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text
    assert not {"script", "link", "a", "iframe"} & {tag for tag, _ in tags}
    assert "&lt;b&gt;" in text and "A:1 &amp; 2" in text
