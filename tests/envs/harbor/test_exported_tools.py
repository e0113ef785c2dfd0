"""Tasks with tools as directories: a program answers, its log is judged, and neither gives more than it has to."""

import itertools
import json
import shutil

import pytest

from ling_jax.envs import environment
from ling_jax.envs.harbor import tool_files, tool_program
from ling_jax.envs.harbor.environment import solution
from ling_jax.envs.harbor.export import export_tasks
from ling_jax.envs.tools.catalogue import TOOLS
from ling_jax.envs.tools.tools_episode import TOOLS as FIRST_TOOLS
from tests.helpers.exports import DONE, bash, exported, log_of, noisy, replayed, results, rewards, unpacked
from tests.helpers.sandboxes import sandbox_or_skip

FAMILIES = tuple(tool_files.EPISODES)
SECRET = ("goal", "calls", "turns", "answer", "aliases", "evidence", "injected", "benign", "sort", "universe")
each = pytest.mark.parametrize("name", FAMILIES)


def tasks_of(name, count):
    """Tasks of all difficulties, one after the other; of searches of those that are quickly made."""
    known = environment(name).DIFFICULTIES[:8] if name == "search" else environment(name).DIFFICULTIES
    numbered = enumerate(itertools.islice(itertools.cycle(known), count))
    return [environment(name).make_task(seed, difficulty) for seed, difficulty in numbered]


def check_replays(tasks):
    """The reference, nothing, the copied prompt and noisy turns are worth what they are in the own environment."""
    differ = 0
    for task in tasks:
        turns = environment(task.environment).solution(task)
        assert replayed(task, log_of(task, turns)) == (native := rewards(task, turns)) and native["outcome"] == 1.0
        assert replayed(task, b"")["outcome"] == replayed(task, log_of(task, [task.prompt]))["outcome"] == 0.0
        turns = noisy(task, task.seed, rate=0.3 if len(turns) < 12 else 0.1)
        played = results(task, turns)  # up to the end, or to the last turn that the task allows
        wanted = played[-1].rewards if played else {}
        found = replayed(task, log_of(task, turns[: len(played)]))
        assert found == wanted if wanted else found["outcome"] == 0.0 or task.environment == "tools"
        differ += found["outcome"] == 0.0
    return differ


@each
def test_a_log_is_worth_what_its_turns_are_in_their_own_environment(name):
    assert 0 < check_replays(tasks_of(name, 12)) < 12, "some noisy turns are right, some wrong"


@pytest.mark.slow
@each
def test_two_hundred_logs_are_worth_what_their_turns_are(name):
    known = environment(name).DIFFICULTIES
    wrong = check_replays([environment(name).make_task(seed, known[seed % len(known)]) for seed in range(200)])
    assert 20 < wrong < 200


def test_references_solve_the_directories_with_the_rewards_of_their_own_environments(tmp_path):
    """Played with commands in a box."""
    sandbox_or_skip("T3")
    tasks = [environment(name).make_task(1, 1 + 2 * (number % 2)) for number, name in enumerate(FAMILIES)]
    for ours, theirs in zip(tasks, exported(tasks, tmp_path / "out"), strict=True):
        native = rewards(ours, environment(ours.environment).solution(ours))
        assert rewards(theirs, solution(theirs)) == {**native, "suspicious": 0.0}


@pytest.mark.slow
@each
def test_thirty_directories_have_the_same_verdicts(name, tmp_path):
    sandbox_or_skip("T3")
    known = environment(name).DIFFICULTIES
    tasks = [environment(name).make_task(seed, known[seed % len(known)]) for seed in range(30)]
    for ours, theirs in zip(tasks, exported(tasks, tmp_path / "out"), strict=True):
        assert rewards(theirs, solution(theirs))["outcome"] == 1.0
        assert rewards(theirs, (DONE,))["outcome"] == 0.0
        turns = noisy(ours, 1, rate=0.3)
        found = rewards(theirs, bash(*tool_files.commands(ours, turns), "true"))
        assert found == {**replayed(ours, log_of(ours, turns)), "suspicious": 0.0}


@each
def test_the_program_says_what_the_environment_says(name):
    """Call by call, of the reference and of turns with mistakes."""
    for task in tasks_of(name, 6):
        shown = unpacked(tool_files.files(task)["/data/tools.zip"])
        for turns in (environment(name).solution(task), noisy(task, 2, rate=0.3)):
            wanted = [message for result in results(task, turns) for message in result.observation]
            episode, said = tool_program.replay(shown, []), []
            for line in map(json.loads, log_of(task, turns).splitlines()):
                if not episode.ended:
                    episode, messages = tool_program.take(shown, episode, line)
                    said += messages
            assert said[: len(wanted)] == wanted


def keys_of(value):
    """All names of objects within a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {*(value if isinstance(value, dict) else ())}.union(*map(keys_of, inner))


@each
def test_the_environment_holds_neither_goal_nor_answer(name, tmp_path):
    tasks = tasks_of(name, 8)
    for task, path in zip(tasks, export_tasks(tasks, tmp_path / "out"), strict=True):
        files = {file.name: file.read_bytes() for file in (path / "environment").rglob("*") if file.is_file()}
        assert set(files) == {"Dockerfile", "tools.py", "tools.zip"}
        shown = unpacked(files["tools.zip"])["hidden"]
        assert not keys_of(shown) & set(SECRET) and not shown.get("rules") and not shown.get("caller")
        assert set(SECRET) & keys_of(unpacked((path / "tests" / "tools.zip").read_bytes())["hidden"])
        if isinstance(goal := task.hidden.get("goal"), str):
            assert goal not in json.dumps(shown)


@each
def test_what_only_tools_say_stands_in_no_file_as_text(name, tmp_path):
    """Nobody comes upon it by a search through the files, nor through what is unpacked from them."""
    *_, task = tasks_of(name, 5)
    (path,) = export_tasks([task], tmp_path / "out")
    shutil.unpack_archive(path / "environment" / "data" / "tools.zip", path / "environment" / "unpacked")
    files = (path / "instruction.md", *(path / "environment").rglob("*"))
    seen = b"".join(file.read_bytes() for file in files if file.is_file())
    played = results(task, environment(name).solution(task))
    said = [message["content"] for result in played for message in result.observation]
    values = [text for text in said if len(text) > 8]
    assert said and not [text for text in values if text.encode() in seen]


@each
def test_the_instruction_has_the_request_the_rules_and_every_tool(name, tmp_path):
    for task in tasks_of(name, 3):
        (path,) = export_tasks([task], tmp_path / str(task.difficulty))
        text = (path / "instruction.md").read_text()
        assert all(message["content"] in text for message in task.messages)
        offered = [schema["function"]["name"] for schema in task.tools] or task.hidden.get("offered", [])
        assert all(f"- `{tool}`: " in text for tool in offered) and "python3 tools.py" in text


def test_no_tool_is_called_like_the_word_for_speaking():
    assert tool_program.SAY not in {*TOOLS, *FIRST_TOOLS}


FORGED = {
    "garbage": "head -c 5000 /dev/urandom > calls.jsonl",
    "too many bytes": "head -c 3000000 /dev/zero | tr '\\0' ' ' >> calls.jsonl",
    "deep": "python3 -c 'print(\"[\" * 100000)' >> calls.jsonl",
    "a link": "mv calls.jsonl real; ln -s real calls.jsonl",
    "a folder": "rm calls.jsonl; mkdir calls.jsonl",
    "unknown calls": 'echo \'{"call": {"name": "win", "arguments": {}}}\' > calls.jsonl',
    "edited": "sed -i 's/A:[a-z0-9,]*/A:1234567/' calls.jsonl",
    "a program of its own": "rm calls.jsonl; echo 'print(1)' > tools.py; cp tools.py /data/tools.zip; python3 tools.py",
}


@pytest.mark.parametrize("forgery", FORGED.values(), ids=FORGED)
def test_a_forged_log_has_outcome_0_and_breaks_nothing(forgery, tmp_path):
    """After the log that the reference leaves."""
    sandbox_or_skip("T3")
    ours = environment("service").make_task(0, 1)
    (theirs,) = exported([ours], tmp_path / "out")
    log = log_of(ours, environment("service").solution(ours)).decode()
    found = rewards(theirs, bash(f"cat > calls.jsonl <<'END'\n{log}END", forgery))
    assert found["outcome"] == 0.0 and "verifier_failed" not in found
