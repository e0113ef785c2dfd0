"""Tasks of functions: what they ask, and what a reply to them is worth."""

import ast
import asyncio
import collections
import random

import pytest

from ling_jax.envs import HELD_OUT_SEEDS, parse_action
from ling_jax.envs.coding import functions, hard_pieces, pieces
from ling_jax.envs.coding.functions import DIFFICULTIES, make_task, solution, source_of
from ling_jax.envs.coding.memory import Memory
from tests.helpers.coding_play import play, rewards_of

each = pytest.mark.parametrize("difficulty", DIFFICULTIES)
RIGHT = {"outcome": 1.0, "tests": 1.0, "suspicious": 0.0}


@each
def test_the_reference_solves_a_task_and_silence_and_copies_do_not(difficulty):
    task = make_task(1, difficulty)
    assert rewards_of(task, solution(task)) == RIGHT
    for policy in (functions.null_solution, functions.copy_solution):
        assert rewards_of(task, policy(task))["outcome"] == 0


@each
def test_the_identity_and_constants_solve_nothing(difficulty):
    for seed in range(40):
        cases = make_task(seed, difficulty).hidden["cases"]
        assert any(case["arguments"] != [case["expected"]] for case in cases)
        values = [repr(case["expected"]) for case in cases]
        assert len(cases) >= functions.HIDDEN // 2 and len(set(values)) > 1


def test_difficulty_1_is_short_enough_for_a_small_model():
    tasks = [make_task(seed, 1) for seed in range(500)]
    assert max(len(task.prompt) for task in tasks) <= 40
    assert max(len(solution(task)[0]) for task in tasks) <= 30
    assert all(task.max_tokens == 64 and len(task.messages) == 1 for task in tasks)


@each
def test_hidden_calls_are_none_of_the_examples(difficulty):
    for seed in range(20):
        task = make_task(seed, difficulty)
        for case in task.hidden["cases"]:
            assert f"f({case['arguments'][0]!r})" not in task.prompt


def test_a_function_is_on_one_side_of_the_split_with_all_its_examples():
    """Difficulty 1 has few functions: seeds draw the same ones often, and then they are the same tasks."""
    train = {solution(make_task(seed, 1)) for seed in range(2000)}
    held_out = {solution(make_task(HELD_OUT_SEEDS + seed, 1)) for seed in range(700)}
    assert not train & held_out and len(train) > 1500 and len(held_out) > 512


@each
def test_expected_values_do_not_depend_on_the_order_of_sets(difficulty):
    for seed in range(30):
        assert "set(" not in solution(make_task(seed, difficulty))[0].replace("sorted(set(", "")


def test_every_piece_is_drawn_and_can_be_run():
    drawn = collections.Counter()
    for difficulty in DIFFICULTIES:
        for seed in range(400):
            drawn.update(make_task(seed, difficulty).prompt.partition("f(x): ")[2].partition(".\n")[0].split("; "))
    for piece in (*functions.COMMON, *hard_pieces.ALGORITHMS):
        start = piece.words.partition("{")[0]
        assert any(words.startswith(start) for words in drawn), piece.words


def test_pieces_turn_their_kind_into_the_one_they_say():
    kinds = {"int": int, "ints": list, "text": str, "words": list, "counts": dict}
    for piece in (*functions.COMMON, *hard_pieces.ALGORITHMS):
        rng = random.Random(piece.words)
        if piece.takes == "counts":
            continue  # no start of its own; `test_every_piece_is_drawn` runs them
        space = {}
        exec(functions._source([pieces.drawn(rng, piece)]), space)
        for _ in range(50):
            assert type(space["f"](pieces.value(rng, piece.takes))) is kinds[piece.gives], piece.words


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ("def f(x): return x", "def f(x): return x"),
        ("```python\ndef f(x): return x\n```", "def f(x): return x\n"),
        ("Here:\n```\na\n```\nbetter:\n```py\nb\n```\nDone.", "b\n"),
        ("```python\nnot closed", "not closed"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_part_between_marks_or_all(content, source):
    assert source_of(content) == source


def test_reasoning_is_no_part_of_the_program():
    task = make_task(2, 1)
    (reference,) = solution(task)
    assert rewards_of(task, [f"<think>```\nwrong\n```</think>{reference}"]) == RIGHT
    assert rewards_of(task, [f"So:\n```python\n{reference}\n```\nThat is it."]) == RIGHT
    assert rewards_of(task, [f"So: {reference}"])["outcome"] == 0


def test_a_reply_is_one_turn_and_always_ends_the_episode():
    task = make_task(2, 1)
    for reply in ("", "no", "def f(x): return 0", "<tool_call>x</tool_call>"):
        (result,) = play(task, [reply, reply])
        assert result.terminated and not result.observation and result.rewards["outcome"] == 0 and result.error

    async def twice():
        session = functions.session()
        await session.open(task, 0)
        for _ in range(2):
            await session.step(parse_action(""))

    with pytest.raises(ValueError, match="the episode has ended"):
        asyncio.run(twice())


def test_part_of_the_calls_has_part_of_the_tests_reward():
    task = make_task(0, 2)
    expected = task.hidden["cases"][0]["expected"]
    rewards = rewards_of(task, [f"def f(x): return {expected!r}"])
    assert rewards["outcome"] == 0 and 0 < rewards["tests"] < 1


def test_what_looks_around_is_flagged():
    task = make_task(0, 1)
    assert (
        rewards_of(task, ["import os\nos._exit(0)\ndef f(x): return open('/proc/self/maps').read()"])["suspicious"] == 2
    )


def test_a_noisy_solver_makes_mistakes_line_by_line():
    task = make_task(0, 6)
    assert solution(task) == solution(task, error_rate=0.0)
    noisy = {solution(task, error_rate=0.3, seed=seed)[0] for seed in range(20)}
    assert len(noisy) > 5
    for source in noisy:
        ast.parse(source)


@pytest.fixture
def judged(monkeypatch):
    """The sources that were really run."""
    ran, judge = [], functions.judge_function

    def counted(box, source, *rest):
        ran.append(source)
        return judge(box, source, *rest)

    monkeypatch.setattr(functions, "judge_function", counted)
    monkeypatch.setattr(functions, "JUDGED", Memory(2))
    return ran


def test_the_same_function_is_run_once(judged):
    task, other = make_task(1, 1), make_task(2, 1)
    for _ in range(2):
        assert rewards_of(task, solution(task)) == RIGHT
        assert rewards_of(other, solution(task))["outcome"] == 0  # other calls: another verdict
    assert len(judged) == 2


@pytest.mark.parametrize("last", ["os.kill(os.getppid(), 9)", "f = lambda x: os._exit(0)"])
def test_a_function_whose_calls_do_not_come_back_is_run_again(judged, last):
    task = make_task(1, 1)
    for _ in range(2):
        assert rewards_of(task, (f"import os\n{last}",))["outcome"] == 0
    assert len(judged) == 2
