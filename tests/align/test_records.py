"""Conversations out of files and out of environments."""

import json
import shutil

import pytest

from ling_jax.align.records import (
    ChatSource,
    check_files,
    check_source,
    converse,
    digest,
    records,
    texts,
    write_records,
)
from ling_jax.data import JsonLines, documents
from ling_jax.envs import HELD_OUT_SEEDS, environment
from tests.helpers.faults import ROOT
from tests.helpers.sandboxes import sandbox_or_skip


def test_an_environment_gives_conversations_that_solve_its_tasks():
    source = ChatSource(environment="tools", difficulties=(1, 3), count=4, seed=7)
    found = [record for _, record in records(source)]
    assert [(record["seed"], record["difficulty"]) for record in found] == [(7, 1), (8, 3), (9, 1), (10, 3)]
    for record in found:
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["system", "user", *["assistant", "tool"] * record["difficulty"], "assistant"]
        assert record["tools"] and "error" not in json.loads(record["messages"][3]["content"])


def test_a_folder_of_tasks_gives_conversations_that_solve_them(tmp_path):
    """Its own solutions, in a box; the tokens are made anew where the folder has another content."""
    sandbox_or_skip("T3")
    shutil.copytree(ROOT / "tests/fixtures/harbor", tmp_path / "tasks")
    source = ChatSource(environment="harbor", path=str(tmp_path / "tasks"))
    check_source(source, "sources[0]")
    found, before = [record for _, record in records(source)], digest(source)
    assert found and all(record["environment"] == "harbor" for record in found)
    assert found[0]["messages"][-1]["tool_calls"] == [{"name": "task_done", "arguments": {}}]
    (tmp_path / "tasks" / "greeting" / "instruction.md").write_text("Write greeting.txt: Hello, Ada!")
    check_source(source, "sources[0]")
    assert digest(source) != before


def test_options_of_the_solution_pass_through():
    source = ChatSource(environment="running_sums", difficulties=(3,), count=30, solution={"redundancy": 0.7})
    said = [record["messages"][-1]["content"] for _, record in records(source)]
    assert sum(text.count("c") for text in said) > 60  # 3 · 0.7 / 0.3 = 7 a task in the mean
    plain = ChatSource(environment="running_sums", difficulties=(3,), count=30)
    assert digest(plain) != digest(source) and not any("c" in r["messages"][-1]["content"] for _, r in records(plain))


def test_a_conversation_is_worth_nothing_unless_its_last_turn_ends_it():
    task = environment("tools").make_task(0, 2)
    turns = environment("tools").solution(task)
    assert converse(task, turns)[1] == 1
    assert converse(task, turns[:-1])[1] == 0
    assert converse(task, [*turns, "And?"])[1] == 0
    assert converse(task, [turns[0], turns[-1]])[1] == 0


def test_what_is_written_is_read_again(tmp_path):
    source = ChatSource(environment="running_sums", difficulties=(2,), count=5)
    found = [record for _, record in records(source)]
    assert write_records(found, tmp_path / "chats.jsonl") == 5
    again = list(records(ChatSource(path=str(tmp_path))))
    assert [record for _, record in again] == found
    assert again[2][0] == f"{tmp_path / 'chats.jsonl'}, line 3"
    write_records(texts(found), tmp_path / "texts.jsonl")
    read = list(documents(JsonLines(str(tmp_path / "texts.jsonl"))))
    assert read == ["\n".join(message["content"] for message in record["messages"]) for record in found]


def test_a_file_of_records_is_whole_or_not_there(tmp_path):
    def interrupted():
        yield {"messages": []}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_records(interrupted(), tmp_path / "chats.jsonl")
    assert not list(tmp_path.iterdir())


SUMS = dict(environment="running_sums", difficulties=(2,), count=5)
BAD = [
    (dict(path="x", **SUMS), "name one of path"),
    (dict(), "name one of path"),
    (SUMS | {"environment": "running_sum"}, "environment is 'running_sum', did you mean 'running_sums'"),
    (SUMS | {"difficulties": (2, 99)}, r"difficulties is \[2, 99\]; running_sums has 1 to 15"),
    (SUMS | {"difficulties": ()}, r"difficulties is \[\]"),
    (SUMS | {"count": 0}, "count is 0"),
    (SUMS | {"seed": HELD_OUT_SEEDS}, "make held-out tasks"),
    (SUMS | {"solution": {"redundacy": 0.5}}, "unknown option 'redundacy', did you mean 'redundancy'"),
    (SUMS | {"solution": {"redundancy": 1.0}}, "redundancy is 1.0"),
    (SUMS | {"weight": 0.0}, "weight is 0.0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_source_that_cannot_be_read_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        check_source(ChatSource(**fields), "sources[0]")


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        check_files([ChatSource(path="nowhere")])
