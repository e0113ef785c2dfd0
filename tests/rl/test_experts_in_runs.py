"""Runs that record the experts of generation and replay them in training."""

import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.engine import EXACT_TILE, Engine, Request, memory_for
from ling_jax.envs import environment, find
from ling_jax.model.recorded_experts import check_experts, empty_experts
from ling_jax.rl.buffer import RolloutBuffer
from ling_jax.rl.collector import Collector
from ling_jax.rl.episode import EpisodeRequest, restore_episode
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import start_report
from ling_jax.rl.reader import Reader
from ling_jax.rl.replay import replay
from ling_jax.run.steps import Interrupted
from ling_jax.run.workdir import unlock
from tests.helpers.faults import assert_same_end
from tests.helpers.rl_run import prepared, small_config, tokenizer
from tests.helpers.slow_sessions import Environment, Sleeper
from tests.helpers.small_stage import write_stage
from tests.helpers.tiny import random_params, tiny_config

# Many choices, so that some are ties; steps are small, so that most of a mismatch is of these.
MODEL = tiny_config(
    vocab_size=263, hidden_size=32, num_layers=3, first_dense_layers=1, num_heads=4, num_norm_groups=1, num_experts=16,
    top_k=4, compute_dtype="bfloat16", remat="none", init_std=0.2,
)  # fmt: skip
PEAK_LR = 1e-4
SLOTS = 8
READER = Reader(tokenizer(), ChatTemplate(), end_ids(tokenizer()), 200)


@functools.cache
def params(seed: int):
    return random_params(MODEL, seed, dtype="float32", std=0.2)


def begin(reader: Reader, count: int):
    task = environment("running_sums").make_task(0, 2)
    return reader.begin_all([EpisodeRequest(i, 0, task, seed=i) for i in range(count)])


def collected(pieces: int, episodes, version: int, reader: Reader = READER) -> None:
    """So many pieces of decoding in a collector of its own, by the weights of this version."""
    with Collector(MODEL, reader, SLOTS, record_experts=True) as collector:
        collector.load(params(version), version)
        for _ in range(pieces):
            if running := {episode.id: episode for episode in episodes if episode.running}:
                collector.advance(running)


def chosen(tokens: list[int], version: int) -> np.ndarray:
    """[n - 1, L, k]: what an engine that reads all of it by these weights gives."""
    memory = memory_for(MODEL, slots=SLOTS, max_tokens=READER.context)
    engine = Engine(MODEL, slots=SLOTS, memory_bytes=memory, row_tile=EXACT_TILE, prefill_tokens=SLOTS * READER.context)
    engine.load(params(version), version)
    engine.submit(Request("all", tokens[:-1], 1, seed=0, record_experts=True))
    events = []
    while engine.busy:
        events += engine.step()
    return np.concatenate([event.experts for event in events if event.experts is not None])


def test_a_token_keeps_the_experts_of_the_weights_that_read_it_first():
    """Also where it is stored between two pieces of decoding: no record is lost, none comes twice."""
    episodes = begin(READER, 3)
    collected(2, episodes, version=0)
    before = [len(episode.context) - 1 for episode in episodes]
    assert [episode.trajectory.num_recorded for episode in episodes] == before
    stored = [restore_episode(json.loads(json.dumps(episode.to_json())), episode.task) for episode in episodes]
    assert sum(episode.running for episode in stored) >= 2
    collected(2, stored, version=1)
    for count, episode in zip(before, stored, strict=True):
        experts = episode.trajectory.experts
        assert experts.dtype == np.int8 and len(experts) == len(episode.context) - 1
        check_experts(experts, MODEL)
        np.testing.assert_array_equal(experts[:count], chosen(episode.context, 0)[:count])
        np.testing.assert_array_equal(experts[count:], chosen(episode.context, 1)[count:])


class Talker(Sleeper):
    """It talks for three turns, at once."""

    instant, seconds, turns = True, 0.0, 3

    @staticmethod
    async def wait(seconds):
        pass


def test_observations_have_the_experts_with_which_they_were_read(monkeypatch):
    monkeypatch.setitem(find._SHIPPED, "running_sums", Environment(Talker))
    reader = Reader(tokenizer(), ChatTemplate(), frozenset(range(7, 60)) | end_ids(tokenizer()), READER.context)
    episodes = begin(reader, 8)
    collected(30, episodes, 0, reader)
    (*_, episode) = sorted(episodes, key=lambda episode: len(episode.trajectory.turns))
    assert len(episode.trajectory.turns) >= 2 and not episode.trajectory.loss_mask.all()
    np.testing.assert_array_equal(episode.trajectory.experts, chosen(episode.context, 0))


def test_a_model_without_experts_is_refused(start, tmp_path):
    config = small_config(start, rollout=dict(record_experts=True))
    with pytest.raises(
        ValueError, match=r"record_experts is True, and the model of .* has no layer with experts .*set"
    ):
        prepared(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def moe_start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe_start")
    write_stage(folder, MODEL)
    return folder


def moe_config(start, *, record_experts=True, **options):
    config = small_config(start, rollout=dict(record_experts=record_experts), **options)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, peak_lr=PEAK_LR))


def test_a_run_says_how_much_memory_its_records_take(moe_start, tmp_path):
    """4 rows of 184 tokens on a device, each with 4 experts in 2 layers of a byte."""
    run = prepared(moe_config(moe_start), tmp_path)
    unlock(run.workdir, run.lock)
    report = start_report(run, 0)
    of_device = 4 * 184 * empty_experts(1, 1, MODEL).nbytes / jax.device_count()
    assert f"experts  recorded and replayed: 8 bytes a token, {of_device / 1000:.2f} kB of a batch on a" in report


@pytest.fixture(scope="module")
def whole(moe_start, tmp_path_factory):
    """The workdir of a run in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    train(prepared(moe_config(moe_start), workdir))
    return workdir


def largest(workdir, name: str) -> float:
    return max(json.loads(line)[name] for line in (workdir / "metrics.jsonl").open())


@pytest.mark.slow
def test_recorded_experts_take_the_largest_mismatch_of_a_run_away(whole, moe_start, tmp_path):
    """In bfloat16, of fresh and of all tokens: 0.47 and 1.6 nats without records, 0.02 and 0.06 with them."""
    train(prepared(moe_config(moe_start, record_experts=False), tmp_path))
    for name in ("mismatch_same_version/max", "mismatch/max"):
        assert largest(tmp_path, name) > 5 * largest(whole, name) > 0, name
    assert largest(whole, "staleness/max") >= 2, "no rollout saw several versions"


@pytest.mark.slow
def test_runs_with_records_go_on_and_replay_bit_for_bit(whole, moe_start, tmp_path, monkeypatch):
    """Ended after a checkpoint, and in the middle of a step with rollouts under way."""
    assert replay(prepared(moe_config(moe_start), whole)) == 6
    train(prepared(moe_config(moe_start, steps=1, save_every=100), tmp_path))
    advance, pieces = RolloutBuffer.advance, []

    def interrupted(self, *arguments):
        advance(self, *arguments)
        pieces.append(self.version)
        if pieces.count(3) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutBuffer, "advance", interrupted)
        with pytest.raises(Interrupted, match="saved at step 3"):
            train(prepared(moe_config(moe_start), tmp_path))
    train(prepared(moe_config(moe_start), tmp_path))
    assert_same_end(whole, tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()
