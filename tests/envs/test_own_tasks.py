"""Tasks of one's own from JSON lines: prompts or messages, with the checker that each names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.envs import parse_action
from ling_jax.envs.reasoning import questions
from ling_jax.envs.sources import TaskSource, check_tasks, distinct_held_out, held_out_of, tasks

TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}


def write(path, *records, ending="\n"):
    path.write_bytes("".join(json.dumps(record) + ending for record in records).encode())
    return str(path)


def read_one(path, record):
    questions.read_questions.cache_clear()
    found = questions.read_questions(write(path, record))
    (task,) = (*found.training, *found.held_out)
    return task


def outcome(task, text):
    return questions.step(questions.reset(task, 0), parse_action(text, task.tools))[1].rewards["outcome"]


def test_a_path_alone_is_a_source_of_questions(tmp_path):
    path = write(tmp_path / "own.jsonl", *({"prompt": f"Say {i}.", "answer": i} for i in range(40)))
    source = TaskSource(path=path)
    check_tasks(source, "tasks[0]")
    assert source == TaskSource(environment="questions", path=path)
    kept, held_out = list(tasks(source)), held_out_of(source, 99)
    assert len(kept) + len(held_out) == 40 and held_out
    assert all(map(questions.is_held_out, held_out)) and not any(map(questions.is_held_out, kept))


def test_a_prompt_is_asked_as_it_is_and_a_gsm8k_question_with_the_form_of_its_answer(tmp_path):
    own = read_one(tmp_path / "a.jsonl", {"prompt": " Say 4.\n", "answer": 4})
    assert own.messages == [{"role": "user", "content": " Say 4.\n"}] and own.hidden["answer"] == "4"
    theirs = read_one(tmp_path / "b.jsonl", {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"})
    assert theirs.prompt == f"2 + 2?{questions.FORM}" and outcome(theirs, theirs.hidden["solution"]) == 1


def test_messages_and_tools_have_the_forms_of_fine_tuning_data(tmp_path):
    record = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "2 + 2?"},
        ],
        "tools": [TOOL],
        "answer": 4,
    }
    task = read_one(tmp_path / "own.jsonl", record)
    assert task.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert task.tools == [TOOL] and outcome(task, "\\boxed{4}") == 1


@pytest.mark.parametrize(
    ("checker", "answer", "right", "wrong"),
    [
        ("answer", 0.5, ["1/2", "so \\boxed{0.50}", "#### .5"], ["5", "0.5 or 0.6 or 0.7 as \\boxed{0.6}", ""]),
        ("exact", "1/2", ["1/2", " 1/2\n", "<think>0.5</think>1/2", "\\boxed{1/2}"], ["0.5", "1/2.", "<think>1/2", ""]),
        ("contains", "Paris", ["It is Paris.", "Paris"], ["paris", "", "<think>Paris</think>Rome", "<think>Paris"]),
        ("exact", "half of 1\n#### 1/2", ["1/2", "#### 1/2"], ["0.5", "half of 1", ""]),
        ("contains", "The capital.\n#### Paris", ["It is Paris."], ["The capital.", ""]),
        ("none", "ignored", [], ["ignored", ""]),
    ],
)
def test_each_checker_decides_what_is_right(tmp_path, checker, answer, right, wrong):
    task = read_one(tmp_path / "own.jsonl", {"prompt": "?", "answer": answer, "checker": checker})
    assert [outcome(task, text) for text in right] == [1] * len(right)
    assert [outcome(task, text) for text in wrong] == [0] * len(wrong)
    assert outcome(task, questions.solution(task)[0]) == (checker != "none")


def test_other_fields_are_kept_for_rewards_of_ones_own(tmp_path):
    task = read_one(tmp_path / "own.jsonl", {"prompt": "?", "checker": "none", "topic": "rain"})
    assert task.hidden["fields"] == {"topic": "rain"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "b"}, "line 2 has no field 'answer'; found prompt; give the right answer, or .checker.: .none."),
        ({"promt": "b", "answer": 1}, "line 2 has no field 'prompt', did you mean 'promt'"),
        ({"prompt": 3, "answer": 1}, "line 2: prompt is 3; expected text"),
        ({"prompt": " ", "answer": 1}, "line 2: prompt is ' '; expected text"),
        ({"prompt": "\ud800", "answer": 1}, "line 2: prompt holds half a surrogate pair"),
        ({"prompt": "a", "answer": 1}, "line 2: its prompt is that of line 1; leave one of the two out"),
        ({"prompt": "a", "answer": 2}, "line 2: its prompt is that of line 1"),
        ({"prompt": " a\n", "answer": 1}, "line 2: its prompt is that of line 1"),
        ({"question": "a", "answer": 1}, "line 2: its prompt is that of line 1"),
        ({"messages": [{"role": "user", "content": "a "}], "answer": 1}, "line 2: its prompt is that of line 1"),
        ({"prompt": "b", "question": "b", "answer": 2}, "line 2 has prompt and question; expected one of"),
        ({"messages": [], "answer": 2}, "line 2: messages is .*at least one"),
        ({"messages": [{"role": "assistant", "content": "4"}], "answer": 4}, "line 2: messages end with the assistant"),
        (
            {"messages": [{"role": "usr", "content": "4"}], "answer": 4},
            "line 2: messages.0..role is 'usr', did you mean",
        ),
        ({"prompt": "b", "tools": "get", "answer": 4}, "line 2: tools is 'get'; expected a list of objects"),
        ({"prompt": "b", "answer": 4, "checker": "exat"}, "line 2: checker is 'exat', did you mean 'exact'"),
        ({"prompt": "b", "answer": 4, "checker": 7}, "line 2: checker is 7; expected one of answer, exact"),
        ({"prompt": "b", "answer": " ", "checker": "exact"}, "line 2: answer is ' '; expected text"),
        ({"prompt": "b", "answer": None, "checker": "contains"}, "line 2: answer is None; expected text"),
        ({"prompt": "b", "answer": "so 1\n####", "checker": "exact"}, "line 2: answer is .*; expected text"),
        ({"prompt": "b", "answer": "#### 1\n2", "checker": "exact"}, "line 2: answer is .* at the end, on one line"),
        ({"prompt": "b", "answer": [1]}, r"line 2: answer is \[1\]; expected text, or a number"),
    ],
)
def test_a_bad_record_is_refused_by_file_line_and_field(tmp_path, record, message):
    path = write(tmp_path / "own.jsonl", {"prompt": "a", "answer": 1}, record)
    with pytest.raises(ValueError, match=message) as error:
        check_tasks(TaskSource(path=path), "tasks[0]")
    assert path in str(error.value) and "\n" not in str(error.value)


def test_byte_order_marks_crlf_and_blank_lines_are_no_part_of_a_task(tmp_path):
    path = write(tmp_path / "own.jsonl", {"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}, ending="\r\n\r\n")
    plain = questions.read_questions(path)
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "own.jsonl").read_bytes())
    assert questions.read_questions(str(marked)) == plain
    assert sorted(task.seed for task in (*plain.training, *plain.held_out)) == [1, 3], "a task's seed is its line"


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        unique_by=lambda text: " ".join(text.split()),
        max_size=9,
    )
)
def test_any_distinct_prompts_are_tasks_and_keep_their_text(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("own") / "own.jsonl"
    records = [
        {"prompt": prompt, "answer": i} for i, prompt in enumerate(["first", *prompts]) if prompt != "first" or not i
    ]
    found = questions.read_questions(write(path, *records))
    by_line = sorted((*found.training, *found.held_out), key=lambda task: task.seed)
    assert [task.prompt for task in by_line] == [record["prompt"] for record in records]
    assert len({task.id for task in by_line}) == len(records)


@pytest.mark.parametrize("other", [{"prompt": " Say  {}.\n"}, {"question": "Say {}."}])
def test_a_question_is_on_one_side_of_the_split_however_it_is_asked(tmp_path, other):
    """So a file may be evaluated by a model that was trained on another one."""
    ((name, form),) = other.items()
    records = [{"prompt": f"Say {i}.", "answer": i} for i in range(99)]
    asked_otherwise = [{name: form.format(i), "answer": i} for i in range(99)]
    found = questions.read_questions(write(tmp_path / "a.jsonl", *records))
    others = questions.read_questions(write(tmp_path / "b.jsonl", *asked_otherwise))
    assert [task.seed for task in found.held_out] == [task.seed for task in others.held_out] != []


def test_the_same_words_with_other_tools_are_another_question(tmp_path):
    records = [{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2, "tools": [TOOL]}]
    found = questions.read_questions(write(tmp_path / "own.jsonl", *records))
    assert sorted((len(found.training), len(found.held_out))) == [0, 2], "they are on one side of the split"


def test_held_out_tasks_are_counted_where_they_differ():
    few = TaskSource(environment="digit_sums", difficulties=(2,), count=10)
    found = distinct_held_out([few, few], 256)
    assert len(found) == len({task.id for task in found}) == len({task.id for task in held_out_of(few, 256)}) < 256
