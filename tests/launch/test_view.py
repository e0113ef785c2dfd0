"""The program that writes the page of trajectories."""

import json
import re

import pytest

from tests.helpers.refusals import run_each

STEPS = [{"step_id": 1, "source": "user", "message": "?"}, {"step_id": 2, "source": "agent", "message": "forty-two"}]
RECORD = {"schema_version": "ATIF-v1.7", "steps": STEPS}


def view(*flags):
    (done,) = run_each("launch.view", [list(flags)])
    return done


def test_the_page_has_the_trajectories_of_a_run(tmp_path):
    (tmp_path / "run" / "trajectories").mkdir(parents=True)
    (tmp_path / "run" / "trajectories" / "000000.jsonl").write_text(f"{json.dumps(RECORD)}\n" * 3)
    done = view(f"--trajectories={tmp_path}/run", f"--out={tmp_path}/page.html", "--most=2")
    assert done.returncode == 0, done.stderr
    assert "2 trajectories" in done.stdout and "raise --most=2" in done.stdout
    assert (tmp_path / "page.html").read_text().count("forty-two") == 2


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "--trajectories is missing: a file or a folder of trajectories"),
        (("--trajectories={}/nothing",), "nothing does not exist"),
        (("--trajectories={}",), "holds no trajectories; name a run's workdir"),
        (("--trajectories={}/bad.jsonl",), r"bad.jsonl, line 1: schema_version is 'x'; expected ATIF-v1.0"),
        (("--trajectories={}/bad.jsonl", "--out={}/no/folder.html"), "schema_version|folder"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_leaves_nothing(flags, problem, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"schema_version": "x"}')
    done = view(*(flag.format(tmp_path) for flag in flags))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and re.search(problem, done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
