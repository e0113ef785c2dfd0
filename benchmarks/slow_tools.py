"""What a step takes whose environments are slow: they act beside each other and beside decoding."""

import asyncio
import dataclasses
import time

import jax

from ling_jax import data, model
from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.config import model_config
from ling_jax.envs import StepResult
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
        _step(collector, 0.0)  # compiles
        return min(_step(collector, SECONDS) for _ in range(TRIES)) / SECONDS


class SlowTool:
    """A session whose first step takes the seconds that its task says; the second one ends the episode."""

    replayable = True

    async def open(self, task, seed) -> None:
        """Nothing has been asked."""
        self._seconds, self._outcome, self._steps = task.hidden["seconds"], 1.0, 0

    async def step(self, action) -> StepResult:
        """A tool's answer, or the end."""
        self._steps += 1
        if self._steps == 2:
            return StepResult([], {"outcome": self._outcome}, True, False, None)
        await asyncio.sleep(self._seconds)
        return StepResult([{"role": "tool", "content": "2"}], {}, False, False, None)

    async def close(self) -> None:
        """Nothing is held."""


class SlowTools:
    """Running sums whose tool is slow."""

    make_task = staticmethod(running_sums.make_task)
    session = SlowTool


def _step(collector: Collector, seconds: float) -> float:
    """Seconds until all episodes have ended."""
    episodes = _episodes(collector.reader, seconds)
    begun = time.perf_counter()
    ended = list(play(collector, episodes))
    seconds = time.perf_counter() - begun
    finished = sum(episode.trajectory.status == "finished" for episode in ended)
    assert finished == EPISODES, f"only {finished} of {EPISODES} episodes used their tool and went on"
    return seconds


def _episodes(reader: Reader, seconds: float) -> list[Episode]:
    task = dataclasses.replace(
        running_sums.make_task(0, 1),
        environment="benchmarks.slow_tools:SlowTools",
        hidden={"seconds": seconds},
        max_turns=2,
        max_tokens=100,
    )
    return reader.begin_all([EpisodeRequest(i, 0, task, seed=i) for i in range(EPISODES)])


if __name__ == "__main__":
    print(f"slow_tools_step_over_slowest {slow_tools_step_over_slowest():.3f} (claim: <= 1.1)")
