"""What --chat says and reads around a model; tests/launch/test_generate.py has it with one."""

import dataclasses
import io
import json
import sys
import types

import pytest

from launch.chat import banner, chat, example_questions
from ling_jax.align.records import ChatSource
from ling_jax.envs.sources import TaskSource, held_out_of

TUNED = types.SimpleNamespace(is_chat=True)
SUMS = TaskSource(environment="digit_sums", difficulties=(3, 4), count=10)


def write_config(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def test_the_banner_asks_what_the_model_was_trained_on(tmp_path):
    path = write_config(tmp_path, tasks=[dataclasses.asdict(SUMS)], train={"steps": 3})
    (task,) = held_out_of(SUMS, 1)
    assert example_questions(path) == [task.prompt]
    text = banner(TUNED, path)
    assert "trained on tasks such as:" in text and task.prompt in text and "/reset" in text and "/exit" in text


def test_the_first_question_of_ones_own_chats_is_an_example_and_tasks_with_tools_are_none(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is tea?"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    own = ChatSource(path=str(tmp_path / "chats.jsonl"))
    tools = ChatSource(environment="lookup", difficulties=(2,), count=5)
    path = write_config(tmp_path, sources=[dataclasses.asdict(source) for source in (tools, own)])
    assert example_questions(path) == ["What is tea?"]


def test_a_model_that_is_no_run_has_no_examples(tmp_path):
    assert example_questions(str(tmp_path)) == []
    moved = dataclasses.asdict(ChatSource(path=str(tmp_path / "moved.jsonl")))
    assert example_questions(write_config(tmp_path, sources=[moved])) == []
    assert "It is a base model" in banner(types.SimpleNamespace(is_chat=False), str(tmp_path))


@pytest.fixture
def talk(monkeypatch, tmp_path):
    """The conversations that a model gets which answers "ok", and refuses what is longer than five messages."""

    def run(lines: bytes):
        asked = []

        def answer(messages):
            if len(messages) > 5:
                raise ValueError("the prompt passes the context")
            asked.append([message["content"] for message in messages])
            return {"role": "assistant", "content": "ok"}

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="ascii"))
        chat(TUNED, str(tmp_path), answer)
        return asked

    return run


def test_reset_begins_anew_and_exit_ends(talk):
    assert talk(b"a\n\nb\n/reset\nc\n/exit\nd\n") == [["a"], ["a", "ok", "b"], ["c"]]


def test_a_line_that_is_refused_is_left_out_and_the_conversation_continues(talk, capsys):
    asked = talk("a\n\ud800\né\nc\nd\n/quit\n/reset\ne".encode("utf-8", "surrogatepass") + b"\n\xff\n")
    assert asked == [["a"], ["a", "ok", "é"], ["a", "ok", "é", "ok", "c"], ["e"]]
    said = capsys.readouterr().err
    assert "passes the context; shorten the line, or begin a new conversation with /reset" in said
    assert "no such command: /quit; /reset begins" in said and said.count("expected whole characters") == 2
