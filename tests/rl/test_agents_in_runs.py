"""Whole runs whose rollouts a program plays."""

import dataclasses
import signal
import sys

import pytest

from ling_jax.align.rewards import configured_reward
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import prepare
from ling_jax.rl.replay import replay
from ling_jax.run.steps import Interrupted
from ling_jax.serve.agents import agent_collector
from tests.helpers.agents import write_agent
from tests.helpers.rl_run import lines_of, small_config

ANSWERS = "print(ask()['content'])"
CLIENT = """
import json, sys
from openai import OpenAI

task, client = json.load(sys.stdin), OpenAI()
asked = dict(model="any", messages=task["messages"], temperature=0, max_tokens=12)
said = client.chat.completions.create(**asked).choices[0].message
more = [*task["messages"], said, {"role": "user", "content": "more"}]
print(client.chat.completions.create(**asked | {"messages": more}).choices[0].message.content)
"""


def config_of(start, command, *, objective="grpo", rollout=(), **train_fields):
    sizes = dict(agent=tuple(command), slots=8, group_size=4, prompts_per_step=2) | dict(rollout)
    fields = dict(steps=2, dpr_steps=0, samples=1) | train_fields
    return small_config(start, objective=objective, reward="outcome", rollout=sizes, **fields)


def prepared(config, workdir):
    return prepare(config, configured_reward(config, workdir), workdir, agent_collector(config, workdir))


def test_a_program_with_openais_client_trains_and_is_evaluated(start, tmp_path, compiled_once):
    (tmp_path / "agent.py").write_text(CLIENT)
    config = config_of(start, (sys.executable, str(tmp_path / "agent.py")), eval_tasks=3)
    train(prepared(config, tmp_path / "run"))
    lines = lines_of(tmp_path / "run")
    assert [line["answers"] for line in lines] == [8, 8] and all(line["loss_tokens"] for line in lines)
    assert all(line["mismatch_same_version/max"] < 1e-4 for line in lines)
    (first, *_) = lines_of(tmp_path / "run", "samples")
    assert "more" in first["text"]
    records = (tmp_path / "run" / "evaluation" / "000002" / "samples.jsonl").read_text().splitlines()
    assert len(records) == 3


@pytest.mark.parametrize(("samples", "branches"), [("individual", "all"), ("concat", "all"), ("individual", "main")])
def test_other_samples_train(start, tmp_path, compiled_once, samples, branches):
    command = write_agent(tmp_path, "ask(); " + ANSWERS)
    rollout = dict(samples=samples, branches=branches, max_calls=3)
    train(prepared(config_of(start, command, rollout=rollout), tmp_path / "run"))
    assert [line["answers"] for line in lines_of(tmp_path / "run")] == [8, 8]


def test_stale_rollouts_train(start, tmp_path, compiled_once):
    command = write_agent(tmp_path, "time.sleep(0.3 * (task['seed'] % 2)); ask(); " + ANSWERS)
    stale = dict(token_budget=60, max_staleness=4, max_retention=4)
    train(prepared(config_of(start, command, objective="kpop", rollout=stale, steps=4), tmp_path / "run"))
    assert len(lines_of(tmp_path / "run")) == 4


def test_a_run_that_was_stopped_begins_the_programs_under_way_anew(start, tmp_path, compiled_once):
    """The program of one rollout stops the run; after the restart it answers."""
    mark = tmp_path / "stopped"
    lines = f"""
if not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close()
    os.kill(os.getppid(), {int(signal.SIGTERM)})
    time.sleep(600)
ask()
"""
    config = config_of(start, write_agent(tmp_path, lines + ANSWERS))
    with pytest.raises(Interrupted):
        train(prepared(config, tmp_path / "run"))
    train(prepared(config, tmp_path / "run"))
    assert [line["answers"] for line in lines_of(tmp_path / "run")] == [8, 8]


def test_a_replay_says_why_it_cannot_be(start, tmp_path, compiled_once):
    config = config_of(start, write_agent(tmp_path, ANSWERS), steps=1)
    train(prepared(config, tmp_path / "run"))
    with pytest.raises(ValueError, match="what a program asks, and when, cannot be repeated"):
        replay(prepared(config, tmp_path / "run"))


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (dict(engines=2), "engines is 2 and rollout.agent"),
        (dict(overlap=True), "overlap is True and rollout.agent"),
        (dict(record_experts=True), "record_experts is True and rollout.agent"),
        (dict(samples="whole"), "samples is 'whole'"),
        (dict(branches="last"), "branches is 'last'"),
        (dict(agent=(), samples="individual"), "only an agent's calls make several samples"),
    ],
)
def test_what_an_agent_cannot_do_is_refused(start, rollout, message):
    with pytest.raises(ValueError, match=message):
        config_of(start, ("python",), rollout=rollout)


def test_a_program_that_is_not_there_is_named(start, tmp_path):
    config = dataclasses.replace(config_of(start, ("no-such-program", "agent.py")))
    with pytest.raises(ValueError, match="there is no program 'no-such-program'"):
        agent_collector(config, tmp_path)
