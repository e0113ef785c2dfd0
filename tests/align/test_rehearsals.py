"""Conversations with planted mistakes, and the program that writes them."""

import json
import subprocess
import sys

import pytest

from configs.families.base import SIZES
from configs.families.rl import get_config as rl_config
from ling_jax.align.records import ChatSource, converse, records, texts
from ling_jax.align.rehearsals import flawed_turns, rehearsals
from ling_jax.chat.records import normalise_conversation
from ling_jax.chat.template import ChatTemplate, encode_all
from ling_jax.data import train_bpe
from ling_jax.envs import environment, is_held_out
from ling_jax.envs.sources import TaskSource, tasks
from ling_jax.rl.config import RLConfig
from ling_jax.train.config import from_dict
from tests.helpers.faults import ROOT

PLAYED = ("toolkits", "service", "safety", "search", "knights", "grid")  # without a sandbox
FLAGS = ("--form=chats", "--count=6", "--seed=40", "--mistakes=0.5")


def source_of(name, count=60, seed=0):
    return TaskSource(environment=name, difficulties=(environment(name).DIFFICULTIES[0],), count=count, seed=seed)


def rehearse(*flags):
    command = [sys.executable, "-m", "launch.rehearse", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", PLAYED)
def test_without_mistakes_they_are_the_solutions(name):
    source = source_of(name, 8)
    chats = ChatSource(environment=name, difficulties=source.difficulties, count=8)
    assert list(rehearsals(source, 0.0)) == [record for _, record in records(chats)]


@pytest.mark.parametrize("name", PLAYED)
def test_half_of_them_have_a_mistake_where_half_are_asked_for(name):
    """A few turns of other tasks happen to be right."""
    made = list(tasks(source_of(name)))
    outcomes = [converse(task, flawed_turns(task, 0.5))[1] for task in made]
    assert 0.35 < sum(outcomes) / len(made) < 0.8
    assert [flawed_turns(task, 0.5) for task in made] == [flawed_turns(task, 0.5) for task in made]


@pytest.mark.parametrize("name", ["functions", "workflow"])
def test_an_environment_makes_its_own_mistakes_and_one_turn_needs_no_sandbox(name):
    right, wrong = ([r["messages"] for r in rehearsals(source_of(name, 20), rate)] for rate in (0.0, 1.0))
    for of_right, of_wrong in zip(right, wrong, strict=True):
        assert of_right[:-1] == of_wrong[:-1] and of_right[-1] != of_wrong[-1]
        assert of_wrong[-1]["role"] == "assistant"


def test_the_recipe_of_all_families_has_room_for_each_and_draws_by_pass_rates():
    config = from_dict(RLConfig, rl_config("all").to_dict())
    assert {task.environment for task in config.tasks} == set(SIZES) and config.train.dpr_steps
    assert config.rollout.context == max(context for context, _ in SIZES.values())


@pytest.mark.parametrize("name", SIZES)
def test_the_recipe_of_a_family_has_room_for_its_conversations(name):
    """In tokens of the 512 that a base makes of its texts."""
    config, (context, said) = from_dict(RLConfig, rl_config(name).to_dict()), SIZES[name]
    assert config.tasks[0].environment == name and config.start_from == f"runs/{name}/sft"
    found, template = list(rehearsals(source_of(name, 300), 0.5)), ChatTemplate()
    tokenizer = train_bpe((text["text"] for text in texts(found)), 512)
    pieces = [
        sample for record in found for sample in template.samples(normalise_conversation(record, name)["messages"])
    ]
    for ids, trained in encode_all(tokenizer, pieces):
        assert len(ids) <= context and sum(trained) <= said


def test_the_program_writes_chats_and_texts(tmp_path):
    for form in ("chats", "texts"):
        done = rehearse("--environment=toolkits", *FLAGS, f"--form={form}", f"--out={tmp_path / form}")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"6 {form} of toolkits in {tmp_path / form}\n"
    chats, found = ([*map(json.loads, (tmp_path / form).read_text().splitlines())] for form in ("chats", "texts"))
    assert chats == list(rehearsals(source_of("toolkits", 6, seed=40), 0.5))
    assert not any(is_held_out(task) for task in tasks(source_of("toolkits", 6, seed=40)))
    for chat, text in zip(chats, found, strict=True):
        assert list(text) == ["text"] and text["text"].startswith(chat["messages"][0]["content"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--environment=toolkit"], "did you mean 'toolkits'?"),
        (["--environment=toolkits", "--difficulty=99"], "toolkits has 1 to 12"),
        (["--environment=questions"], "questions needs the file of its questions"),
        (["--environment=toolkits", "--mistakes=2"], "--mistakes=2"),
        (["--environment=toolkits", "--out=no/such/folder/x"], "its folder does not exist"),
    ],
)
def test_a_wrong_flag_is_answered_with_what_to_do(flags, answer, tmp_path):
    done = rehearse(*FLAGS, f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 2 and answer in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
