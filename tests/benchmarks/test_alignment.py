"""The comparisons of alignment: what each changes, the rewards that they take, and their findings."""

import json

import numpy as np
import pytest

from benchmarks import alignment
from launch import demo, demo_report, demo_rules
from ling_jax.align.judges import Answer, Case

NAMES = [variant.name for variant in alignment.VARIANTS]


def answers(solved, tokens, count=60):
    for i in range(count):
        yield {"environment": "digit_sums", "outcome": float(i < solved), "tokens": tokens + i % 3}


@pytest.fixture
def folder(tmp_path):
    """A demo whose Evo-CoT and preference models beat all that they are compared with; as files."""
    stages = {"sft": (30, 60), "evo_cot": (50, 40), "preference": (50, 35)}
    others = dict.fromkeys(NAMES, (30, 50))
    for parent, models in (("", stages), ("alignment", others)):
        for name, (solved, tokens) in models.items():
            where = tmp_path / parent / "evaluation" / name
            where.mkdir(parents=True)
            (where / "samples.jsonl").write_text("\n".join(map(json.dumps, answers(solved, tokens))))
    for name in NAMES:
        (tmp_path / "alignment" / name).mkdir()
        line = {"step": 0, demo_rules.MISMATCH: 2e-6}
        (tmp_path / "alignment" / name / "metrics.jsonl").write_text(json.dumps(line))
    return tmp_path


@pytest.mark.parametrize("variant", alignment.VARIANTS, ids=NAMES)
@pytest.mark.parametrize("preset", ["full", "quick"])
def test_a_comparison_changes_one_thing_of_its_stage(variant, preset, tmp_path):
    changed = alignment.changed_config(variant, tmp_path, preset)
    same = alignment.changed_config(variant._replace(change=alignment.unchanged), tmp_path, preset)
    steps = demo.QUICK[variant.stage]["train.steps"] if preset == "quick" else None
    assert changed.train == same.train and changed.train.steps == (steps or same.train.steps)
    differ = {name for name in vars(same) if getattr(changed, name) != getattr(same, name)}
    wanted = {"grpo": {"objective"}, "gspo": {"objective"}, "shortest_from_sft": {"start_from", "teachers"}}
    assert differ == wanted.get(variant.name, set())
    assert bool(differ) != bool(variant.reward)


def test_every_finding_compares_runs_that_exist():
    models = {*NAMES, *(stage.name for stage in demo.STAGES)}
    assert {name for expected in demo_rules.COMPARED for name in (expected.before, expected.after)} <= models
    assert set(NAMES) <= {expected.before for expected in demo_rules.COMPARED} | {"shortest_from_sft"}


def answer(length: int, outcome: float) -> Answer:
    return Answer("A:1", "A:1", list(range(length)), [0] * length, ["A:1"], outcome, True)


def test_without_its_length_term_evo_cot_pays_equally_for_short_and_long_answers(monkeypatch):
    answers = [answer(10, 1.0), answer(50, 1.0), answer(50, 0.0)]
    monkeypatch.setattr(alignment, "case_of", lambda episodes, reader: Case("1?", answers))
    assert np.ptp(alignment.evo_cot_shaped(answers, [0, 0, 0]).total[:2]) > 0
    np.testing.assert_allclose(alignment.without_length([], None).total, [1, 1, 0])


def test_fixed_weights_are_those_of_the_rubrics(monkeypatch):
    answers = [answer(10, 1.0), answer(10, 0.0)]
    monkeypatch.setattr(alignment, "case_of", lambda episodes, reader: Case("1?", answers))
    total = alignment.fixed_weights(answers, None).total
    # Both have one sentence only; the wrong one has no merit of brevity. All weights are 8.
    scores = np.array([4 - 1 + 1 + 1 + 1, -4 - 1 + 1 + 1 + 0]) / 8
    np.testing.assert_allclose(total, [1, 0] + 0.45 * (scores - 1), rtol=1e-6)


def test_findings_follow_the_rules_and_reach_the_demos_report(folder, capsys):
    claims, findings = alignment.results(folder)
    assert [claim.holds for claim in claims] == [True]
    assert {finding.verdict for finding in findings} == {"reproduced"}
    assert alignment.finish(claims, "command", str(folder / demo_report.COMPARISONS), findings) == 0
    taken = demo_report.compared(folder)
    assert [found["name"] for found in taken] == [expected.name for expected in demo_rules.COMPARED]
    assert all(found["command"].endswith(str(folder)) and found["n"] == 60 for found in taken)


def test_without_a_demo_the_command_that_makes_one_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"python -m launch.demo --workdir={tmp_path}"):
        alignment.check_demo(tmp_path)
