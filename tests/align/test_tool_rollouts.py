"""Conversations with tools, out of rollouts: what the engine sampled is what fine-tuning learns, and only that."""

import json

import numpy as np
import pytest

from configs.align import tiny_sft, tiny_tool_sft
from ling_jax.align.records import record_of, write_records
from ling_jax.align.sft import SftConfig, prepare_sft
from ling_jax.align.specialists import DistillConfig, prepare_distillation
from ling_jax.chat.conversations import tokenize_conversations
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.tool_calls import parse_either
from ling_jax.data.json_lines import read_objects
from ling_jax.data.packing import packed_rows
from ling_jax.envs import environment
from ling_jax.run.loop import train
from ling_jax.train.config import from_dict
from tests.helpers.rl_run import tokenizer
from tests.helpers.scripted_policy import play_script, use_scripts
from tests.helpers.small_stage import write_stage

LOOKUP, TOOLS = environment("lookup"), environment("tools")
LENGTH = 208  # tokens; a lookup of one name has 192, in bytes


def learnt(record, folder, template) -> tuple[list[int], list[bool]]:
    """(tokens, whether each is learnt) of a conversation, written and read again."""
    write_records([record], folder / "chats.jsonl")
    tokenize_conversations(
        read_objects(folder / "chats.jsonl"), tokenizer(), template, folder / "tokens", source="chats", digest="",
        longest=8192, held_out_fraction=1e-9,
    )  # fmt: skip
    documents = packed_rows(folder / "tokens" / "train", 8192, 0).documents
    return documents.doc(0).tolist(), documents.trained.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_what_a_policy_read_and_wrote_is_what_is_learnt(seed, tmp_path, monkeypatch):
    """Token for token, and the loss is on the tokens that it drew: calls, the answer, the ends of its turns."""
    use_scripts(monkeypatch)
    task = LOOKUP.make_task(seed, 2)
    episode = play_script(task, LOOKUP.solution(task, redundancy=0.5, most=1, seed=seed))
    assert episode.outcome == 1 and len(episode.turns) >= 3
    tokens, trained = learnt(record_of(task, episode.messages), tmp_path, ChatTemplate())
    assert tokens == episode.context
    assert trained == [False] * len(episode.trajectory.prompt_ids) + episode.trajectory.loss_mask.tolist()


@pytest.mark.parametrize("tool_format", ["xml", "xml_lines", "json"])
def test_calls_and_reasoning_are_written_in_the_form_of_the_template_that_learns(tool_format, tmp_path, monkeypatch):
    use_scripts(monkeypatch)
    task = TOOLS.make_task(4, 2)
    first, *rest = TOOLS.solution(task)
    episode = play_script(task, [f"<think>look first</think>{first}", *rest], context=8192)
    record = record_of(task, episode.messages)
    assert [m["tool_calls"] for m in record["messages"] if "tool_calls" in m] == [[c] for c in task.hidden["calls"]]
    tokens, trained = learnt(record, tmp_path, ChatTemplate(tool_format=tool_format))
    turns = turns_of(tokens, trained)
    parsed = [parse_either(turn.removesuffix("<|role_end|>"), task.tools) for turn in turns]
    assert [call for turn in parsed for call in turn.tool_calls] == task.hidden["calls"] == episode.calls
    assert [turn.reasoning for turn in parsed] == ["look first", *[None] * len(rest)]
    assert parsed[-1].content == rest[-1] and all(turn.endswith("<|role_end|>") for turn in turns)
    assert any(f'{{"name": "{episode.calls[0]["name"]}"' in turn for turn in turns) == (tool_format == "json")


def turns_of(tokens, trained) -> list[str]:
    """The texts of the runs of tokens that are learnt."""
    edges = np.flatnonzero(np.diff([False, *trained, False]))
    spans = edges.reshape(-1, 2).tolist()
    return [tokenizer().decode(tokens[start:stop], skip_special_tokens=False) for start, stop in spans]


def test_a_turn_that_nobody_could_read_stays_as_it_is():
    task = LOOKUP.make_task(0, 1)
    messages = [*task.messages, {"role": "assistant", "content": "<tool_call>get\n<arg_key>name"}]
    assert record_of(task, messages)["messages"] == messages


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, compiled_once):
    """The workdir of a model that knows a few lookups by heart."""
    folder = tmp_path_factory.mktemp("teacher")
    write_stage(folder / "start")
    config = tiny_sft.get_config()
    config.start_from, config.samples = str(folder / "start"), 0
    config.sources = ({"environment": "lookup", "difficulties": (1,), "count": 6},)
    run = prepare_sft(from_dict(SftConfig, sized(config, steps=80).to_dict()), folder / "run")
    assert train(run)["main_loss"] < 0.3
    return folder / "run"


def sized(config, *, steps):
    """A shipped config at the size of this test."""
    config.data.sequence_length, config.train.batch_size, config.train.steps = LENGTH, 4, steps
    config.optimizer.peak_lr, config.optimizer.warmup_steps, config.optimizer.weight_decay = 1e-2, 5, 0.0
    return config


@pytest.mark.slow
def test_rollouts_with_tools_become_rows_whose_loss_is_on_the_assistants_turns(teacher, tmp_path):
    """The shipped recipe: the engine samples, the right conversations are kept, packed and learnt."""
    config = sized(tiny_tool_sft.get_config(), steps=1)
    config.start_from, config.samples = str(teacher), 0
    tasks = config.teachers[0]["tasks"][0] | {"difficulties": (1,), "count": 6}
    config.teachers = ({"model": str(teacher), "tasks": (tasks,)},)
    config.sampling.update(context=LENGTH, max_tokens=150, per_query=4, slots=16, temperature=0.3)
    run = prepare_distillation(from_dict(DistillConfig, config.to_dict()), tmp_path)
    (path,) = (tmp_path / "data").glob("answers_0_*.jsonl")
    answers = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert [message["role"] for message in record["messages"]] == ["user", "assistant", "tool", "assistant"]
        (call,) = record["messages"][1]["tool_calls"]
        assert call["name"] == "get" and record["messages"][0]["content"] == f"?{call['arguments']['name']}="
        answers[record["messages"][0]["content"]] = record["messages"]
    assert answers

    row = {name: np.asarray(values) for name, values in run.corpus.train[0].items()}
    decode = tokenizer().decode
    for segment in range(1, row["segment_ids"].max() + 1):
        inside = row["segment_ids"] == segment
        tokens, trained = row["tokens"][inside].tolist(), (row["labels"][inside] >= 0).tolist()
        prompt = (
            decode(tokens, skip_special_tokens=False).partition("<role>HUMAN</role>")[2].partition("<|role_end|>")[0]
        )
        _, calling, _, answering = answers[prompt]
        call = f"<tool_call>get<arg_key>name</arg_key>\n<arg_value>{calling['tool_calls'][0]['arguments']['name']}"
        assert turns_of(tokens, trained) == [
            f"{call}</arg_value>\n</tool_call><|role_end|>",
            f"{answering['content']}<|role_end|>",
        ]
    metrics = train(run)
    assert 0 < metrics["loss_tokens"] < metrics["tokens"]
