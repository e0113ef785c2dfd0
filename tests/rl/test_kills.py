"""Parts of an asynchronous run fail at random: nothing counts twice or is lost, and what was learnt can be replayed."""

import collections
import json
import random
import threading

import pytest

from ling_jax.align.rewards import configured_reward
from ling_jax.chat.end_tokens import end_ids
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.engine import Engine
from ling_jax.envs import InfraError, find
from ling_jax.rl import loop
from ling_jax.rl.collector import Collector
from ling_jax.rl.loop import train
from ling_jax.rl.prepare import prepare
from ling_jax.rl.replay import replay
from tests.helpers.chatty import Chatty, Delayed
from tests.helpers.event_log import check_log
from tests.helpers.rl_run import prepared, small_config, tokenizer

pytestmark = pytest.mark.usefixtures("compiled_once")
SHARES = {"engine": 0.3, "session": 0.05, "sync": 0.2, "trainer": 0.15}  # of calls that fail


class Killed(RuntimeError):
    """A part of the run was killed."""


class Faults:
    """Lets calls of parts fail, each part's second one among them, and counts them."""

    def __init__(self, seed):
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self._calls, self.counts = collections.Counter(), collections.Counter()
        self.on = True

    def strike(self, part, error=Killed):
        with self._lock:
            self._calls[part] += self.on
            if self.on and (self._calls[part] == 2 or self._rng.random() < SHARES[part]):
                self.counts[part] += 1
                raise error(f"{part} killed")


@pytest.fixture
def faults(monkeypatch):
    """Faults in the engines' steps, the environments' steps, the weights' way to the engines and the optimisation."""
    made = Faults(0)
    step, prepare_weights, learn = Engine.step, Collector.prepare, loop.learn

    class Broken(Delayed):
        async def step(self, action):
            made.strike("session", InfraError)
            return await super().step(action)

    def struck(part, function):
        def call(*arguments):
            made.strike(part)
            return function(*arguments)

        return call

    monkeypatch.setattr(Chatty, "session", staticmethod(lambda: Broken(lambda task, seed: (), Chatty.step)))
    monkeypatch.setitem(find._SHIPPED, "running_sums", Chatty)
    monkeypatch.setattr(ModelFolder, "end_ids", frozenset(range(7, 60)) | end_ids(tokenizer()))
    monkeypatch.setattr(Engine, "step", struck("engine", step))
    monkeypatch.setattr(Collector, "prepare", struck("sync", prepare_weights))
    monkeypatch.setattr(loop, "learn", struck("trainer", learn))
    return made


def run_to_the_end(config, workdir, faults):
    """The same command until it is done; how often it had to be given. Its checks before the first step are spared."""
    for number in range(1, 200):
        faults.on = False
        run = prepare(config, configured_reward(config, workdir), workdir)
        faults.on = True
        try:
            train(run)
        except Exception as error:
            assert "killed" in str(error), error
        else:
            return number
    raise AssertionError("the run does not end")


def check_accounts(workdir, config):
    """Each rollout that was begun was learnt from, thrown away, or is under way in the last checkpoint."""
    events = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    rollout = config.rollout
    left = check_log(
        events,
        max_staleness=rollout.max_staleness,
        max_retention=rollout.max_retention,
        prompts_per_step=rollout.prompts_per_step,
        group_size=rollout.group_size,
    )
    with orbax.open_manager(workdir / "checkpoints", keep=config.train.keep) as manager:
        under_way = {e["id"] for e in orbax.restore_record(manager, "learner")["rollouts"]["episodes"]}
    prompts = [event["prompt"] for event in events if event["kind"] == "prompt"]
    assert prompts == list(range(len(prompts)))
    begun = {i for prompt in prompts for i in range(prompt * rollout.group_size, (prompt + 1) * rollout.group_size)}
    assert begun == left.keys() | under_way and not left.keys() & under_way


def killed_run(start, folder, faults, steps, kills):
    rollout = dict(engines=2, slots=8, episodes=16, overlap=True, max_tokens=24, context=184)
    config = small_config(start, reward="outcome", rollout=rollout, steps=steps, save_every=1, max_failed_share=0.9)
    run_to_the_end(config, folder, faults)
    assert sum(faults.counts.values()) >= kills and faults.counts.keys() == SHARES.keys()
    check_accounts(folder, config)
    faults.on = False
    assert replay(prepared(config, folder)) == steps
    return faults.counts


def test_a_run_whose_parts_fail_counts_each_rollout_once_and_replays(start, tmp_path, faults):
    killed_run(start, tmp_path, faults, steps=3, kills=4)


@pytest.mark.slow
def test_fifty_kills_over_all_parts(start, tmp_path, faults):
    print(dict(killed_run(start, tmp_path, faults, steps=50, kills=50)))
