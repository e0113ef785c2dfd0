import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.tool_calls import json_equal, process_reward

CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from("fg"),
            "arguments": st.dictionaries(st.sampled_from("ab"), st.sampled_from([1, True, "1", None])),
        }
    ),
    max_size=4,
)


def call(name, /, **arguments):  # an argument may be called name
    return {"name": name, "arguments": arguments}


def test_process_reward_equals_the_oracle(golden):
    for case in json.loads((golden / "objectives/process_reward.json").read_text()):
        found = process_reward(case["pred"], case["gt"], format_ok=case["format_ok"])._asdict()
        found["s_max"] = found.pop("max_score")
        assert found == pytest.approx(case["expected"], rel=0, abs=1e-6), case


def bfcl_calls(data) -> list[list[dict]]:
    """The right calls, with the first of the right values; the value "" says that an argument may be left out."""
    tasks = []
    for line in (data / "bfcl/BFCL_v4_simple_python_answers.jsonl").read_text().splitlines():
        tasks.append([])
        for gold in json.loads(line)["ground_truth"]:
            for name, arguments in gold.items():
                tasks[-1].append(call(name, **{key: values[0] for key, values in arguments.items() if values[0] != ""}))
    return tasks


def test_every_gold_call_of_bfcl_has_the_highest_reward(data):
    tasks = bfcl_calls(data)
    assert len(tasks) == 400
    for calls in tasks:
        predicted = json.loads(json.dumps(calls))
        assert process_reward(predicted, calls, format_ok=True).total == pytest.approx(4, abs=1e-12), calls


def test_every_mutated_call_of_bfcl_has_a_lower_reward(data):
    for calls in bfcl_calls(data):
        first = calls[0]
        mutated = {
            "dropped call": calls[1:],
            "wrong name": [call(first["name"] + "_", **first["arguments"]), *calls[1:]],
            "extra call": [*calls, call("search", query="?")],
            "repeated call": [*calls, first],
            "extra argument": [call(first["name"], **first["arguments"], verbose=True), *calls[1:]],
        }
        for key, value in first["arguments"].items():
            rest = {name: other for name, other in first["arguments"].items() if name != key}
            mutated[f"changed {key}"] = [call(first["name"], **rest, **{key: [value]}), *calls[1:]]
            mutated[f"as text {key}"] = [call(first["name"], **rest, **{key: f"{value} "}), *calls[1:]]
            mutated[f"dropped {key}"] = [call(first["name"], **rest), *calls[1:]]
        for what, predicted in mutated.items():
            assert process_reward(predicted, calls, format_ok=True).total < 4 - 1e-6, (what, calls)


@given(CALLS, CALLS, st.booleans())
def test_process_reward_is_in_range_and_perfect_on_itself(predicted, expected, format_ok):
    found = process_reward(predicted, expected, format_ok=format_ok)
    assert -3 <= found.correctness <= 3 + 1e-12
    assert 0 <= found.name_jaccard <= 1
    assert found.extra == max(0, len(predicted) - len(expected))
    assert process_reward(expected, expected, format_ok=True).total == pytest.approx(4)


@given(CALLS, CALLS)
def test_the_matching_is_the_best_there_is(predicted, expected):
    def alone(found, gold):  # a pair by itself: its match is its score
        return process_reward([found], [gold], format_ok=True).match

    size = max(len(predicted), len(expected))
    padded = [*predicted, *[None] * (size - len(predicted))]
    best = max(
        sum(alone(found, gold) for found, gold in zip(order, expected, strict=False) if found is not None)
        for order in itertools.permutations(padded)
    )
    assert process_reward(predicted, expected, format_ok=True).match == pytest.approx(best)


@given(CALLS, CALLS)
def test_the_order_of_calls_does_not_count(predicted, expected):
    forward = process_reward(predicted, expected, format_ok=True)
    assert process_reward(predicted[::-1], expected[::-1], format_ok=True) == pytest.approx(forward)


def test_json_values_are_compared_as_json():
    same = [(1, 1.0), ({"p": 1, "q": [2]}, {"q": [2.0], "p": 1}), (None, None), ([], ()), ("a", "a")]
    other = [(1, "1"), (1, True), (0, False), ([1, 2], [2, 1]), ([1], {"0": 1}), (None, 0), ({"p": 1}, {"p": True})]
    assert all(json_equal(a, b) and json_equal(b, a) for a, b in same)
    assert not any(json_equal(a, b) or json_equal(b, a) for a, b in other)


def test_a_call_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"predicted\[1\] is .*expected \{'name': text, 'arguments': dict\}"):
        process_reward([call("f"), {"name": "f"}], [], format_ok=True)
