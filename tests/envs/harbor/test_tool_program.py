"""The program of tasks with tools: what it takes for a turn, what it logs, and any log has a verdict."""

import json
import shlex
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.envs import environment, parse_action
from ling_jax.envs.harbor import tool_files, tool_program
from ling_jax.envs.harbor.tool_program import MAX_BYTES, MAX_LINES
from tests.helpers.exports import log_of, replayed, unpacked

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def lines(reference):
    """Lines of any JSON, of any words, and of calls of the reference's tools with any arguments."""
    called = [line["call"] for line in map(json.loads, reference.splitlines()) if "call" in line]
    names = st.sampled_from([call["name"] for call in called] or ["see"])
    keys = st.sampled_from(sorted({key for call in called for key in call["arguments"]}) or ["name"])
    calls = st.fixed_dictionaries({"name": names, "arguments": st.dictionaries(keys, VALUES, max_size=3)})
    said = st.fixed_dictionaries({"call": calls}) | st.fixed_dictionaries({"say": st.text(max_size=8)})
    return (VALUES | said).map(lambda line: json.dumps(line).encode() + b"\n")


@pytest.mark.parametrize("name", tool_files.EPISODES)
@settings(max_examples=30)
@given(data=st.data())
def test_any_log_has_a_verdict(name, data):
    """Bytes, lines of any JSON, and calls with any arguments, before and after those of the reference."""
    task = environment(name).make_task(data.draw(st.integers(0, 5)), 2)
    reference = log_of(task, environment(name).solution(task))
    pieces = data.draw(st.lists(lines(reference) | st.binary(max_size=20) | st.just(reference), max_size=4))
    found = replayed(task, b"".join(pieces))
    assert found["outcome"] in (0.0, 1.0) and (reference in pieces or found["outcome"] == 0.0)


@pytest.mark.parametrize(
    ("added", "error"),
    [
        ('{"say": \n', "line 3 is neither a call nor said"),
        ('{"reward": 1}\n', "line 3 is"),
        ('{"say": "A:done", "call": {}}\n', "line 3 is"),
        ('{"call": {"name": "see", "arguments": []}}\n', "line 3 is"),
        ('{"say": "A:done"}', "line 3 is"),
        ('{"say": "confirm?"}\n' * MAX_LINES, f"more than {MAX_LINES} lines"),
        (" " * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
    ],
    ids=["cut off", "another object", "two things", "no arguments", "no end", "many lines", "many bytes"],
)
def test_a_line_that_is_not_the_programs_takes_the_reward(added, error):
    task = environment("service").make_task(0, 1)
    judged = unpacked(tool_files.tests(task)["tools.zip"])
    log = log_of(task, environment("service").solution(task))
    assert tool_program.worth(judged, log)[0]["outcome"] == 1.0
    rewards, why = tool_program.worth(judged, log + added.encode())
    assert rewards["outcome"] == 0.0 and error in why


@pytest.fixture
def played(tmp_path):
    """A folder with the program of a task; `run(*argv)` runs it there."""
    task = environment("service").make_task(0, 1)
    (tmp_path / "tools.zip").write_bytes(tool_files.files(task)["/data/tools.zip"])
    program = tool_files.RUN.format(archive=tmp_path / "tools.zip", function="main", log=tmp_path / "calls.jsonl")
    (tmp_path / "tools.py").write_text(program)

    def run(*argv):
        command = [sys.executable, "-I", "-S", "tools.py", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run, tmp_path / "calls.jsonl"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "expected a name and one argument more, found 0 arguments"),
        (("see", "a", "b"), "found 3 arguments"),
        (("say",), "found 1 arguments"),
        (("see", "name=a"), "'name=a' is no JSON object"),
        (("see", "[1]"), "'[1]' is no JSON object"),
        (("see", '{"name": NaN}'), "is no JSON object"),
    ],
)
def test_a_command_that_is_none_is_no_turn(argv, message, played):
    run, log = played
    ran = run(*argv)
    assert ran.returncode == 1 and message in ran.stderr and "usage: python3 tools.py NAME" in ran.stderr
    assert not log.exists()


def test_the_program_answers_logs_and_ends(played):
    run, log = played
    assert run("see", '{"name": 3}').stdout == (
        '{"error": "see: argument \'name\' is 3; expected a value of type string"}\n'
    )
    assert run("sea").stdout.startswith("{\"error\": \"unknown tool 'sea', did you mean 'see'")
    assert run("say", "A:caf\udce9").stdout == f"{tool_program.LAST}\n"
    ended = run("see", '{"name": "a"}')
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{tool_program.ENDED}\n")
    assert [*map(json.loads, log.read_text().splitlines())] == [
        {"call": {"name": "see", "arguments": {"name": 3}}},
        {"call": {"name": "sea", "arguments": {}}},
        {"say": "A:caf\udce9"},
    ]


def test_a_log_that_is_full_takes_no_more(played):
    run, log = played
    line = '{"say": "confirm?"}\n'
    for text, message in (
        (line * MAX_LINES, f"it has more than {MAX_LINES} lines"),
        (" " * MAX_BYTES, f"it has more than {MAX_BYTES} bytes"),
        ("garbage\n", "line 1 is neither a call nor said"),
    ):
        log.write_text(text)
        assert message in run("see").stderr and log.read_text() == text


def test_programs_at_the_same_time_lose_no_call(played):
    run, log = played
    del run
    command = [sys.executable, "-I", "-S", str(log.parent / "tools.py"), "see", '{"name": "a"}']
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(5)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert len(answers) == 1 and len(log.read_text().splitlines()) == 5


def test_the_commands_of_turns_are_their_calls():
    task = environment("toolkits").make_task(3, 6)
    turns = environment("toolkits").solution(task)
    calls = [call for turn in turns for call in parse_action(turn, task.tools).tool_calls]
    commands = [shlex.split(command) for command in tool_files.commands(task, turns)]
    assert [(name, json.loads(text)) for *_, name, text in commands[:-1]] == [
        (call["name"], call["arguments"]) for call in calls
    ]
    assert commands[-1] == ["python3", "tools.py", "say", turns[-1]]
