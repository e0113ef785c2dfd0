"""Running sums and orderings."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.envs import parse_action
from ling_jax.envs.reasoning import digit_sums, ordering, running_sums

SEEDS = st.integers(0, 10_000)


def outcome(environment, task, action):
    return environment.step(environment.reset(task, 0), parse_action(action))[1]


def test_the_documented_sum():
    task = running_sums.make_task(3, 4)
    assert task.prompt == "?71+30+39+84+12="
    assert running_sums.solution(task) == ("71+30=101;101+39=140;140+84=224;224+12=236;A:236",)


@pytest.mark.parametrize(("sums", "low", "high"), [(running_sums, 10, 99), (digit_sums, 1, 9)])
@given(SEEDS, st.integers(2, 15), st.floats(0, 0.8))
def test_every_step_and_check_of_a_worked_sum_is_right(sums, low, high, seed, difficulty, redundancy):
    task = sums.make_task(seed, difficulty)
    numbers = [int(number) for number in task.prompt[1:-1].split("+")]
    assert len(numbers) == difficulty + 1 and all(low <= number <= high for number in numbers)
    (text,) = sums.solution(task, redundancy=redundancy, seed=seed)
    *steps, answer = text.split(";")
    assert answer == f"A:{sum(numbers)}"
    plain = [step for step in steps if not step.startswith("c")]
    assert (";".join([*plain, answer]),) == sums.solution(task)
    last = None
    for step in steps:
        a, b, total = map(int, re.fullmatch(r"c?(\d+)\+(\d+)=(\d+)", step).groups())
        assert a + b == total
        assert not step.startswith("c") or step[1:] == last, "a check repeats the step before it"
        last = step.removeprefix("c")
    assert outcome(sums, task, text).rewards == {"outcome": 1.0}


@pytest.mark.parametrize("redundancy", [0.3, 0.55])
def test_planted_checks_are_geometric(redundancy):
    made = [running_sums.make_task(seed, 4) for seed in range(500)]
    texts = [running_sums.solution(task, redundancy=redundancy, seed=1)[0] for task in made]
    checks = [len(re.findall(rf"(?:c{re.escape(step)};)", text)) for text in texts for step in plain_steps(text)]
    mean, variance = redundancy / (1 - redundancy), redundancy / (1 - redundancy) ** 2
    # four standard errors
    assert sum(checks) / len(checks) == pytest.approx(mean, abs=4 * (variance / len(checks)) ** 0.5)
    share = sum(count >= 2 for count in checks) / len(checks)
    assert share == pytest.approx(redundancy**2, abs=4 * (redundancy**2 / len(checks)) ** 0.5)


def plain_steps(text):
    return [step for step in text.split(";")[:-1] if not step.startswith("c")]


def test_planted_redundancy_is_seeded_and_ends():
    task = running_sums.make_task(0, 5)
    many = {running_sums.solution(task, redundancy=0.6, seed=seed) for seed in range(20)}
    assert len(many) > 10
    assert running_sums.solution(task, redundancy=0.6, seed=3) == running_sums.solution(task, redundancy=0.6, seed=3)
    with pytest.raises(ValueError, match=r"redundancy is 1.0; expected a probability from 0 to below 1"):
        running_sums.solution(task, redundancy=1.0)


def test_a_step_has_no_more_checks_than_asked_for():
    texts = [digit_sums.solution(digit_sums.make_task(s, 4), redundancy=0.6, most=1)[0] for s in range(300)]
    checks = [text.count(f"c{step};") for text in texts for step in plain_steps(text)]
    assert set(checks) == {0, 1}
    assert sum(checks) / len(checks) == pytest.approx(0.6, abs=4 * (0.24 / len(checks)) ** 0.5)


@given(SEEDS, st.sampled_from(ordering.DIFFICULTIES))
def test_the_clues_fix_one_order(seed, difficulty):
    task = ordering.make_task(seed, difficulty)
    clues = [clue if "<" in clue else f"{clue[2]}<{clue[0]}" for clue in task.prompt[1:-1].split(";")]
    after = {clue[0]: clue[2] for clue in clues}
    assert len(clues) == len(after) == difficulty
    (letter,) = after.keys() - after.values()
    order = [letter]
    while order[-1] in after:
        order.append(after[order[-1]])
    assert "".join(order) == task.hidden["answer"] and len(order) == difficulty + 1
    (text,) = ordering.solution(task)
    *steps, answer = text.split(";")
    assert steps == [f"{a}<{b}" for a, b in itertools.pairwise(order)] and sorted(steps) == sorted(clues)
    assert answer == f"A:{''.join(order)}"


@pytest.mark.parametrize(
    ("action", "solved", "error"),
    [
        ("A:236", 1, None),
        ("<think>A:1</think>A: 236\n", 1, None),
        ("A:235", 0, None),
        ("A:2360", 0, None),
        ("A:236;A:1", 0, None),
        ("236", 0, "no answer: expected A: and the answer at the end"),
    ],
)
def test_the_last_answer_counts(action, solved, error):
    result = outcome(running_sums, running_sums.make_task(3, 4), action)
    assert (result.rewards["outcome"], result.error, result.terminated, result.truncated) == (
        solved,
        error,
        True,
        False,
    )
