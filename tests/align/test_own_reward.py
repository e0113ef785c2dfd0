"""Rewards of one's own: functions and records by module:name, what is refused, and what a failure does to a run."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from ling_jax.align.judges.cases import last_turn
from ling_jax.align.rewards import named_reward
from ling_jax.envs import environment
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.failures import TooManyFailures
from ling_jax.rl.loop import train
from ling_jax.rl.replay import replay
from tests.helpers.rl_run import prepared, small_config, steps_compiled_once, write_start
from tests.helpers.scripted_policy import play_script, reader, use_scripts

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def compiled_once():
    with steps_compiled_once():
        yield


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`own(code)`: the name of what a new module calls `score`."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"own_reward_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(code)
        return f"{name}:score"

    return write


@pytest.fixture
def played(monkeypatch):
    use_scripts(monkeypatch)
    return play_script


def test_a_function_gets_the_task_and_the_text_of_the_last_turn(own, played):
    name = own("def score(task, answer): return float(answer == 'A:' + task.hidden['answer'])")
    task = environment("running_sums").make_task(0, 1)
    solved, cut = played(task, [f"A:{task.hidden['answer']}"]), played(task, ["A:12345"], max_tokens=3)
    assert (last_turn(solved, reader()), last_turn(cut, reader())) == (f"A:{task.hidden['answer']}", "A:1")
    lookup = environment("lookup").make_task(5, 2)
    turns = environment("lookup").solution(lookup)
    assert last_turn(played(lookup, turns), reader()) == turns[-1]
    reward = named_reward(name)
    (found,), memory = reward.pay([[solved, cut]], reader(), None)
    assert found.total.tolist() == [1, 0] and not any(found.errors) and memory is None
    assert (reward.low, reward.high) == (0, 1)


def test_a_range_is_declared_by_attributes_and_a_record_is_taken_as_it_is(own):
    reward = named_reward(own("def score(task, answer): return -3\nscore.low, score.high = -5, 5"))
    assert (reward.low, reward.high) == (-5, 5)
    record = named_reward(own("from ling_jax.align.rewards import REWARDS\nscore = REWARDS['evo_cot']"))
    assert record is named_reward("evo_cot")


REFUSED = {
    "def scores(task, answer): return 1": "has no 'score', did you mean 'scores'",
    "score = 3": "3; expected a function score.task, answer. -> float, or a ling_jax.rl.reward.Reward",
    "def score(answer): return 1": r"a function of \(answer\); expected a function score\(task, answer\)",
    "def score(task, answer, more): return 1": r"a function of \(task, answer, more\); expected",
    "def score(task, answer): return 1\nscore.low = 2": "whose range is 2 to 1.0; expected low below high",
    "def score(task, answer): return 1\nscore.high = float('inf')": "whose range is 0.0 to inf; expected low",
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_a_reward_is_refused_by_name(own, code):
    with pytest.raises(ValueError, match=REFUSED[code]):
        named_reward(own(code))


def test_an_unknown_name_offers_the_form_of_ones_own():
    with pytest.raises(ValueError, match=r"'evocot', did you mean 'evo_cot'.*or module:function for one of your own"):
        named_reward("evocot")


@pytest.mark.parametrize("value", ["float('nan')", "1.5", "-0.1", "None", "'1'", "[1]"])
def test_a_value_that_is_no_number_in_the_range_is_named_with_its_prompt(own, played, value):
    task = environment("running_sums").make_task(0, 1)
    reward = named_reward(own(f"def score(task, answer): return {value}"))
    with pytest.raises(ValueError) as error:
        reward.pay([[played(task, ["A:1"])]], reader(), None)
    assert task.prompt in str(error.value) and "expected a finite number from 0.0 to 1.0" in str(error.value)


def lines(workdir, name):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def small(start, name, **train_fields):
    return small_config(start, objective="grpo", reward=name, rollout=dict(max_tokens=24), dpr_steps=0, **train_fields)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_learns_from_it_and_an_answer_on_which_it_raises_is_counted_and_left_out(start, tmp_path, own, capsys):
    name = own("def score(task, answer):\n    assert len(answer) % 5, 'unlucky'\n    return len(answer) / 100")
    config = small(start, name, steps=4, save_every=4)
    run = prepared(config, tmp_path / "run")
    train(run)
    metrics = lines(tmp_path / "run", "metrics")
    failed = sum(line["reward_failed"] for line in metrics)
    assert failed and all(line["answers"] + line["reward_failed"] == 4 for line in metrics)
    assert all(0 <= line["reward"] <= 1 for line in metrics) and any(line["grad_norm"] > 0 for line in metrics)
    assert f"reward {name} raised AssertionError: unlucky" in capsys.readouterr().out
    assert replay(prepared(config, tmp_path / "run")) == 4


@pytest.mark.usefixtures("compiled_once")
def test_one_that_always_raises_ends_the_run_saved_and_a_mended_one_goes_on(start, tmp_path, own, monkeypatch):
    name = own("broken = True\ndef score(task, answer):\n    if broken: raise KeyError('lost')\n    return 0.5")
    config = small(start, name, steps=12, save_every=99, max_nonfinite_steps=99)
    with pytest.raises(
        TooManyFailures, match=f"reward '{name}' failed for 32 of the last 32 answers.*KeyError: 'lost'"
    ):
        train(prepared(config, tmp_path / "run"))
    assert len(lines(tmp_path / "run", "metrics")) == 7, "the eighth step of four answers is the one that was too many"
    monkeypatch.setattr(__import__(name.partition(":")[0]), "broken", False)
    assert train(prepared(config, tmp_path / "run"))["reward"] == 0.5


@pytest.mark.usefixtures("compiled_once")
def test_prompts_without_answers_need_a_reward_of_ones_own(start, tmp_path, own):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "checker": "none"}) + "\n" for i in range(30)))
    source = TaskSource(path=str(path))
    with pytest.raises(
        ValueError, match=r"tasks\[0\]: line \d+ of .* has the checker .none., and reward 'outcome' pays"
    ):
        dataclasses.replace(small(start, "outcome"), tasks=(source,))
    name = own("def score(task, answer): return min(len(answer), 100) / 100")
    config = dataclasses.replace(small(start, name, steps=2), tasks=(source,))
    line = train(prepared(config, tmp_path / "run"))
    assert np.isfinite(line["loss"]) and line["reward"] > 0 and line["accuracy"] == 0
