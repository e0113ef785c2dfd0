"""An agent's calls in a real box: what it reads, and what is wrong with a call."""

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.coding import workspace
from ling_jax.envs.coding.workspace import act, act_turn, capped
from ling_jax.sandbox import Limits, shared

FILES = {"a.txt": b"one two one\n", "b/c.py": b"x = 1\n", "raw.bin": b"\xff\xfe\0"}


@pytest.fixture
def box():
    with shared().open(FILES, Limits(seconds=2.0, disk_bytes=4 << 20)) as opened:
        yield opened


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def bash(box, command, **options):
    return act(box, call("execute_bash", command=command), **options).observation


def replace(box, path, search, replacement):
    return act(box, call("search_replace", path=path, search=search, replace=replacement))


def test_a_command_runs_in_the_work_folder_and_is_seen_whole(box):
    assert bash(box, "cat a.txt") == "one two one"
    assert bash(box, "cd b; ls; echo bad >&2; exit 3") == "exit code 3\nc.py\nbad"
    assert bash(box, "true") == "no output"


def test_files_stay_from_command_to_command_and_processes_do_not(box):
    assert bash(box, "echo 1 > new; sleep 60 & echo started") == "started"
    assert bash(box, "cat new; ps aux | grep -c '[s]leep 60'") == "exit code 1\n1\n0"


def test_a_command_that_takes_too_long_is_stopped(box):
    assert bash(box, "echo begun; sleep 60") == "stopped after 2 s\nbegun"
    assert bash(box, "sleep 60", seconds=0.3) == "stopped after 0 s"


def test_long_output_has_a_head_and_a_tail(box):
    said = bash(box, "for i in $(seq 9999); do echo line $i; done", max_chars=200)
    assert len(said) < 260 and said.startswith("line 1\n") and said.endswith("line 9999") and "left out" in said
    assert capped("abcdef", 6) == "abcdef" and capped("abcdefgh", 4) == "ab\n[4 characters left out]\ngh"


def test_output_that_is_no_text_is_shown_as_far_as_it_is(box):
    assert bash(box, "head -c 3 raw.bin; echo end") == "\ufffd\ufffd\0end"


def test_the_same_command_says_the_same_again(box):
    box.write({"tests/__init__.py": b"", "tests/test_a.py": b"import unittest\nclass A(unittest.TestCase):\n"
               b"    def test(self): self.assertEqual(object(), {'a', 'b', 'c'})\n"})  # fmt: skip
    said = {bash(box, "python3 -m unittest") for _ in range(4)}
    assert len(said) == 1 and "Ran 1 test in ...s" in next(iter(said))


def test_a_text_that_is_there_once_is_replaced(box):
    assert replace(box, "b/c.py", "x = 1", "x = 2").observation == "b/c.py was written"
    assert replace(box, "/work/b/c.py", "x = 2", "x = 3").error is None
    assert box.read("b/c.py") == b"x = 3\n"
    assert replace(box, "d/new.py", "", "y = 1\n").error is None and box.read("d/new.py") == b"y = 1\n"


@pytest.mark.parametrize(
    ("path", "search", "error"),
    [
        ("a.txt", "one", "search stands 2 times in a.txt; expected once"),
        ("a.txt", "three", "search stands 0 times in a.txt; expected once"),
        ("a.txt", "", "a.txt is there already; an empty search makes a new file"),
        ("none.txt", "x", "there is no file none.txt; an empty search makes one"),
        ("raw.bin", "x", "raw.bin is not text in UTF-8"),
        ("../../etc/passwd", "root", "there is no file ../../etc/passwd"),
        ("../new", "", "'../new' is no path of a file below the box's folder"),
        ("/etc/passwd", "root", "there is no file /etc/passwd"),
        ("b", "", "'b' is in the box, and is no regular file"),
        ("a" * 5000, "", "File name too long"),
        ("a.txt/b", "", "File exists"),
        ("", "", "'' is no path of a file"),
    ],
)
def test_an_edit_that_cannot_be_made_says_why_and_changes_nothing(box, path, search, error):
    acted = replace(box, path, search, "new")
    assert error in acted.error and acted.observation == f"error: {acted.error}" and "\n" not in acted.error
    assert box.files() == FILES


def test_links_are_not_followed_out(box):
    bash(box, "ln -s /etc/hostname out; ln -s . loop; mkfifo pipe")
    assert replace(box, "out", "a", "b").error and replace(box, "out", "", "b").error
    assert replace(box, "pipe", "", "b").error
    assert replace(box, "loop/loop/a.txt", "two", "2").error is None


def test_a_full_disk_is_the_agents_own_trouble(box):
    bash(box, "head -c 100M /dev/zero > big")
    acted = replace(box, "new.py", "", "x = 1\n" * 10000)
    assert acted.error and "space" in acted.error
    assert "no output" in bash(box, "rm big") and replace(box, "later.py", "", "x = 1\n").error is None


WRONG = [
    (call("run", command="ls"), "unknown tool run; there are execute_bash, search_replace, task_done"),
    (call("execute_bsh", command="ls"), "unknown tool execute_bsh, did you mean 'execute_bash'?"),
    (call("execute_bash"), "execute_bash: argument 'command' is missing"),
    (
        call("execute_bash", command=["ls"]),
        "execute_bash: argument 'command' is ['ls']; expected a value of type string",
    ),
    (call("execute_bash", command="ls", cwd="/"), "execute_bash: unknown argument 'cwd'"),
    (call("execute_bash", command="a" * (1 << 20)), "execute_bash: the command has more than 65536 bytes"),
    (call("execute_bash", command="a\0b"), "execute_bash: argument 'command' holds a NUL character"),
    (call("execute_bash", command="\ud800"), "execute_bash: argument 'command' holds half a surrogate pair"),
    (call("search_replace", path="a", search=1, replace=""), "search_replace: argument 'search' is 1; expected"),
    (call("search_replace", path="big", search="", replace="a" * (2 << 20)), "big would have 2097152 bytes; at most"),
    (call("task_done", well=True), "task_done: unknown argument 'well'"),
]


@pytest.mark.parametrize(("wrong", "error"), WRONG, ids=[error[:40] for _, error in WRONG])
def test_a_wrong_call_is_an_observation_of_one_line(box, wrong, error):
    acted = act(box, wrong)
    assert error in acted.error and acted.observation == f"error: {acted.error}" and not acted.done
    assert "\n" not in acted.observation and len(acted.observation) < 500


def turn(box, *calls, text=""):
    return act_turn(box, parse_action(text + "".join(render_call(each, "xml") for each in calls), workspace.TOOLS))


def test_the_calls_of_a_turn_are_carried_out_in_order_up_to_the_last_word(box):
    found = turn(box, call("execute_bash", command="echo 1"), call("task_done"), call("execute_bash", command="echo 2"))
    assert [message["content"] for message in found.observation] == ["1"] and found.done and not found.errors


def test_a_turn_without_a_call_reads_what_to_call(box):
    found = turn(box, text="I am done.")
    assert not found.done and found.errors == (workspace.NO_CALL,)
    assert [message["content"] for message in found.observation] == [workspace.NO_CALL]


def test_a_malformed_call_is_an_observation_beside_those_of_the_others(box):
    found = turn(box, call("execute_bash", command="echo 1"), text="<tool_call>broken")
    assert [message["content"] for message in found.observation] == [
        "error: unclosed_tool_call: write each call as the system message says", "1"
    ]  # fmt: skip


def test_a_turn_has_so_many_calls_and_so_much_time(box, monkeypatch):
    many = turn(box, *[call("execute_bash", command="echo 1")] * 50)
    assert len(many.observation) == workspace.MAX_CALLS + 1 and "only the first 8 calls" in many.errors[0]
    monkeypatch.setattr(workspace, "TURN_SECONDS", 0.5)
    slow = turn(box, *[call("execute_bash", command="sleep 9")] * 3)
    assert len(slow.observation) == 2 and "the calls of a turn have 0.5 s together" in slow.errors[0]


def test_tools_are_schemas_of_openai():
    for tool in workspace.TOOLS:
        assert tool["type"] == "function" and set(tool["function"]) == {"name", "description", "parameters"}
        assert tool["function"]["parameters"]["required"] == list(tool["function"]["parameters"]["properties"])
