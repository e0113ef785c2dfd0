"""Episodes as ATIF: what another tool reads, and nothing of the trajectory lost."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax.envs import HELD_OUT_SEEDS, environment
from ling_jax.envs.harbor.folder import read_task
from ling_jax.rl.atif import to_atif
from tests.helpers.faults import ROOT
from tests.helpers.sandboxes import sandbox_or_skip
from tests.helpers.scripted_policy import begin, reader, tokens_of

TOP = {"schema_version", "session_id", "trajectory_id", "agent", "steps", "final_metrics", "extra"}
STEP = {
    "step_id", "source", "message", "reasoning_content", "tool_calls", "observation", "metrics", "is_copied_context",
    "extra",
}  # fmt: skip
METRICS = {"prompt_tokens", "completion_tokens", "prompt_token_ids", "completion_token_ids", "logprobs", "extra"}


def agent_steps(record):
    return [step for step in record["steps"] if step["source"] == "agent"]


def test_the_fields_are_those_of_the_format(played):
    """Other readers refuse a field that version 1.7 does not have; ours stand under `extra`."""
    task = environment("tools").make_task(0, 2)
    record = json.loads(json.dumps(to_atif(played(task, environment("tools").solution(task), context=6000), reader())))
    assert record["schema_version"] == "ATIF-v1.7" and set(record) == TOP
    assert {"name", "version"} <= set(record["agent"]) and record["agent"]["tool_definitions"] == list(task.tools)
    assert [step["step_id"] for step in record["steps"]] == [*range(1, len(record["steps"]) + 1)]
    for step in record["steps"]:
        assert set(step) <= STEP and step["source"] in ("system", "user", "agent") and isinstance(step["message"], str)
        assert step["source"] == "agent" or not {"metrics", "tool_calls", "reasoning_content"} & set(step)
        assert set(step.get("metrics", ())) <= METRICS
        calls = {call["tool_call_id"] for call in step.get("tool_calls", ())}
        assert {result["source_call_id"] for result in step.get("observation", {"results": ()})["results"]} <= calls


def test_results_stand_with_the_calls_that_they_answer(played):
    task = environment("tools").make_task(0, 2)
    episode = played(task, environment("tools").solution(task), context=6000)
    first, second, last = agent_steps(to_atif(episode, reader()))
    for step, call in zip((first, second), episode.calls, strict=True):
        (made,), (result,) = step["tool_calls"], step["observation"]["results"]
        assert (made["function_name"], made["arguments"]) == (call["name"], call["arguments"])
        assert made["tool_call_id"] == result["source_call_id"]
    assert "tool_calls" not in last and last["message"] == "Done."
    assert [m["content"] for m in episode.reply if m["role"] == "tool"] == [
        step["observation"]["results"][0]["content"] for step in (first, second)
    ]


def test_rewards_and_status_of_the_episode_are_kept(played):
    task = environment("tools").make_task(0, 1)
    about = to_atif(played(task, environment("tools").solution(task), context=6000), reader(), stage="sft")["extra"]
    assert about["rewards"]["outcome"] == 1.0 and about["status"] == "finished" and about["stage"] == "sft"
    assert (about["task"], about["environment"], about["seed"]) == (task.id, "tools", 0)


def test_reasoning_and_faults_of_a_turn_stand_apart(played):
    task = environment("tools").make_task(0, 1)
    record = to_atif(played(task, ["<think>look</think>well <tool_call>broken", "Done."], context=6000), reader())
    step = agent_steps(record)[0]
    assert step["reasoning_content"] == "look" and step["extra"]["errors"] == ["unclosed_tool_call"]
    assert step["extra"]["text"] == "<think>look</think>well <tool_call>broken"
    assert "source_call_id" not in step["observation"]["results"][0], "it answers no call"


def test_a_turn_that_a_limit_cut_off_is_there(played):
    task = environment("running_sums").make_task(HELD_OUT_SEEDS, 1)
    episode = played(task, ["7 8 9 " * 20], max_tokens=10)
    (step,) = agent_steps(to_atif(episode, reader()))
    assert episode.trajectory.status == "truncated" and step["extra"]["unanswered"]
    assert step["metrics"]["completion_tokens"] == 10 and "7 8" in step["message"]


def test_the_texts_of_tokens_join_to_the_turn():
    text = "naïve 🙂 plan: 12+3"
    ids = tokens_of(text)
    assert "".join(reader().token_texts(ids)) == text and len(reader().token_texts(ids)) == len(ids)
    assert reader().token_texts([]) == [] and "".join(reader().token_texts(ids[:-1] + tokens_of("🙂")[:1]))


def test_an_episode_in_a_box_is_played_and_kept(played):
    """A Harbor task, from the policy's tokens to the verdict."""
    sandbox_or_skip("T3")
    task = read_task(ROOT / "tests/fixtures/harbor/greeting")
    episode = played(task, environment("harbor").solution(task), context=30_000)
    record = to_atif(episode, reader())
    assert record["extra"]["rewards"] == {"outcome": 1.0, "suspicious": 0.0}
    first, last = agent_steps(record)
    assert first["observation"]["results"][0]["content"] == "no output" and not last["extra"].get("unanswered")


logps = st.floats(-50, 0, width=32)
turns = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 200), logps), min_size=1, max_size=12), st.integers(0, 3),
              st.lists(st.integers(0, 200), min_size=1, max_size=5)),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(turns)
def test_tokens_log_probs_and_versions_come_back_exactly(drawn):
    """Whatever was drawn: the arrays of the trajectory are in its ATIF, each number as it was recorded."""
    episode, version = begin(environment("running_sums").make_task(0, 1)), 0
    trajectory = episode.trajectory
    for tokens, newer, read in drawn:
        half = len(tokens) // 2
        for part in (tokens[:half], tokens[half:]):
            trajectory.append_generation([t for t, _ in part], [p for _, p in part], version)
            version += newer
        trajectory.append_observation(read, version)
    record = json.loads(json.dumps(to_atif(episode, reader())))
    metrics = [step["metrics"] for step in agent_steps(record)]
    ids = [*metrics[0]["prompt_token_ids"]]
    for i, turn in enumerate(metrics):
        ids += turn["extra"]["read_token_ids"] if i else []
        assert turn["prompt_tokens"] == len(ids)
        ids += turn["completion_token_ids"]
    last = trajectory.turns[-1][1]
    assert ids == [*trajectory.prompt_ids, *trajectory.completion_ids[:last].tolist()]
    found = np.array([logp for turn in metrics for logp in turn["logprobs"]], np.float32)
    mask = trajectory.loss_mask
    assert found.tobytes() == trajectory.behaviour_logps[mask].tobytes()
    versions = [v for turn in metrics for v, count in turn["extra"]["versions"] for _ in range(count)]
    assert versions == trajectory.versions[mask].tolist()


@pytest.mark.parametrize("name", ["running_sums", "lookup", "tools"])
def test_an_episode_that_has_not_begun_is_its_prompt(name):
    task = environment(name).make_task(0, 1)
    record = to_atif(begin(task, context=6000), reader())
    assert [step["message"] for step in record["steps"]] == [message["content"] for message in task.messages]
    assert record["extra"]["status"] == "running" and record["final_metrics"]["total_completion_tokens"] == 0
