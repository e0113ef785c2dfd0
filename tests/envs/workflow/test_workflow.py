"""Pipelines: each step's output is judged, scripts that stop can be mended, and nothing else is worth anything."""

import dataclasses
import json

import pytest

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import environment
from ling_jax.envs.workflow.environment import LEVELS, make_task, solution
from ling_jax.envs.workflow.outputs import what_is_wrong
from tests.helpers.coding_play import play, rewards_of
from tests.helpers.sandboxes import sandbox_or_skip

DONE = render_call({"name": "task_done", "arguments": {}}, "xml")
OUTPUT = {"path": "o.json", "columns": ["a", "b"], "rows": [["x", 1], ["y", 23]]}
ROWS = [{"a": "x", "b": 1}, {"a": "y", "b": 23}]


def bash(command):
    return render_call({"name": "execute_bash", "arguments": {"command": command}}, "xml")


@pytest.fixture(scope="module", autouse=True)
def boxes():
    sandbox_or_skip("T3")


@pytest.mark.parametrize("difficulty", environment("workflow").DIFFICULTIES)
def test_the_reference_writes_what_the_steps_compute_and_doing_nothing_or_copying_does_not(difficulty):
    env = environment("workflow")
    for seed in range(2):
        task = make_task(seed, difficulty)
        assert rewards_of(task, solution(task)) == {"outcome": 1.0, "steps": 1.0, "suspicious": 0.0}
        assert rewards_of(task, env.null_solution(task))["outcome"] == 0
        assert rewards_of(task, env.copy_solution(task))["outcome"] == 0


def test_a_script_that_stops_is_mended_and_run_again():
    """What the agent reads between its turns is the reason why the script stopped."""
    tasks = [make_task(seed, 6) for seed in range(8)]
    for task in tasks:
        (fault,) = task.hidden["faults"].values()
        turns = solution(task)
        at = next(i for i, turn in enumerate(turns) if fault["path"] in turn)
        first, mended, again = play(task, turns)[at : at + 3]
        assert "exit code 1" in first.observation[0]["content"] and "Error" in first.observation[0]["content"]
        assert "was written" in mended.observation[0]["content"] and again.observation[0]["content"] == "no output"
    kinds = {fault["replace"] for task in tasks for fault in task.hidden["faults"].values()}
    assert any("." in kind for kind in kinds) and any("." not in kind for kind in kinds)  # wrong paths, wrong columns


def test_each_step_is_judged_alone():
    """Of four steps that need each other, the one that is spoilt at the end is the one that is wrong."""
    task = make_task(5, 7)
    for number, output in enumerate(task.hidden["outputs"], 1):
        turns = [*solution(task)[:-1], bash(f"echo >> {output['path']}; echo 1 >> {output['path']}"), DONE]
        last = play(task, turns)[-1]
        assert last.rewards["steps"] == pytest.approx(1 - 1 / len(task.hidden["outputs"]))
        assert last.rewards["outcome"] == 0 and last.error.startswith(f"step {number}: {output['path']}")


@pytest.mark.parametrize(
    ("path", "content", "wrong"),
    [
        ("o.json", json.dumps(ROWS), ""),
        ("o.json", json.dumps([dict(reversed(row.items())) for row in ROWS], indent=3), ""),
        ("o.json", json.dumps([{"a": "x", "b": "1"}, ROWS[1]]), "row 1 is not"),
        ("o.json", json.dumps([{"a": "x", "b": True}, ROWS[1]]), "row 1 is not"),
        ("o.json", json.dumps([{"a": "x", "b": 1.0}, ROWS[1]]), "row 1 is not"),
        ("o.json", json.dumps(ROWS[::-1]), "row 1 is not"),
        ("o.json", json.dumps([*ROWS, ROWS[0]]), "has 3 rows; expected 2"),
        ("o.json", json.dumps([{**row, "c": 1} for row in ROWS]), "no objects of a, b"),
        ("o.json", json.dumps({"rows": ROWS}), "no objects"),
        ("o.json", "[" * 100_000, "cannot be read"),
        ("o.json", "1" * 10_000, "cannot be read"),
        ("o.json", "", "cannot be read"),
        ("o.jsonl", "\n".join(map(json.dumps, ROWS)), ""),
        ("o.jsonl", "\n\n".join(map(json.dumps, ROWS)) + "\n\n", ""),
        ("o.jsonl", json.dumps(ROWS), "no objects"),
        ("o.csv", "a,b\nx,1\ny,23\n", ""),
        ("o.csv", 'a,b\r\n"x",1\r\ny,"23"', ""),
        ("o.csv", "a,b\nx,1.0\ny,23\n", "row 1 is not"),
        ("o.csv", "a,b\nx,1,\ny,23\n", "row 1 is not"),
        ("o.csv", "b,a\n1,x\n23,y\n", "the header is b,a; expected a,b"),
        ("o.csv", "x,1\ny,23\n", "the header is x,1"),
        ("o.csv", 'a,b\n"x', "cannot be read"),
        ("o.csv", "", "the header is missing"),
        ("o", "x 1\ny  23\n", ""),
        ("o", "x 1\ny 24\n", "row 2 is not"),
    ],
)
def test_a_file_is_compared_by_its_values_and_their_types(path, content, wrong):
    found = what_is_wrong({**OUTPUT, "path": path}, content.encode())
    assert wrong in found if wrong else found == ""


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_wrong():
    assert "cannot be read" in what_is_wrong(OUTPUT, b"\xff\xfe")
    assert what_is_wrong(OUTPUT, None) == "o.json is not there"


@pytest.mark.parametrize(
    "command",
    [
        "mkdir {path}",
        "ln -sf /etc/passwd {path}",
        "mkfifo {path}",
        "head -c 3000000 /dev/zero > {path}",
        "cat /dev/zero > {path}",
        "rm -rf --no-preserve-root / 2>/dev/null",
        "kill -9 -1; kill -9 $PPID",
        "while :; do :; done & echo '[]' > {path}",
    ],
)
def test_what_a_policy_leaves_there_is_wrong_and_breaks_nothing(command):
    task = make_task(3, 2)
    path = task.hidden["outputs"][0]["path"]
    assert rewards_of(task, [bash(command.format(path=path)), DONE])["outcome"] == 0
    assert rewards_of(task, solution(task))["outcome"] == 1


@pytest.mark.parametrize("said", ["", "awk", "awk '$1>0' d>p", "rm d", "echo \0", "\ud800", "cat d > o", "sleep 99 &"])
def test_a_task_of_one_command_is_wrong_by_any_other(said):
    assert rewards_of(make_task(4, 1), [said])["outcome"] == 0


def test_a_command_between_marks_counts_as_well():
    task = make_task(4, 1)
    assert rewards_of(task, [f"Like this:\n```bash\n{solution(task)[0]}\n```"])["outcome"] == 1


def test_no_output_is_given_by_the_request_or_a_file():
    for seed in range(40):
        for difficulty in LEVELS:
            task = make_task(seed, difficulty)
            for output in task.hidden["outputs"]:
                for path, text in task.hidden["files"].items():
                    assert what_is_wrong(output, text.encode()), (seed, difficulty, path)
                    assert what_is_wrong({**output, "path": path}, text.encode()), (seed, difficulty, path)
                assert what_is_wrong(output, task.prompt.encode())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda hidden: hidden.pop("files"), "hidden has no 'files'; expected files, outputs"),
        (lambda hidden: hidden.update(outputs=[]), "hidden.outputs is []; expected a list that is not empty"),
        (lambda hidden: hidden.update(files={"a": 3}), "hidden.files is {'a': 3}; expected texts by name"),
        (lambda hidden: hidden["outputs"][0].pop("path"), "outputs[0] has no 'path'"),
        (lambda hidden: hidden["outputs"][0].update(rows=[3]), "outputs[0].rows holds 3; expected lists of values"),
    ],
)
def test_a_task_that_is_none_is_refused_by_its_field(change, error):
    task = make_task(0, 2)
    hidden = json.loads(json.dumps(task.hidden))
    change(hidden)
    with pytest.raises(ValueError, match=r"task \w+: hidden") as raised:
        play(dataclasses.replace(task, hidden=hidden), [DONE])
    assert error in str(raised.value)
