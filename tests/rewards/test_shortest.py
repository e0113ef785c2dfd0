import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.shortest import Candidate, length_floor, pick_shortest, takes_pruned

CANDIDATES = st.lists(st.builds(Candidate, st.booleans(), st.integers(0, 50), st.integers(0, 3)), max_size=10)


@pytest.fixture
def cases(golden):
    return json.loads((golden / "objectives/scrd.json").read_text())


def test_picks_equal_the_oracle(cases):
    for case in cases["pick"]:
        candidates = [Candidate(**candidate) for candidate in case["candidates"]]
        assert pick_shortest(candidates, case["floor"]) == case["expected"], case


def test_pruning_equals_the_oracle(cases):
    for case in cases["prune"]:
        original, pruned = (
            text and Candidate(text["answer"] == case["gold"], text["tokens"], text["derivation_tokens"])
            for text in (case["original"], case["pruned"])
        )
        assert takes_pruned(original, pruned) == (case["expected"] == "pruned"), case


def test_floors_equal_the_oracle(cases):
    for case in cases["floor"]:
        found = length_floor(case["domain_lengths"], percentile=case["percentile"])
        assert found == pytest.approx(case["expected"], abs=1e-9)


@given(CANDIDATES, st.integers(0, 50))
def test_a_pick_is_fit_and_nothing_fit_is_shorter(candidates, floor):
    def fit(candidate):
        return candidate.correct and candidate.derivation_tokens > 0 and candidate.tokens >= floor

    picked = pick_shortest(candidates, floor)
    if picked is None:
        assert not any(map(fit, candidates))
    else:
        assert fit(candidates[picked])
        assert candidates[picked].tokens == min(c.tokens for c in candidates if fit(c))


def test_a_domain_without_lengths_has_no_floor():
    with pytest.raises(ValueError, match="lengths is empty"):
        length_floor([])
