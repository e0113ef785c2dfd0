"""Puzzles as directories: a file has the answer, and it is judged like a turn in the task's own environment."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.envs import environment
from ling_jax.envs.harbor.environment import solution
from ling_jax.envs.harbor.export import ANSWERED, export_tasks, parts_of
from ling_jax.envs.harbor.instructions import NOTATION
from ling_jax.envs.reasoning import answers, grid, knights, scheduling
from tests.helpers.exports import DONE, bash, exported, rewards
from tests.helpers.sandboxes import sandbox_or_skip


def difficulties(name):
    """Some of those that are quickly made, with and without words."""
    known = environment(name).DIFFICULTIES
    return known[0], known[2], known[3]


def tasks_of(name):
    return [environment(name).make_task(0, each) for each in difficulties(name)]


def writing(text):
    return bash(f"cat > {answers.FILE} <<'END'\n{text}\nEND")


def check_verdicts(tasks, folder):
    """The reference, and the answer to another task."""
    for ours, theirs in zip(tasks, exported(tasks, folder), strict=True):
        made = environment(ours.environment)
        other = made.solution(made.make_task(ours.seed + 1, ours.difficulty))[0][-4000:]
        assert rewards(theirs, solution(theirs))["outcome"] == 1.0
        assert rewards(theirs, writing(other))["outcome"] == rewards(ours, (other,))["outcome"]


def test_answers_have_the_same_verdicts_as_in_their_own_environments(tmp_path):
    sandbox_or_skip("T3")
    for number, name in enumerate(ANSWERED):
        check_verdicts([tasks_of(name)[number % 3]], tmp_path / name)


def test_doing_nothing_and_copying_the_prompt_have_outcome_0(tmp_path):
    sandbox_or_skip("T3")
    for name in ("scheduling", "needle"):
        ours = tasks_of(name)[1]
        (theirs,) = exported([ours], tmp_path / name)
        assert rewards(theirs, (DONE,))["outcome"] == rewards(theirs, writing(ours.prompt))["outcome"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERED)
def test_two_hundred_answers_have_the_same_verdicts(name, tmp_path):
    sandbox_or_skip("T3")
    known = environment(name).DIFFICULTIES[:10]
    tasks = [environment(name).make_task(seed, known[seed % len(known)]) for seed in range(200)]
    for task, other in zip(tasks, [*tasks[1:], tasks[0]], strict=True):
        request = json.loads(parts_of(task).tests["request.json"])
        texts = *environment(name).solution(task), *environment(name).solution(other), "", task.prompt
        judged = [float(answers.RULES[request["rule"]](text, request["answer"])) for text in texts]
        assert judged == [rewards(task, (text,))["outcome"] for text in texts]
        assert [judged[0], *judged[2:]] == [1.0, 0.0, 0.0]  # another task may have the same answer
    check_verdicts(tasks[::10], tmp_path / "out")


@pytest.mark.parametrize("name", ANSWERED)
@settings(max_examples=40)
@given(data=st.data())
def test_any_text_in_the_file_is_judged_like_a_turn(name, data):
    task = environment(name).make_task(data.draw(st.integers(0, 20)), data.draw(st.sampled_from(difficulties(name))))
    request = json.loads(parts_of(task).tests["request.json"])
    pieces = ["A:", " ", "\n", ",", ".", "a", request["answer"], request["answer"].upper(), task.prompt]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=5)), max_size=5)))
    text = text.replace("<", "(")  # marks of calls and of thinking, which a file has not
    assert answers.RULES[request["rule"]](text, request["answer"]) == rewards(task, (text,))["outcome"]


@pytest.mark.parametrize(
    "command",
    [
        "head -c 3000000 /dev/zero | tr '\\0' 1 > answer.txt",
        "head -c 100000 /dev/urandom > answer.txt",
        "ln -s /tests/request.json answer.txt",
        "mkdir answer.txt; touch answer.txt/a",
        "printf '\\377\\376A:' > answer.txt",
        "cat /tests/* > answer.txt",
    ],
)
def test_a_file_that_is_no_answer_has_outcome_0(command, tmp_path):
    sandbox_or_skip("T3")
    (task,) = exported([environment("knights").make_task(0, 3)], tmp_path / "out")
    found = rewards(task, bash(command))
    assert found["outcome"] == 0.0 and "verifier_failed" not in found


@pytest.mark.parametrize("name", ANSWERED)
def test_the_agent_finds_the_instruction_alone(name, tmp_path):
    for path in export_tasks(tasks_of(name), tmp_path / "out"):
        assert [file.name for file in (path / "environment").iterdir()] == ["Dockerfile"]
        answer = json.loads((path / "tests" / "request.json").read_text())["answer"]
        text = (path / "instruction.md").read_text()
        assert answers.FILE in text and not answers.RULES[ANSWERED[name]](text, answer)


@pytest.mark.parametrize("puzzle", [knights, grid, scheduling])
def test_the_instruction_explains_every_character_of_a_short_puzzle(puzzle):
    """A form in characters is such as {a}@{n}."""
    last, text = NOTATION[puzzle.NAME]
    assert last == puzzle.SHORT
    assert text in parts_of(puzzle.make_task(0, last)).instruction
    assert text not in parts_of(puzzle.make_task(0, last + 1)).instruction
    for form in puzzle.FORMS.values():
        characters = next(part for part in form if isinstance(part, str))
        sign = characters.replace("{a}", "").replace("{b}", "").replace("{n}", "")
        assert f"{sign}" in text.replace("`A:", ""), sign
