"""Runs whose answers a model judges: they learn, they replay without the judge, and a failure is nobody's reward."""

import dataclasses
import json
import re
import shutil
import zlib

import numpy as np
import pytest

from ling_jax.align.judges import endpoint as judge_endpoint
from ling_jax.align.judges import make_judge
from ling_jax.align.judges.forms import Numbers, Question
from ling_jax.align.judges.judgements import Judgements, Reply
from ling_jax.align.rewards import configured_reward
from ling_jax.rl import failures
from ling_jax.rl.buffer import Group
from ling_jax.rl.config import RLConfig
from ling_jax.rl.harvest import advantages_of
from ling_jax.rl.judge_config import JudgeConfig, Rubric
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import prepare
from ling_jax.rl.replay import replay as replay_run
from ling_jax.rl.reward import Rewards, where_judged
from ling_jax.rl.unscored import drop_unscored
from tests.helpers.judge_server import Endpoint, Response, served
from tests.helpers.rl_run import prepared, small_config, steps_compiled_once, write_start
from tests.helpers.small_stage import write_judge

RUBRICS = (Rubric(name="correct", weight=4.0), Rubric(name="concise", question="Is it dense?"))


@pytest.fixture(scope="module")
def same_steps():
    """Steps are compiled once for all runs here."""
    with steps_compiled_once():
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def judged_config(start, *, reward="preference", steps=2, **judge) -> RLConfig:
    config = small_config(start, objective="lpo", reward=reward, steps=steps)
    return dataclasses.replace(config, judge=JudgeConfig(**judge))


def endpoint_config(start, url: str, **judge) -> RLConfig:
    return judged_config(start, kind="endpoint", model="judge-1", base_url=url, key_variable="", **judge)


def replay(config, workdir) -> int:
    return replay_run(prepare(config, configured_reward(config, workdir, replay=True), workdir))


def metrics(workdir, name):
    return [json.loads(line)[name] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("same_steps")
def test_a_run_with_an_engine_judge_replays_when_the_judge_is_gone(start, judge_model, tmp_path):
    model = tmp_path / "judge"
    shutil.copytree(judge_model, model)
    config = judged_config(start, kind="engine", model=str(model), rubrics=RUBRICS, max_tokens=48)
    line = train(prepared(config, tmp_path / "run"))
    assert line["step"] == 1 and line["reward_failed"] == 0 and "reward/concise" in line
    assert (tmp_path / "run" / "judgements.jsonl").read_text().count("\n") >= 2
    shutil.rmtree(model)
    assert replay(config, tmp_path / "run") == 2


@pytest.mark.usefixtures("same_steps")
def test_a_run_with_an_endpoint_replays_bit_for_bit_without_it(start, tmp_path, monkeypatch):
    """Some replies fail for good, one is nonsense; both are part of what is replayed."""
    monkeypatch.setattr(judge_endpoint, "PAUSE", 0.001)

    def respond(prompt, attempt):
        number = zlib.crc32(prompt.encode()) % 10
        return Response(f"concise: merit {number} / defect {9 - number}", status=500 if number < 3 else 200)

    with served(Endpoint(respond)) as server:
        config = endpoint_config(start, server.url, rubrics=RUBRICS, budget=1000)
        train(prepared(config, tmp_path / "run"))
        asked = len(server.prompts)
    assert asked > 0 and sum(metrics(tmp_path / "run", "reward_failed")) > 0
    assert replay(config, tmp_path / "run") == 2
    other = dataclasses.replace(
        config, judge=dataclasses.replace(config.judge, replay=str(tmp_path / "run" / "judgements.jsonl"))
    )
    train(prepared(other, tmp_path / "again"))
    first, again = ((tmp_path / name / "events.jsonl").read_text() for name in ("run", "again"))
    assert first == again


@pytest.mark.usefixtures("same_steps")
def test_a_run_that_its_judge_ended_goes_on_with_another_endpoint(start, tmp_path, monkeypatch):
    """It asks again for the step that was not finished, and replays."""
    monkeypatch.setattr(failures, "FAILURES_SEEN", (4, 128))
    down = Endpoint(lambda prompt, attempt: Response(status=400, body="no such model"))
    up = Endpoint(lambda prompt, attempt: Response("concise: merit 7 / defect 1"))
    with served(down), pytest.raises(failures.TooManyFailures, match="the endpoint answers 400: no such model"):
        train(prepared(endpoint_config(start, down.url, rubrics=RUBRICS), tmp_path))
    with served(up):
        config = endpoint_config(start, up.url, rubrics=RUBRICS)
        train(prepared(config, tmp_path))
    assert metrics(tmp_path, "reward_failed") == [0, 0]
    assert replay(config, tmp_path) == 2


def test_a_cache_has_no_failures_and_nothing_of_another_checkpoint(judge_model, tmp_path):
    (step,) = (int(folder.name) for folder in (judge_model / "checkpoints").iterdir())
    model = str(judge_model)
    asked = [Question(text + "x" * 3000, Numbers(2)) for text in "ab"]  # more than the judge's context

    def said_of(step: int) -> list[str]:
        workdir = tmp_path / f"run_{step}"
        workdir.mkdir()
        cache = workdir / "old.jsonl"
        said = [Reply("redundant: none"), Reply("", "busy")]
        old = Judgements(lambda questions: said, model=model, budget=9, step=step, record=cache)
        old.ask(asked)
        old.accept()
        cache.write_bytes(cache.read_bytes() + b'{"key": "half a li')
        judge = make_judge(JudgeConfig(kind="engine", model=model, cache=str(cache)), workdir)
        return [verdict.error for verdict in judge.model.ask(asked)]

    same, other = said_of(step), said_of(step + 1)
    assert same[0] == "" and all("pass the judge's context" in error for error in (same[1], *other))


@pytest.mark.usefixtures("same_steps")
def test_evo_cot_asks_the_judge_for_redundant_sentences(start, judge_model, tmp_path):
    config = judged_config(start, reward="evo_cot", steps=1, kind="engine", model=str(judge_model), max_tokens=200)
    line = train(prepared(config, tmp_path))
    assert "reward/redundancy" in line and line["reward_failed"] == 0


@dataclasses.dataclass
class Ended:
    outcome: float
    failed: bool = False


def test_an_answer_that_was_not_judged_leaves_its_groups_statistics_as_they_are():
    rewards = np.array([1.0, 0.2, 0.6])
    alone = advantages_of([Group(0, (Ended(1.0),) * 3)], [Rewards(rewards, {})], (1, 3))
    paid = where_judged(("", "timeout", "", ""), lambda rows: Rewards(rewards[: len(rows)], {"part": rewards}))
    assert (
        np.isnan(paid.total[1]) and np.isnan(paid.parts["part"][1]) and paid.total[[0, 2, 3]].tolist() == [1, 0.2, 0.6]
    )
    groups, kept = drop_unscored([Group(0, tuple(Ended(1.0) for _ in range(4)))], [paid])
    assert groups[0].valid == [True, False, True, True]
    found = advantages_of(groups, kept, (1, 4))[0]
    np.testing.assert_array_equal(found[[0, 2, 3]], alone[0])
    assert found[1] == 0 and kept[0].parts["part"].tolist() == [1, 0.2, 0.6]


def test_a_broken_episode_beside_an_unjudged_one_keeps_its_place():
    broken = Ended(0.0, failed=True)
    paid = Rewards(np.array([1.0, np.nan]), {}, ("", "busy"))
    groups, _ = drop_unscored([Group(0, (None, Ended(1.0), broken, Ended(1.0)))], [paid])
    assert groups[0].valid == [False, True, False, False]
    assert [episode is None for episode in groups[0].episodes] == [True, False, False, True]


def test_a_group_of_which_nobody_was_judged_is_left_out():
    unjudged = Rewards(np.full(2, np.nan), {}, ("busy", "busy"))
    groups, kept = drop_unscored(
        [Group(number, (Ended(1.0), Ended(1.0))) for number in (0, 1)], [unjudged, Rewards(np.ones(2), {})]
    )
    assert [group.prompt for group in groups] == [1] and len(kept) == 1


REFUSED = {
    "kind": (dict(kind="engin"), r"judge.kind is 'engin', did you mean 'engine'.*; expected one of rules, engine"),
    "no model": (dict(kind="engine"), r"judge.kind is 'engine' and judge.model is ''; set it to the workdir"),
    "no url": (dict(kind="endpoint", model="m"), r"judge.base_url is ''; expected a URL such as http"),
    "no budget": (dict(budget=0), r"judge.budget is 0; it must be at least 1"),
    "no time": (dict(timeout=float("inf")), r"judge.timeout is inf; it must be positive"),
    "two rubrics": (dict(rubrics=(Rubric(name="brief"),) * 2), r"judge.rubrics\[1\].name is 'brief'; expected a new"),
    "weight": (dict(rubrics=(Rubric(name="brief", weight=0.0),)), r"judge.rubrics\[0\].weight is 0.0; it must be pos"),
    "question for rules": (dict(rubrics=(Rubric(name="a", question="b?"),)), r"no model answers: set judge.kind to"),
    "two lines": (dict(kind="engine", model="m", rubrics=(Rubric(name="a", question="b\nc"),)), "expected one line"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_judge_that_cannot_be_is_refused(name, start):
    judge, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        judged_config(start, **judge)


def test_a_judge_that_cannot_be_asked_is_refused_before_work(start, judge_model, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    endpoint = dict(kind="endpoint", model="m", base_url="http://localhost:9/v1")
    for judge, message in (
        (dict(kind="engine", model=str(tmp_path / "none")), r"judge.model: .*none holds neither checkpoints/"),
        (dict(kind="engine", model=str(judge_model), max_tokens=2048), "judge.max_tokens is 2048; the context of"),
        (endpoint | dict(key_variable="JUDGE_KEY"), "the environment has no JUDGE_KEY .*export the key there, or set"),
        (
            endpoint | dict(key_variable="", timeout=2.0),
            "judge.base_url: http://localhost:9/v1/models cannot be reached",
        ),
        (endpoint | dict(replay=str(tmp_path / "no.jsonl")), "no.jsonl does not exist; name the judgements.jsonl"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            make_judge(JudgeConfig(**judge), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_and_a_judge_that_do_not_go_together_are_refused(start, tmp_path):
    for reward, judge, message in (
        (
            "outcome",
            dict(kind="engine", model="m"),
            "reward 'outcome' asks no judge: set judge.kind to 'rules', or take",
        ),
        ("evo_cot", dict(rubrics=(Rubric(name="brief"),)), "judge.rubrics is set and reward 'evo_cot' reads none"),
        ("preference", dict(rubrics=(Rubric(name="style"),)), "rubric 'style' has no question, and no rule has"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            configured_reward(judged_config(start, reward=reward, **judge), tmp_path)
