import json
import sys

import pytest

from ling_jax.rollout.load import load_model
from tests.faults import run_with_kills
from tests.refusals import run_each
from tests.small_migration import write_source
from tests.small_run import write_corpus
from tests.tiny import assert_trees_equal

CONFIG = "--config=tests/small_migration.py"


def test_the_plan_of_the_real_1t_and_what_is_refused(tmp_path):
    one_t, nowhere, homeless = run_each(
        "launch.migrate",
        [
            ["--config=configs/migrate/1t.py", "--dry_run"],
            [CONFIG, f"--workdir={tmp_path}", "--config.source=nowhere"],
            [CONFIG, "--config.source=nowhere"],
        ],
    )
    assert one_t.returncode == 0, one_t.stderr
    for text in (
        "70 layers gqa -> lightning", "11 layers gqa -> mla", "100.06B tokens in 1491 steps",
        "20% of sequences that long", "rope theta 6e+06", "12.30TB of state", "32 checkpoints of 12.30TB",
        "in all: 9.60T tokens",
    ):  # fmt: skip
        assert text in one_t.stdout
    assert (nowhere.returncode, homeless.returncode) == (2, 2)
    assert "nowhere holds neither checkpoints/" in nowhere.stderr and "--workdir is missing" in homeless.stderr


@pytest.mark.slow
def test_a_plan_that_is_killed_ten_times_ends_in_the_same_bits(tmp_path):
    write_source(tmp_path / "source")
    write_corpus(tmp_path / "corpus", 40)
    sources = f"({{'kind': 'text', 'path': '{tmp_path / 'corpus'}'}},)"
    flags = [CONFIG, f"--config.source={tmp_path / 'source'}", f"--config.data.sources={sources}"]
    commands = {name: [sys.executable, "-m", "launch.migrate", *flags, f"--workdir={tmp_path / name}"] for name in "ab"}
    run_with_kills(commands["a"], kills=0, longest=0, seed=0, log=tmp_path / "a.log")
    hits = run_with_kills(commands["b"], kills=10, longest=15, seed=0, log=tmp_path / "b.log")
    assert len(hits) == 10
    stages = sorted(path.name for path in (tmp_path / "a").glob("[0-9]*_*"))
    assert len(stages) == 5
    for stage in stages:
        reports = [json.loads((tmp_path / name / stage / "report.json").read_text()) for name in "ab"]
        for report in reports:
            del report["seconds"]
        assert reports[0] == reports[1]
        models = [load_model(tmp_path / name / stage).params for name in "ab"]
        assert_trees_equal(*models)
