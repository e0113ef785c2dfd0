import json

import pytest

from ling_jax.evaluate.report import Metric, check_new_folder, table, with_progress, write_results

METRICS = [
    Metric("accuracy", 0.5, (0.25, 0.75), 12, "samples"),
    Metric("perplexity", float("inf"), None, 3, "documents"),
    Metric("verifier_errors", 2, None, 12, "samples"),
    Metric("pass@4", None, None, 0, "prompts"),
]


def test_the_table_is_aligned():
    assert table(METRICS).splitlines() == [
        "metric           value  95 % interval  n",
        "accuracy         0.5    [0.25, 0.75]   12 samples",
        "perplexity       inf    -              3 documents",
        "verifier_errors  2      -              12 samples",
        "pass@4           -      -              0 prompts",
    ]


def test_results_are_json(tmp_path):
    write_results(tmp_path / "deep" / "out", [{"id": "\ud800é"}, {"id": 1}], METRICS, {"model": "m"})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    lines = (tmp_path / "deep" / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert "é" in lines[0] and [json.loads(line)["id"] for line in lines] == ["\ud800é", 1]
    summary = json.loads((tmp_path / "deep" / "out" / "summary.json").read_text())
    assert summary["model"] == "m" and [row["value"] for row in summary["metrics"]] == [0.5, "inf", 2, None]
    assert summary["metrics"][0] == {
        "name": "accuracy", "value": 0.5, "interval": [0.25, 0.75], "n": 12, "unit": "samples",
    }  # fmt: skip


def test_failed_writes_leave_no_folder(tmp_path):
    with pytest.raises(TypeError):
        write_results(tmp_path / "out", [{"id": 1}, {"id": object()}], METRICS, {})
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_made_are_reported_before_the_work(tmp_path):
    check_new_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        check_new_folder(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        check_new_folder(tmp_path / "file")
    with pytest.raises(OSError, match="file is not a folder"):
        check_new_folder(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_progress_says_how_many_and_passes_all_on(capsys):
    assert list(with_progress(iter(["ab", "c"]), "windows", 3)) == ["a", "b", "c"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("evaluate: windows=3/3 seconds=") and line.endswith("eta=0:00:00")


def test_the_compilations_of_the_first_batch_do_not_count_for_the_time_left(capsys, monkeypatch):
    times = iter([0.0, 100.0, 110.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    assert list(with_progress(iter("abc"), "rollouts", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out.splitlines() == [
        "evaluate: rollouts=1/3 seconds=100.0",
        "evaluate: rollouts=2/3 seconds=110.0 eta=0:00:10",
        "evaluate: rollouts=3/3 seconds=120.0 eta=0:00:00",
    ]
