"""Tasks of coding environments in files: read as they were written, or refused in one line."""

import json

import pytest

from ling_jax.envs.coding import functions, repositories
from ling_jax.envs.coding.task_files import read_tasks, write_tasks
from tests.helpers.coding_play import rewards_of


def tasks():
    return [functions.make_task(1, 1), functions.make_task(2, 6), repositories.make_task(3, 4)]


def test_tasks_are_read_as_they_were_written(tmp_path):
    write_tasks(tasks(), tmp_path / "tasks.jsonl")
    found = read_tasks(tmp_path / "tasks.jsonl")
    assert [task.id for task in found] == [task.id for task in tasks()]
    assert [task.seed for task in found] == [1, 2, 3]
    assert rewards_of(found[2], repositories.solution(found[2]))["outcome"] == 1


def changed(number, change):
    records = [json.loads(json.dumps({name: getattr(task, name) for name in FIELDS})) for task in tasks()]
    change(records[number])
    return records


FIELDS = ("environment", "difficulty", "seed", "messages", "hidden", "max_tokens", "max_turns", "tools")
WRONG = [
    (0, lambda r: r.pop("hidden"), "line 1 has no field 'hidden'"),
    (0, lambda r: r.pop("messages"), "line 1 has no field 'messages'"),
    (0, lambda r: r.update(seed="1"), "line 1: seed is '1'; expected a value of type int"),
    (0, lambda r: r.update(max_turns=True), "line 1: max_turns is True; expected a value of type int"),
    (0, lambda r: r.update(max_tokens=0), "line 1: max_tokens is 0; expected at least 1"),
    (
        0,
        lambda r: r.update(environment="sums"),
        "line 1: environment is 'sums'; expected one of functions, repositories, workflow",
    ),
    (0, lambda r: r.update(maxturns=1), "line 1 has the unknown field 'maxturns', did you mean 'max_turns'?"),
    (0, lambda r: r.update(id="abc"), "line 1: id is 'abc', and the task's content has"),
    (0, lambda r: r.update(messages=[]), "line 1: messages is []; expected a list of messages"),
    (1, lambda r: r["hidden"].pop("cases"), "hidden has no 'cases'; expected name, cases, solution"),
    (1, lambda r: r["hidden"].update(cases=[]), "hidden.cases is []; expected a list that is not empty"),
    (1, lambda r: r["hidden"]["cases"][2].pop("expected"), "hidden.cases[2] has no 'expected'"),
    (1, lambda r: r["hidden"].update(name="1f"), "hidden.name is '1f'; expected the name of a function"),
    (2, lambda r: r["hidden"].update(files=["a.py"]), "hidden.files is ['a.py']; expected texts by name"),
    (2, lambda r: r["hidden"].update(fail_to_pass=[]), "hidden.fail_to_pass is []; expected a list that is not empty"),
    (2, lambda r: r["hidden"]["fixes"][0].update(path=3), "hidden.fixes[0].path is 3; expected text"),
    (
        2,
        lambda r: r["hidden"]["pass_to_pass"].append("x.T.t"),
        "hidden.pass_to_pass names 'x.T.t'; expected module.Clas",
    ),
]


@pytest.mark.parametrize(("number", "change", "error"), WRONG, ids=[error[:40] for *_, error in WRONG])
def test_what_is_no_task_is_named_in_one_line(tmp_path, number, change, error):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in changed(number, change)))
    with pytest.raises(ValueError, match=r"tasks.jsonl, line") as raised:
        read_tasks(path)
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_a_task_stands_there_once(tmp_path):
    write_tasks([*tasks(), tasks()[0]], tmp_path / "tasks.jsonl")
    with pytest.raises(
        ValueError, match=r"line 4: it has the id \w+, as the task of .*line 1; leave one of the two out"
    ):
        read_tasks(tmp_path / "tasks.jsonl")


def test_an_empty_file_and_one_that_is_no_json_are_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no task"):
        read_tasks(tmp_path / "empty")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_tasks(tmp_path / "text")
