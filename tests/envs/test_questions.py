"""Questions from a file: read, checked, split, and solved by what the checker calls right."""

import json
import time

import pytest

from configs.rl.tiny_questions import QUESTIONS
from ling_jax.envs import InfraError, parse_action
from ling_jax.envs.reasoning import checkers, questions
from ling_jax.envs.sources import TaskSource, check_files, check_tasks, held_out_of, tasks
from ling_jax.rewards import AnswerChecker
from ling_jax.rewards import answer as answer_module

GOOD = {"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def source_of(path, **fields):
    return TaskSource(environment="questions", path=str(path), **fields)


def outcome(task, text):
    return act(task, text).rewards["outcome"]


def act(task, text):
    return questions.step(questions.reset(task, 0), parse_action(text))[1]


def test_every_shipped_question_is_solved_by_its_solution_and_by_its_answer_alone():
    found = questions.read_questions(str(QUESTIONS))
    assert len(found.training) + len(found.held_out) == 64 and found.held_out
    for task in (*found.training, *found.held_out):
        assert outcome(task, questions.solution(task)[0]) == 1
        assert outcome(task, f"so \\boxed{{{task.hidden['answer']}}}") == 1
        assert outcome(task, "#### 0") == outcome(task, task.prompt) == outcome(task, "") == 0


def test_gsm8k_is_read_as_it_is(data):
    source = source_of(data / "gsm8k/train.jsonl")
    check_tasks(source, "tasks[0]")
    held_out = held_out_of(source, 10_000)
    assert source.size + len(held_out) == 7473 and 0.1 < len(held_out) / 7473 < 0.15
    first = min((*tasks(source), *held_out), key=lambda task: task.seed)
    assert first.hidden["answer"] == "72" and first.prompt.startswith("Natalia sold clips")
    assert not {task.prompt for task in tasks(source)} & {task.prompt for task in held_out}
    assert all(map(questions.is_held_out, held_out))


def test_answers_may_stand_alone_and_be_numbers(tmp_path):
    path = write(
        tmp_path / "own.jsonl", *({"question": f"{i}?", "answer": a} for i, a in enumerate((7, 0.5, "\\frac12")))
    )
    found = questions.read_questions(str(path))
    golds = sorted(task.hidden["answer"] for task in (*found.training, *found.held_out))
    assert golds == ["0.5", "7", "\\frac12"]


def test_a_run_keeps_its_questions_and_the_next_one_reads_the_file_again(tmp_path):
    path = write(tmp_path / "own.jsonl", *(GOOD | {"question": f"What is {i} + 2?"} for i in range(9)))
    source = source_of(path)
    check_tasks(source, "tasks[0]")
    first = list(tasks(source))
    write(path, *(GOOD | {"question": f"What is {i} + 3?"} for i in range(20)))
    assert list(tasks(source)) == first
    check_tasks(source, "tasks[0]")
    assert source.size > len(first) and not {task.id for task in tasks(source)} & {task.id for task in first}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "1?"}, "line 2 has no field 'answer'"),
        ({"question": "1?", "anwser": "1"}, "line 2 has no field 'answer', did you mean 'anwser'"),
        ({"question": " ", "answer": "1"}, "line 2: question is ' '; expected text"),
        ({"question": 3, "answer": "1"}, "line 2: question is 3; expected text"),
        ({"question": "1?", "answer": ""}, "line 2: answer is ''; expected the right answer"),
        ({"question": "1?", "answer": "so 1\n####"}, "line 2: answer is .* ends in #### and it"),
        ({"question": "1?", "answer": None}, "line 2: answer is None; expected text, or a number"),
        ({"question": "1?", "answer": True}, "line 2: answer is True; expected text, or a number"),
        ({"question": "1?", "answer": "one\nline more"}, "line 2: answer is .*expected the right answer alone"),
        ({"question": "1?", "answer": "\\frac{1"}, "line 2: answer is .*expected braces that match"),
    ],
)
def test_a_bad_record_is_refused_by_file_line_and_field(tmp_path, record, message):
    path = write(tmp_path / "own.jsonl", GOOD, record)
    with pytest.raises(ValueError, match=message) as error:
        check_tasks(source_of(path), "tasks[0]")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_sources_that_cannot_be_are_refused(tmp_path):
    path = write(tmp_path / "own.jsonl", *(GOOD | {"question": f"What is {i} + 2?"} for i in range(3)))
    for source, message in (
        (TaskSource(environment="questions"), "tasks.0..path is ''; questions needs the file"),
        (
            TaskSource(environment="digit_sums", difficulties=(2,), count=1, path=str(path)),
            "environment .digit_sums., which reads no file; .* set --config.tasks=",
        ),
        (source_of(path, difficulties=(1,)), "the questions of a file have neither"),
        (source_of(path, count=9), "tasks.0..count is 9; .* has . questions to train on"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tasks(source, "tasks[0]")
    absent = source_of(tmp_path / "absent.jsonl")
    check_tasks(absent, "tasks[0]")  # flags may still name another file
    with pytest.raises(FileNotFoundError, match=r"tasks\[0\].path: .*absent.jsonl does not exist; name a file of ques"):
        check_files([absent], "tasks")
    with pytest.raises(ValueError, match="holds no question"):
        check_tasks(source_of(write(tmp_path / "empty.jsonl")), "tasks[0]")


def test_a_check_that_the_machine_failed_breaks_the_episode_and_pays_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(answer_module, "WORKER", tmp_path / "absent.py")
    checker = AnswerChecker()
    monkeypatch.setattr(checkers, "answer_checker", lambda: checker)
    task = questions.read_questions(str(write(tmp_path / "own.jsonl", GOOD | {"answer": "x+1"})))
    (task,) = (*task.training, *task.held_out)
    with pytest.raises(InfraError, match="the answer was not checked"):
        act(task, "\\boxed{1+x}")
    assert outcome(task, "\\boxed{x+1}") == 1


def test_an_answer_that_hides_behind_the_checker_pays_what_a_wrong_one_pays(monkeypatch, tmp_path):
    found = questions.read_questions(str(write(tmp_path / "own.jsonl", GOOD)))
    (task,) = (*found.training, *found.held_out)
    with AnswerChecker(limit=0.5) as checker:
        monkeypatch.setattr(checkers, "answer_checker", lambda: checker)
        hiding = act(task, "\\boxed{10^{10^{10^{10}}}}")
    assert hiding.rewards == {"outcome": 0.0} and hiding.terminated and "took longer than 0.5 s" in hiding.error
    assert outcome(task, "\\boxed{5}") == 0


def test_an_answer_holds_up_decoding_for_about_a_second_at_most(tmp_path):
    found = questions.read_questions(str(write(tmp_path / "own.jsonl", GOOD | {"answer": "x+1"})))
    (task,) = (*found.training, *found.held_out)
    assert outcome(task, "\\boxed{1+x}") == 1, "the worker has started"
    begun = time.monotonic()
    hiding = act(task, "\\boxed{10^{10^{10^{10}}}}")
    assert hiding.error == "took longer than 1 s" and time.monotonic() - begun < 4


def test_an_ended_episode_is_over(tmp_path):
    task = questions.read_questions(str(QUESTIONS)).training[0]
    ended, _ = questions.step(questions.reset(task, 0), parse_action(""))
    with pytest.raises(ValueError, match="the episode has ended"):
        questions.step(ended, parse_action(""))
