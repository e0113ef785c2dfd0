"""Reference solutions of searches and puzzles as conversations, for fine-tuning and from a teacher."""

import json

import pytest

from configs.align import tiny_sft, tiny_tool_sft
from ling_jax.align.records import ChatSource, records
from ling_jax.align.sft import SftConfig, prepare_sft
from ling_jax.align.specialists import DistillConfig, prepare_distillation
from ling_jax.run.loop import train
from ling_jax.train.config import from_dict
from tests.helpers.small_stage import write_stage

LENGTH = 256  # tokens; a search of one note has some 200, in bytes


@pytest.mark.parametrize(
    ("name", "difficulties"),
    [("search", (1, 3, 4, 6)), ("knights", (2, 6)), ("grid", (1, 5)), ("scheduling", (2, 7))],
)
def test_solutions_are_conversations_that_solve_their_tasks(name, difficulties):
    source = ChatSource(environment=name, difficulties=difficulties, count=8)
    found = [record for _, record in records(source)]  # which refuses what does not solve its task
    assert [record["difficulty"] for record in found] == [difficulties[i % len(difficulties)] for i in range(8)]
    for record in found:
        assert record["messages"][-1]["role"] == "assistant" and "A:" in record["messages"][-1]["content"]
        calls = [message for message in record["messages"] if message.get("tool_calls")]
        assert bool(calls) == (name == "search")
        assert bool(record.get("tools")) == (name == "search" and record["difficulty"] > 3)


def sized(config, *, steps):
    config.data.sequence_length, config.train.batch_size, config.train.steps = LENGTH, 4, steps
    config.optimizer.peak_lr, config.optimizer.warmup_steps, config.optimizer.weight_decay = 1e-2, 5, 0.0
    return config


@pytest.mark.slow
def test_a_teacher_who_knows_searches_by_heart_makes_conversations_of_them(tmp_path, compiled_once):
    write_stage(tmp_path / "start")
    config = sized(tiny_sft.get_config(), steps=150)
    config.start_from, config.samples = str(tmp_path / "start"), 0
    config.sources = ({"environment": "search", "difficulties": (1,), "count": 4},)
    train(prepare_sft(from_dict(SftConfig, config.to_dict()), tmp_path / "teacher"))

    config = sized(tiny_tool_sft.get_config(), steps=1)
    config.start_from, config.samples = str(tmp_path / "teacher"), 0
    source = {"environment": "search", "difficulties": (1,), "count": 4}
    config.teachers = ({"model": str(tmp_path / "teacher"), "tasks": (source,)},)
    config.sampling.update(context=LENGTH, max_tokens=180, per_query=4, slots=16, temperature=0.3)
    run = prepare_distillation(from_dict(DistillConfig, config.to_dict()), tmp_path / "distil")
    (path,) = (tmp_path / "distil/data").glob("answers_0_*.jsonl")
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept
    for record in kept:
        assert [message["role"] for message in record["messages"]] == ["user", "assistant", "tool", "assistant"]
        assert record["messages"][1]["tool_calls"][0]["name"] == "search"
    assert train(run)["loss_tokens"] > 0
