"""Episodes that programs play: real processes, a real server, a tiny random model."""

import json
import os

import numpy as np
import pytest

from ling_jax.envs import environment
from ling_jax.rl.collector import play
from ling_jax.rl.failures import TooManyFailures
from ling_jax.serve.errors import ApiError
from ling_jax.serve.rule import Rule
from tests.helpers.agents import agent_collector, options_of, write_agent
from tests.helpers.rl_run import MODEL
from tests.helpers.tiny import random_params
from tests.helpers.tiny_collector import SLOTS, begin, tiny_collector

ANSWERS = "print(ask()['content'])"
TWICE = """
first = ask()
more = [*messages, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": "more"}]
"""


def played(tmp_path, lines: str, *, count: int = 4, seconds: float = 60.0, temperature: float = 1.0, **options):
    """The episodes that a program of these lines has played, by id."""
    command = write_agent(tmp_path, lines)
    options = options_of(command, workdir=tmp_path, **options)
    with agent_collector(options, session_seconds=seconds, temperature=temperature) as collector:
        found = sorted(play(collector, begin(count)), key=lambda episode: episode.id)
        assert collector.ids == set()
    return found


def errors_in(folder) -> list[dict]:
    path = folder / "errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_likeliest_answer_is_that_of_a_collector_without_an_agent(tmp_path):
    """Token for token, with its log-probs and rewards."""
    theirs = played(tmp_path, "print(ask(max_tokens=1000)['content'])", temperature=0.0)
    with tiny_collector(temperature=0.0) as collector:
        ours = sorted(play(collector, begin(4)), key=lambda episode: episode.id)
    for one, other in zip(theirs, ours, strict=True):
        if other.trajectory.status == "finished":  # a limit that cuts an answer off ends no program
            assert one.trajectory.to_json() == other.trajectory.to_json()
            assert one.rewards == other.rewards
        assert one.trajectory.completion_ids.tolist() == other.trajectory.completion_ids.tolist()


def test_answers_follow_from_the_seed_of_the_episode_whatever_the_program_asks(tmp_path):
    first = played(tmp_path, ANSWERS)
    again = played(tmp_path, "print(ask(temperature=0, top_k=1, top_p=0.1, seed=3, min_p=0.5)['content'])")
    assert [e.trajectory.to_json() for e in first] == [e.trajectory.to_json() for e in again]
    assert len({tuple(e.trajectory.completion_ids) for e in first}) > 1


def test_a_task_is_given_without_what_is_hidden(tmp_path):
    (episode,) = played(tmp_path, "ask(); print(json.dumps(task))", count=1)
    task = json.loads(episode.turns[-1])
    assert task.keys() == {"messages", "tools", "seed", "difficulty"}
    assert task["messages"] == list(episode.task.messages) and task["seed"] == episode.task.seed


def test_what_is_printed_is_judged(tmp_path):
    task = begin(1)[0].task
    (solution,) = environment(task.environment).solution(task)
    (right,) = played(tmp_path, f"ask(); print({solution!r})", count=1)
    assert right.trajectory.status == "finished" and right.outcome == 1 and right.turns[-1] == solution
    (wrong,) = played(tmp_path, "ask(); print('no')", count=1)
    assert wrong.trajectory.status == "finished" and wrong.outcome == 0


def test_a_program_that_prints_nothing_has_answered_with_nothing(tmp_path):
    (episode,) = played(tmp_path, "ask()", count=1)
    assert (episode.trajectory.status, episode.outcome, episode.failed) == ("finished", 0.0, False)


def test_a_program_that_ends_badly_before_an_answer_has_failed(tmp_path):
    (episode,) = played(tmp_path, "raise KeyError('tools')", count=1)
    assert episode.trajectory.status == "env_failed" and episode.drawn == 0
    assert "exit code 1" in episode.error and "KeyError: 'tools'" in episode.error


def test_a_program_that_ends_badly_behind_an_answer_counts_as_not_solved(tmp_path):
    """Whether the policy is to blame or not: to be answered with a crash must not pay."""
    (episode,) = played(tmp_path, "ask(); raise KeyError('tools')", count=1)
    assert (episode.trajectory.status, episode.outcome, episode.failed) == ("truncated", 0.0, False)
    assert episode.drawn and "KeyError: 'tools'" in episode.error
    (line,) = errors_in(tmp_path)
    assert line["part"] == "agent" and line["rollout"] == episode.id and "KeyError: 'tools'" in line["error"]


@pytest.mark.parametrize(("before", "status"), [("", "env_failed"), ("ask(); ", "truncated")])
def test_a_program_that_hangs_is_killed(tmp_path, before, status):
    lines = f"{before}print('I wait', file=sys.stderr, flush=True); time.sleep(600)"
    (episode,) = played(tmp_path, lines, count=1, seconds=2.0)
    assert episode.trajectory.status == status and episode.outcome == 0
    assert "neither asked nor ended in 2 s: I wait" in episode.error


def test_a_run_ends_where_programs_fail_too_often(tmp_path):
    with pytest.raises(TooManyFailures, match=r"the agent failed in .* KeyError"):
        played(tmp_path, "ask(); raise KeyError('tools')", count=80, share=0.5)


def test_turns_of_a_program_are_one_trajectory(tmp_path):
    (episode,) = played(tmp_path, TWICE + "print(ask(more)['content'])", count=1)
    trajectory = episode.trajectory
    assert len(trajectory.turns) == 2 and trajectory.drawn == sum(stop - start for start, stop in trajectory.turns)
    assert [m["role"] for m in episode.reply] == ["assistant", "user", "assistant", "assistant"]
    assert episode.samples == [trajectory] and not episode.parts


BRANCHES = (
    TWICE
    + """
ask()                                              # a retry
with ThreadPoolExecutor(3) as threads:             # and three calls at once
    list(threads.map(lambda i: ask([*more, {"role": "user", "content": str(i)}]), range(3)))
print(ask(more)["content"])
"""
)


@pytest.mark.parametrize(
    ("samples", "branches", "turns"),
    [
        ("concat", "main", [2]),
        ("individual", "main", [1, 1]),
        ("concat", "all", [1, 2, 2, 2, 2]),
        ("individual", "all", [1] * 6),
    ],
)
def test_samples_of_retries_branches_and_parallel_calls(tmp_path, samples, branches, turns):
    (episode,) = played(tmp_path, BRANCHES, count=1, samples=samples, branches=branches)
    assert episode.trajectory.status == "finished" and len(episode.trajectory.turns) == 2
    assert sorted(len(sample.turns) for sample in episode.samples) == turns


def test_a_program_has_so_many_calls_and_tokens(tmp_path):
    """The refusal has OpenAI's form, and names the limit."""
    lines = """
for i in range(9):
    try:
        ask([*messages, {"role": "user", "content": str(i)}])
    except urllib.error.HTTPError as error:
        print(i, json.load(error)["error"]["code"])
        break
"""
    (episode,) = played(tmp_path, lines, count=1, max_calls=2)
    assert episode.turns[-1] == "2 episode_over"
    lines = lines.replace("str(i)}]", "str(i)}], max_tokens=1000, ignore_eos=True").replace("range(9)", "range(99)")
    (episode,) = played(tmp_path, lines, count=1, max_calls=99)
    assert episode.turns[-1].endswith("episode_over") and episode.drawn <= episode.max_tokens


def test_answers_of_one_call_share_the_tokens_that_are_left():
    rule = Rule(seed=0, temperature=1.0, max_tokens=10, max_calls=5)
    assert [rule.room(1000, left=50, drawn=3, count=n) for n in (1, 2, 3, 7)] == [7, 3, 2, 1]
    assert rule.room(1000, left=2, drawn=0, count=1) == 2 and rule.room(1, left=2, drawn=0, count=1) == 1
    assert rule.room(0, left=50, drawn=3, count=1) == 0
    rule.check(begun=2, drawn=7, count=3)
    for begun, drawn in ((3, 7), (2, 8)):
        with pytest.raises(ApiError, match="the episode has had"):
            rule.check(begun, drawn, count=3)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_what_a_program_has_scored_is_no_answer(tmp_path, logprobs):
    lines = f"""
fields = {{"prompt": [5] * 90, "max_tokens": 0, "echo": True, "logprobs": {logprobs}}}
url = os.environ["OPENAI_BASE_URL"] + "/completions"
request = urllib.request.Request(url, json.dumps(fields).encode(), {{"Content-Type": "application/json"}})
for _ in range(3):
    urllib.request.urlopen(request).read()
print(ask()["content"])
"""
    (episode,) = played(tmp_path, lines, count=1, max_calls=1)
    assert episode.trajectory.status == "finished" and 0 < episode.drawn < episode.max_tokens < 270


def test_tokens_are_told_as_they_are_drawn(tmp_path):
    command = write_agent(tmp_path, TWICE + "print(ask(more)['content'])")
    episodes, told = {e.id: e for e in begin(SLOTS)}, dict.fromkeys(range(SLOTS), 0)
    with agent_collector(options_of(command)) as collector:
        while any(episode.running for episode in episodes.values()):
            for progress in collector.advance({i: e for i, e in episodes.items() if e.running}):
                told[progress.id] += progress.drawn
    assert told == {i: episode.drawn for i, episode in episodes.items()}


def test_the_versions_of_a_program_are_those_of_each_token(tmp_path):
    asked, goes_on = tmp_path / "asked", tmp_path / "goes_on"
    lines = f"""
open({str(asked)!r}, "w")
while not os.path.exists({str(goes_on)!r}):
    time.sleep(0.01)
print(ask(more)["content"])
"""
    command = write_agent(tmp_path, TWICE + lines)
    (episode,) = begin(1)
    with agent_collector(options_of(command)) as collector:
        while not asked.exists():
            collector.advance({0: episode})
        collector.prepare(random_params(MODEL, seed=5, dtype="float32", std=0.2), 1)
        collector.commit()
        goes_on.touch()
        while episode.running:
            collector.advance({0: episode})
    versions = [run.version for run in episode.trajectory.runs]
    assert versions == sorted(versions) and versions[-1] == 1
    assert np.isfinite(episode.trajectory.behaviour_logps).all()


def test_an_episode_that_leaves_ends_its_program(tmp_path):
    mark = tmp_path / "pid"
    command = write_agent(tmp_path, f"open({str(mark)!r}, 'w').write(str(os.getpid())); ask(); time.sleep(600)")
    (episode,) = begin(1)
    with agent_collector(options_of(command)) as collector:
        while not (mark.exists() and mark.read_text()):
            collector.advance({0: episode})
        collector.advance({})
        assert collector.ids == set() and episode.running
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
