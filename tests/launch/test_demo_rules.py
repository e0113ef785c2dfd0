"""Verdicts of the demo's findings and claims."""

import pytest

from launch import demo_rules
from launch.demo_rules import COMPARED, EXPECTED, MISMATCH, Expected, agreement, finding


def answers(outcomes, tokens=30):
    return [{"environment": "digit_sums", "outcome": float(right), "tokens": tokens} for right in outcomes]


def test_a_finding_that_is_not_seen_has_a_likely_reason_and_another_has_none():
    expected = Expected("name", "§1", "raises", "outcome", "digit_sums", "before", "after", "too few steps")
    half = [i % 2 for i in range(40)]
    same = finding(expected, {"before": answers(half), "after": answers(half)})
    assert (same["verdict"], same["why"]) == ("not seen", "too few steps")
    better = finding(expected, {"before": answers(half), "after": answers([1] * 40)})
    assert (better["verdict"], better["why"], better["value"]) == ("reproduced", "", 0.5)


def test_the_reason_of_a_loss_is_another_than_that_of_too_little_gain():
    expected = Expected("name", "§1", "raises", "outcome", "digit_sums", "before", "after", "too few steps")
    found = finding(expected, {"before": answers([1] * 40), "after": answers([i % 2 for i in range(40)])})
    assert found["verdict"] == "not seen" and found["why"] == demo_rules.OPPOSITE
    shorter = expected._replace(kind="lowers", what="tokens")
    found = finding(shorter, {"before": answers([1] * 40), "after": answers([1] * 40, tokens=31)})
    assert found["verdict"] == "not seen" and found["why"] == demo_rules.OPPOSITE


@pytest.mark.parametrize("expected", [*EXPECTED, *COMPARED], ids=lambda expected: expected.name)
def test_every_finding_has_a_rule_a_reference_and_a_likely_reason(expected):
    assert expected.kind in demo_rules.RULES and "§" in expected.report_ref and expected.why


def test_a_claim_outside_its_bar_counts_the_ties_of_experts():
    lines = [{MISMATCH: 2e-6, "mismatch_same_version/tokens": 500, "mismatch_same_version/far": 0}]
    within = agreement({"sft": lines})
    assert within["holds"] and (within["tokens"], within["far"]) == (500, 0) and "experts" not in within["why"]
    lines += [{MISMATCH: 3e-2, "mismatch_same_version/tokens": 500, "mismatch_same_version/far": 4}]
    outside = agreement({"sft": lines})
    assert not outside["holds"] and "4 of 1000 tokens differ by more than 1e-4: two experts" in outside["why"]
