"""What a step takes whose environments are slow: they act beside each other and beside decoding."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from unittest import mock

import jax

from ling_jax import data, model
from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.config import model_config
from ling_jax.envs import ENVIRONMENTS, StepResult
from ling_jax.envs.reasoning import running_sums
from ling_jax.rl.collector import Collector, play
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.reader import Reader

EPISODES, SECONDS, TRIES = 16, 1.0, 3
CONFIG = model_config(
    "tiny-2.6", vocab_size=263, hidden_size=32, num_layers=2, layer_group_size=2, first_dense_layers=2, num_heads=2,
    num_norm_groups=2, q_lora_rank=16, kv_lora_rank=16, mtp_depth=0, max_length=256,
)  # fmt: skip
ENDS = frozenset(range(7, 60))  # so that a random model ends its turns


def slow_tools_step_over_slowest() -> float:
    """Seconds in which 16 episodes end whose tools take a second each, over that second; the best of three."""
    tokenizer = data.train_bpe([], CONFIG.vocab_size)
    reader = Reader(tokenizer, ChatTemplate(), ENDS | end_ids(tokenizer), CONFIG.max_length)
    with Collector(CONFIG, reader, EPISODES) as collector:
        collector.load(jax.jit(model.init, static_argnums=1)(jax.random.key(0), CONFIG))
        _step(collector, lambda: SlowTool(0.0))  # compiles
        return min(_step(collector, lambda: SlowTool(SECONDS)) for _ in range(TRIES)) / SECONDS


class SlowTool:
    """A session whose first step takes so many seconds; the second one ends the episode."""

    replayable = True

    def __init__(self, seconds: float):
        self._seconds, self._steps = seconds, 0

    async def open(self, task, seed) -> None:
        """Nothing to be done."""

    async def step(self, action) -> StepResult:
        """A tool's answer, or the end."""
        self._steps += 1
        if self._steps == 2:
            return StepResult([], {"outcome": 1.0}, True, False, None)
        await asyncio.sleep(self._seconds)
        return StepResult([{"role": "tool", "content": "2"}], {}, False, False, None)

    async def close(self) -> None:
        """Nothing is held."""


def _step(collector: Collector, session: Callable[[], SlowTool]) -> float:
    """Seconds until all episodes have ended."""
    with mock.patch.dict(ENVIRONMENTS, {"running_sums": _Environment(session)}):
        episodes = _episodes(collector.reader)
        begun = time.perf_counter()
        ended = list(play(collector, episodes))
        seconds = time.perf_counter() - begun
    finished = sum(episode.trajectory.status == "finished" for episode in ended)
    assert finished == EPISODES, f"only {finished} of {EPISODES} episodes used their tool and went on"
    return seconds


def _episodes(reader: Reader) -> list[Episode]:
    task = dataclasses.replace(running_sums.make_task(0, 1), max_turns=2, max_tokens=100)
    return reader.begin_all([EpisodeRequest(i, 0, task, seed=i) for i in range(EPISODES)])


class _Environment:
    """Running sums with other sessions."""

    def __init__(self, session: Callable[[], SlowTool]):
        self.session = session


if __name__ == "__main__":
    print(f"slow_tools_step_over_slowest {slow_tools_step_over_slowest():.3f} (claim: <= 1.1)")
