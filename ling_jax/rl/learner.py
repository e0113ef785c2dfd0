"""The loop of reinforcement learning without the world around it: one call of `Learner.step` is one weight version.

Its events, which make the log of a run, are JSON objects of five kinds:

    prompt     which task a prompt was drawn
    slice      tokens that each rollout got in a piece of decoding, its status, and a digest of all of them
    staleness  a record of `ling_jax.rl.staleness`: what happened, who may start, who was discarded
    iteration  a record of `ling_jax.rl.token_budget`: who was purged, resumed, added, completed and paused
    update     the prompts of a batch, a digest of its arrays, its loss and the norm of its gradient
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.envs.sources import task_of
from ling_jax.objectives import group_advantages
from ling_jax.rewards import PassRates, check_reward, observe, sampling_probabilities, unseen
from ling_jax.rl.batch import loss_scale, make_batch
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RLConfig, budget_of, limits_of
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards
from ling_jax.rl.rollouts import Group, Rollouts
from ling_jax.rl.step import Batch
from ling_jax.rl.trajectory import FAILED
from ling_jax.train.state import TrainState

ROUND_OFF = 1e-6  # that a reward may pass its bounds by

Event = dict[str, Any]
Update = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]

_advantages = jax.jit(group_advantages)


class Step(NamedTuple):
    """What one step leaves behind."""

    events: list[Event]  # every decision, in order
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Learner:
    """Generates under the weights it has, learns from the groups that are complete, and so on.

    Interleaved and deterministic: a step depends on the config, the state and nothing else, but the seconds in its
    metrics. `update` is the compiled `make_rl_step`, which uses up the state that it is given.
    """

    def __init__(self, config: RLConfig, reward: Reward, collector: Collector, update: Update, state: TrainState):
        self.config, self.reward, self.collector, self.update, self.state = config, reward, collector, update, state
        rollout = config.rollout
        self.events: list[Event] = []
        self.rollouts = Rollouts(budget_of(rollout), limits_of(rollout), rollout.group_size, self._draw, self._emit)
        self.rates = unseen(sum(source.size for source in config.tasks))
        self.memory: Any = None  # the reward's

    def step(self, tell: Callable[[int, int, int], None] = lambda *progress: None) -> Step:
        """One harvest of the token budget, one optimisation step, the next version.

        `tell(version, tokens generated so far, rollouts under way)` is called after each slice.
        """
        begun, self.events = time.perf_counter(), []
        self.rollouts.begin()
        self.collector.load(self.state.params, self.rollouts.version)
        while self.rollouts.is_open:
            self.rollouts.advance(self.collector.advance(self.rollouts.running))
            tell(self.rollouts.version, self.rollouts.pool.generated, len(self.rollouts.pool.active))
        generated = time.perf_counter()
        groups = self.rollouts.harvest(self.config.rollout.prompts_per_step)
        rewards = self._pay(groups)
        self.rates = _observed(self.rates, groups, self.rollouts.version)
        metrics = self._learn(groups, rewards)
        metrics |= {"generate_seconds": generated - begun, "train_seconds": time.perf_counter() - generated}
        metrics |= reward_metrics(groups, rewards) | {"generated_tokens": self.rollouts.pool.generated}
        self.rollouts.close()
        metrics |= self._lost() | {"waiting": len(self.rollouts.episodes)}
        told = samples(groups, rewards, self.collector.reader, self.config.train.samples)
        return Step(self.events, metrics, told)

    def to_json(self) -> dict[str, Any]:
        """All but the weights, between two steps."""
        seen = np.flatnonzero(self.rates.seen)
        columns = (self.rates.estimate, self.rates.seen, self.rates.first_solved)
        rates = [[i, *values] for i, *values in zip(seen.tolist(), *(c[seen].tolist() for c in columns), strict=True)]
        return {"rollouts": self.rollouts.to_json(), "rates": rates, "memory": self.memory}

    def restore(self, record: dict[str, Any]) -> None:
        """What `to_json` gave; the state is given when a learner is made."""
        self.rollouts.restore(record["rollouts"], lambda number: task_of(self.config.tasks, number))
        rates = unseen(len(self.rates.seen))
        for i, estimate, seen, first_solved in record["rates"]:
            rates.estimate[i], rates.seen[i], rates.first_solved[i] = estimate, seen, first_solved
        self.rates, self.memory = rates, record["memory"]

    def _emit(self, kind: str, record: dict[str, Any]) -> None:
        self.events.append({"kind": kind, **record})

    def _draw(self, first: int, count: int) -> list[Episode]:
        """The episodes of the next prompts. A prompt's task depends on the seed, its number and the pass rates."""
        config, requests = self.config, []
        steps = config.train.dpr_steps
        weights = sampling_probabilities(self.rates, steps) if steps else None
        for prompt in range(first, first + count):
            rng = np.random.default_rng((config.train.seed, prompt))
            number = int(rng.choice(len(self.rates.seen), p=weights))
            self._emit("prompt", {"prompt": prompt, "task": number})
            size = config.rollout.group_size
            requests += [self._request(prompt * size + i, number) for i in range(size)]
        return self.collector.reader.begin_all(requests)

    def _request(self, i: int, number: int) -> EpisodeRequest:
        efforts, place = self.config.efforts, i % self.config.rollout.group_size
        return EpisodeRequest(
            id=i,
            number=number,
            task=task_of(self.config.tasks, number),
            seed=int(np.random.SeedSequence((self.config.train.seed, i)).generate_state(1)[0]),
            effort=efforts[place % len(efforts)] if efforts else None,
        )

    def _pay(self, groups: Sequence[Group]) -> list[Rewards]:
        """Raises ValueError on a reward that is not finite or out of its range."""
        rewards, self.memory = self.reward.pay([group.paid for group in groups], self.collector.reader, self.memory)
        low, high = self.reward.low - ROUND_OFF, self.reward.high + ROUND_OFF
        for group, reward in zip(groups, rewards, strict=True):
            check_reward(reward.total, low, high, f"reward {self.config.reward!r} of prompt {group.prompt}")
        return rewards

    def _learn(self, groups: Sequence[Group], rewards: Sequence[Rewards]) -> dict[str, Any]:
        config, rows = self.config, self.config.rows
        scale = loss_scale(config.objective.name, config.objective.options, groups, rows)
        batch = make_batch(
            groups,
            advantages_of(groups, rewards, (config.rollout.prompts_per_step, config.rollout.group_size)),
            self.collector.reader,
            rows=rows,
            version=self.rollouts.version,
            scale=scale,
        )
        self.state, metrics = self.update(self.state, batch)
        metrics = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
        record = {"prompts": [group.prompt for group in groups], "batch": digest(batch)}
        self._emit("update", record | {name: repr(metrics[name]) for name in ("loss", "grad_norm")})
        return metrics

    def _lost(self) -> dict[str, int]:
        """Rollouts that have left without a reward in this step: paused too often, too old, broken."""
        told = lambda kind: [event for event in self.events if event["kind"] == kind]  # noqa: E731
        statuses = [status for event in told("slice") for _, status in event["rollouts"].values()]
        return {
            "purged": sum(len(event["purged"]) for event in told("iteration")),
            "stale": sum(len(event["discarded"]) for event in told("staleness")),
            "failed": sum(map(statuses.count, FAILED)),
        }


def advantages_of(groups: Sequence[Group], rewards: Sequence[Rewards], shape: tuple[int, int]) -> np.ndarray:
    """[groups, group_size] float32 of that shape; 0 for answers without a reward and where there is no group."""
    totals, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for row, (group, reward) in enumerate(zip(groups, rewards, strict=True)):
        valid[row] = group.valid
        totals[row, valid[row]] = reward.total
    return np.asarray(_advantages(totals, valid))


def digest(batch: Batch) -> str:
    """Of all its bits."""
    whole = hashlib.blake2b(digest_size=16)
    for array in jax.tree.leaves(batch):
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def reward_metrics(groups: Sequence[Group], rewards: Sequence[Rewards]) -> dict[str, float]:
    """Means over the answers that have a reward; 0 where there are none."""
    paid = [episode for group in groups for episode in group.paid]
    parts = dict.fromkeys(name for reward in rewards for name in reward.parts)
    metrics = {f"reward/{name}": _mean([r.parts[name] for r in rewards]) for name in parts}
    return metrics | {
        "reward": _mean([reward.total for reward in rewards]),
        "accuracy": _mean([[episode.outcome for episode in paid]]),
        "tokens_per_answer": _mean([[episode.drawn for episode in paid]]),
        "cut_off": _mean([[episode.trajectory.status == "truncated" for episode in paid]]),
        "unreadable": _mean([[bool(episode.error) for episode in paid]]),
        "answers": len(paid),
        "groups": len(groups),
    }


def samples(groups: Sequence[Group], rewards: Sequence[Rewards], reader: Reader, most: int) -> list[dict[str, Any]]:
    """The first answers of a batch, to be read."""
    found = []
    for group, reward in zip(groups, rewards, strict=True):
        for i, episode in enumerate(group.paid):
            if len(found) == most:
                return found
            parts = {name: float(values[i]) for name, values in reward.parts.items()}
            told = {"prompt": episode.task.prompt, "text": reader.text(episode.trajectory.completion_ids)}
            state = {"status": episode.trajectory.status, "tokens": episode.drawn, "effort": episode.effort}
            found.append({"rollout": episode.id, **told, **state, "reward": float(reward.total[i]), "parts": parts})
    return found


def _observed(rates: PassRates, groups: Sequence[Group], step: int) -> PassRates:
    solved = [[episode.outcome for episode in group.paid] for group in groups]
    numbers = [next(e.number for e in group.episodes if e is not None) for group in groups]
    return observe(rates, numbers, [float(np.mean(outcomes)) for outcomes in solved], step)


def _mean(values: Sequence[Sequence[float]]) -> float:
    flat = np.concatenate([np.asarray(part, np.float64) for part in values]) if values else np.zeros(0)
    return float(flat.mean()) if flat.size else 0.0
