"""Trees of calls: any shape of them, and what is learnt from it."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.rl.trajectory import Trajectory
from ling_jax.serve.calls import CUT, Call, chains, chosen, main_chain, parents, sample

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@st.composite
def trees(draw, *, linear=False):
    """(calls as a program made them, the call that each went on from)."""
    calls, above = [], []
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.sampled_from([None, *range(number)])) if not linear else (number - 1 if number else None)
        begins = [9, number] if parent is None else calls[parent].context.tolist()  # of roots no two are the same
        drawn = [*draw(TOKENS), 10 + number]  # so that no answer is another's
        version = 0 if parent is None else calls[parent].runs[-1][0]
        first = draw(st.integers(0, len(drawn) - 1))
        runs = [(version, first), (version + 1, len(drawn) - first)]
        calls.append(
            Call(
                np.array(begins + draw(TOKENS), np.int32),
                np.array(drawn, np.int32),
                -np.arange(1, 1 + len(drawn), dtype=np.float32) - number,
                [run for run in runs if run[1]],
                draw(st.sampled_from(["stop", "length", CUT])) if not linear else "stop",
                draw(st.integers(0 if parent is None else parent + 1, number)),
            )
        )
        above.append(parent)
    return calls, above


def drawn_in(calls, samples) -> collections.Counter:
    """How often the samples learn from each drawn token, by (call, its place)."""
    owners = {token: number for number, call in enumerate(calls) for token in [int(call.drawn[-1])]}
    found = collections.Counter()
    for trajectory in samples:
        ids = trajectory.completion_ids
        for start, stop in trajectory.turns:
            number = owners[int(ids[stop - 1])]
            assert ids[start:stop].tolist() == calls[number].drawn.tolist()
            assert trajectory.behaviour_logps[start:stop].tolist() == calls[number].logps.tolist()
            found.update((number, i) for i in range(stop - start))
    return found


def below(above, number: int) -> int:
    """Calls without a child at or below this one."""
    children = [child for child, parent in enumerate(above) if parent == number]
    return sum(below(above, child) for child in children) or 1


@settings(max_examples=200, deadline=None)
@given(trees())
def test_a_call_is_the_child_of_the_call_that_it_goes_on_from(tree):
    calls, above = tree
    assert parents(calls) == above


@settings(max_examples=200, deadline=None)
@given(trees())
def test_all_chains_learn_from_a_token_as_often_as_calls_end_below_it(tree):
    calls, above = tree
    found = drawn_in(calls, [sample(calls, chain, "t") for chain in chosen(calls, "concat", "all")])
    assert found == {
        (number, i): below(above, number) for number, call in enumerate(calls) for i in range(len(call.drawn))
    }


@settings(max_examples=200, deadline=None)
@given(trees())
def test_single_calls_learn_from_each_token_once(tree):
    calls, _ = tree
    every = [(number, i) for number, call in enumerate(calls) for i in range(len(call.drawn))]
    found = drawn_in(calls, [sample(calls, chain, "t") for chain in chosen(calls, "individual", "all")])
    assert found == dict.fromkeys(every, 1)
    main = main_chain(calls)
    found = drawn_in(calls, [sample(calls, chain, "t") for chain in chosen(calls, "individual", "main")])
    assert found == {pair: 1 for pair in every if pair[0] in main}


@settings(max_examples=200, deadline=None)
@given(trees())
def test_the_main_chain_ends_with_the_last_whole_answer(tree):
    calls, above = tree
    whole = [number for number, call in enumerate(calls) if call.finish_reason != CUT]
    chain = main_chain(calls)
    assert chain[-1:] == whole[-1:]
    assert [above[number] for number in chain] == [None, *chain[:-1]][: len(chain)]
    assert chosen(calls, "concat", "main") == ([chain] if chain else [])
    assert not chain or any(longer[: len(chain)] == chain for longer in chains(calls))


@settings(max_examples=200, deadline=None)
@given(trees(linear=True))
def test_a_session_without_branches_is_the_episode_that_a_collector_records(tree):
    """The collector adds a piece of decoding at a time, and what the environment says between two turns."""
    calls, _ = tree
    episode = Trajectory("t", calls[0].prompt.tolist())
    for number, call in enumerate(calls):
        if number:
            observed = call.prompt[len(calls[number - 1].context) :]
            episode.append_observation(observed.tolist(), call.runs[0][0])
        versions = np.repeat([version for version, _ in call.runs], [count for _, count in call.runs])
        for token, logp, version in zip(call.drawn.tolist(), call.logps, versions.tolist(), strict=True):
            episode.append_generation([token], [logp], version)
    (chain,) = chosen(calls, "concat", "all")
    assert chosen(calls, "concat", "main") == [chain]
    assert sample(calls, chain, "t").to_json() == episode.to_json()


def call(prompt, drawn, *, version=0, known=9) -> Call:
    logps = np.zeros(len(drawn), np.float32)
    return Call(np.array(prompt, np.int32), np.array(drawn, np.int32), logps, [(version, len(drawn))], "stop", known)


def test_a_prompt_that_was_asked_again_is_a_sibling():
    calls = [call([1], [2]), call([1, 2, 3], [4]), call([1, 2, 3], [5]), call([1, 2, 3, 5, 6], [7])]
    assert parents(calls) == [None, 0, 0, 2] and chains(calls) == [[0, 1], [0, 2, 3]]


def test_of_two_equal_answers_the_later_one_goes_on():
    assert parents([call([1], [2]), call([1], [2]), call([1, 2, 3], [4])]) == [None, None, 1]


def test_an_answer_that_came_later_is_not_what_a_call_goes_on_from():
    """A retry under newer weights that ends behind the call that went on from the first answer's tokens."""
    calls = [call([1], [2]), call([1], [2], version=1), call([1, 2, 3], [4], known=1)]
    assert parents(calls) == [None, None, 0]
    assert [run.version for run in sample(calls, [0, 2], "t").runs] == [0]


def test_contexts_that_end_alike_are_told_apart():
    """Calls are looked up by their last tokens."""
    end = list(range(20, 40))
    calls = [call([1, 2], end), call([3, 2], end), call([3, 2, *end, 7], [8]), call([4, 2, *end, 7], [8])]
    assert parents(calls) == [None, None, 1, None]


def test_a_call_goes_on_from_the_longest_context_that_it_begins_with():
    assert parents([call([1], [2]), call([1, 2], [3]), call([1, 2, 3, 4], [5])]) == [None, 0, 1]


def test_versions_that_fall_are_no_trajectory():
    calls = [call([1], [2], version=3), call([1, 2, 4], [5], version=2)]
    with pytest.raises(ValueError, match="version 2 comes after 3"):
        sample(calls, [0, 1], "t")
