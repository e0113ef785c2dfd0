"""The loop of reinforcement learning without the world around it: one call of `Learner.step` is one weight version.

Its events, which make the log of a run, are JSON objects of six kinds:

    prompt     which task a prompt was drawn
    refused    a task of which no prompt can come, such as one longer than the context; another one is drawn
    generated  the pieces in which each rollout got tokens of these weights, how many, its status; a digest of all;
               whose environments answered before which piece, where that depends on the clock
    taken      the prompts of a batch, and those whose answers all broke
    update     the prompts of an optimisation step, a digest of its arrays, its loss and the norm of its gradient
    version    the weights moved on; the rollouts that have grown too old
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.envs import Task
from ling_jax.envs.sources import TaskSource, task_of, tasks
from ling_jax.objectives import group_advantages
from ling_jax.rewards import PassRates, check_reward, observe, sampling_probabilities, unseen
from ling_jax.rl.accounts import ledger_metrics
from ling_jax.rl.answers import Answer
from ling_jax.rl.batch import Batch
from ling_jax.rl.buffer import Group, RolloutBuffer
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RLConfig, limits_of
from ling_jax.rl.episode import Episode, EpisodeRequest, Refused
from ling_jax.rl.episode_answers import answers_of
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards
from ling_jax.rl.trajectory import FAILED
from ling_jax.rl.unscored import drop_unscored, unscored
from ling_jax.rl.updates import Update, summarised
from ling_jax.train.state import TrainState

ROUND_OFF = 1e-6  # that a reward may pass its bounds by
MAX_REFUSED = 100  # tasks in a row of which no prompt can come, before a run gives up; our choice
FAILURES_SEEN = (32, 128)  # rollouts that end before failures are judged, and the last ones that are; our choice

Event = dict[str, Any]
Learn = Callable[[TrainState, Sequence[Answer], int], tuple[TrainState, list[Update]]]  # (state, answers, version)

_advantages = jax.jit(group_advantages)


class TooManyFailures(RuntimeError):
    """Environments or machinery fail so often that the run had better end."""


class Step(NamedTuple):
    """What one step leaves behind."""

    events: list[Event]  # every decision, in order
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Learner:
    """Generates under the weights it has, learns from the groups that are complete, and so on.

    Interleaved and deterministic: a step depends on the config, the state and nothing else, but the seconds in its
    metrics, and environments whose answers come when the clock says. `learn` is `ling_jax.rl.updates.learn`
    with its programs; it uses up the state that it is given.
    """

    def __init__(self, config: RLConfig, reward: Reward, collector: Collector, learn: Learn, state: TrainState):
        self.config, self.reward, self.collector, self.learn, self.state = config, reward, collector, learn, state
        self.events: list[Event] = []
        self.rollouts = RolloutBuffer(limits_of(config.rollout), self._draw, self._emit)
        self.rates = unseen(sum(source.size for source in config.tasks))
        self.memory: Any = None  # the reward's
        self.ended: list[str] = []  # statuses of the last rollouts that ended
        self._questions = {source.path: _digest_of_tasks(source) for source in config.tasks if source.path}
        self.scored: list[str] = []  # of the last answers: why the reward failed, "" where it did not
        self._generating = False  # whether a step has begun whose batch was not learnt from
        self._seconds = 0.0  # of generation in this step
        self._loaded: int | None = None  # the version of the collector's weights

    @property
    def reader(self) -> Reader:
        return self.collector.reader

    def step(
        self,
        tell: Callable[[int, int, int], None] = lambda *progress: None,
        stopped: Callable[[], bool] = lambda: False,
        arrivals: Mapping[int, Sequence[int]] | None = None,
    ) -> Step | None:
        """One harvest of the token budget, the optimisation steps on it, the next version.

        `tell(version, tokens generated so far, rollouts under way)` is called after each piece of decoding, and
        `stopped()` is asked: where it says so, None is returned at once, and the next call goes on there. `arrivals`,
        {piece: rollouts}, says whose environments have to answer before which piece, for a replay, which no failures
        end. Raises `TooManyFailures` between two pieces, and ValueError on a reward that is not finite or out of its
        range; then the next call goes on there, too.
        """
        if not self._generate(tell, stopped, arrivals) or stopped():
            return None
        begun = time.perf_counter()
        # What may raise comes first: a step that fails there is saved as one that has generated and not learnt.
        rollouts, drawn = self.rollouts, self.rollouts.batch
        told = {"generated_tokens": rollouts.ledger.generated, "outstanding": rollouts.ledger.outstanding}
        paid, memory = self._pay(drawn, judged=arrivals is None)
        rates = _observed(self.rates, drawn, rollouts.version)
        groups, rewards = drop_unscored(drawn, paid)
        state, updates, metrics = self._learn(groups, rewards)
        without_reward = unscored(drawn, paid)
        for i, error in without_reward.items():
            print(f"rollout {i} has no reward: {error}", flush=True)
        rollouts.take(tuple(without_reward))
        self.state, self.rates, self.memory = state, rates, memory
        self.events += updates
        rollouts.move_on()
        self._generating = False
        metrics |= {"generate_seconds": self._seconds, "train_seconds": time.perf_counter() - begun}
        metrics |= reward_metrics(groups, rewards) | self._lost() | {"reward_failed": len(without_reward)}
        metrics |= ledger_metrics(rollouts.ledger, rollouts.recent) | told
        return Step(self.events, metrics, samples(groups, rewards, self.reader, self.config.train.samples))

    def to_json(self) -> dict[str, Any]:
        """All but the weights, between two steps or two pieces of decoding."""
        seen = np.flatnonzero(self.rates.seen)
        columns = (self.rates.estimate, self.rates.seen, self.rates.first_solved)
        rates = [[i, *values] for i, *values in zip(seen.tolist(), *(c[seen].tolist() for c in columns), strict=True)]
        step = {"events": self.events, "seconds": self._seconds} if self._generating else None
        return {
            "rollouts": self.rollouts.to_json(),
            "rates": rates,
            "memory": self.memory,
            "questions": self._questions,
            "step": step,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """What `to_json` gave; the state is given when a learner is made.

        Raises ValueError where the questions of a file are not those of the record.
        """
        for path, told in record.get("questions", {}).items():
            if self._questions.get(path) != told:
                raise ValueError(f"{path} holds other questions than the run began with; restore it, or begin anew")
        self.rollouts.restore(record["rollouts"], lambda number: task_of(self.config.tasks, number))
        rates = unseen(len(self.rates.seen))
        for i, estimate, seen, first_solved in record["rates"]:
            rates.estimate[i], rates.seen[i], rates.first_solved[i] = estimate, seen, first_solved
        self.rates, self.memory = rates, record["memory"]
        self._loaded, self._generating = None, record["step"] is not None
        if self._generating:
            self.events, self._seconds = record["step"]["events"], record["step"]["seconds"]

    def _generate(
        self,
        tell: Callable[[int, int, int], None],
        stopped: Callable[[], bool],
        arrivals: Mapping[int, Sequence[int]] | None,
    ) -> bool:
        """Pieces of decoding until the version has enough; False where `stopped` said so before."""
        begun, rollouts = time.perf_counter(), self.rollouts
        if not self._generating:
            self.events, self._seconds, self._generating = [], 0.0, True
        rollouts.top_up()  # also where drawing had failed
        with self.collector.generating():
            self._decode(tell, stopped, arrivals)
        self._seconds += time.perf_counter() - begun
        return not rollouts.ledger.is_open

    def _decode(self, tell, stopped, arrivals) -> None:
        rollouts = self.rollouts
        while rollouts.ledger.is_open and not stopped():
            if self._loaded != rollouts.version:  # not where a version generates nothing: no context is read again
                self.collector.load(self.state.params, rollouts.version)
                self._loaded = rollouts.version
            moved = self.collector.advance(rollouts.running, arrivals and arrivals.get(rollouts.pieces, ()))
            rollouts.advance(moved, self.collector.arrived)
            if arrivals is None:
                self._note_ends([progress.id for progress in moved if progress.ended])
            tell(rollouts.version, rollouts.ledger.generated, len(rollouts.ledger.running))

    def _note_ends(self, ids: Sequence[int]) -> None:
        """Raises `TooManyFailures` where more of the last rollouts failed than may."""
        statuses = [self.rollouts.episodes[i].trajectory.status for i in ids]
        self.ended = [*self.ended, *statuses][-FAILURES_SEEN[1] :]
        failed = sum(status in FAILED for status in self.ended)
        if statuses and self._are_too_many(failed, len(self.ended)):
            errors = [e.error for e in self.rollouts.episodes.values() if e.failed and e.error]
            raise TooManyFailures(
                f"{failed} of the last {len(self.ended)} rollouts failed, and train.max_failed_share is "
                f"{self.config.train.max_failed_share}; the last error: {errors[-1] if errors else 'none is on record'}"
            )

    def _note_rewards(self, rewards: Sequence[Rewards]) -> None:
        """Raises `TooManyFailures` where more of the last answers have no reward than may."""
        errors_of_all = (error for reward in rewards for error in reward.errors or [""] * len(reward.total))
        self.scored = [*self.scored, *errors_of_all][-FAILURES_SEEN[1] :]
        errors = [error for error in self.scored if error]
        if self._are_too_many(len(errors), len(self.scored)):
            raise TooManyFailures(
                f"reward {self.config.reward!r} failed for {len(errors)} of the last {len(self.scored)} answers, and "
                f"train.max_failed_share is {self.config.train.max_failed_share}; the last error: {errors[-1]}"
            )

    def _are_too_many(self, failed: int, seen: int) -> bool:
        return seen >= FAILURES_SEEN[0] and failed > self.config.train.max_failed_share * seen

    def _emit(self, kind: str, record: dict[str, Any]) -> None:
        self.events.append({"kind": kind, **record})

    def _draw(self, first: int, count: int) -> list[Episode]:
        """The episodes of the next prompts. A prompt's task depends on the seed, its number and the pass rates."""
        steps = self.config.train.dpr_steps
        weights = sampling_probabilities(self.rates, steps) if steps else None
        told = len(self.events)
        try:
            return [e for prompt in range(first, first + count) for e in self._draw_prompt(prompt, weights)]
        except BaseException:
            del self.events[told:]  # the next call draws the same prompts again
            raise

    def _draw_prompt(self, prompt: int, weights: np.ndarray | None) -> list[Episode]:
        """Another task is drawn where one cannot be asked: its prompt is longer than the context, say."""
        rng, size = np.random.default_rng((self.config.train.seed, prompt)), self.config.rollout.group_size
        for _ in range(MAX_REFUSED):
            number = int(rng.choice(len(self.rates.seen), p=weights))
            try:
                task = task_of(self.config.tasks, number)
                begun = self.reader.begin([self._request(prompt * size + i, number, task) for i in range(size)])
                reason = next((found.reason for found in begun if isinstance(found, Refused)), "")
            except ValueError as error:  # the environment makes no task of this seed
                reason = str(error)
            if not reason:
                self._emit("prompt", {"prompt": prompt, "task": number})
                return begun
            self._emit("refused", {"prompt": prompt, "task": number, "reason": reason})
            print(f"prompt {prompt}: {reason}; another task is drawn", flush=True)
        raise TooManyFailures(f"{MAX_REFUSED} tasks in a row cannot be asked; the last one: {reason}")

    def _request(self, i: int, number: int, task: Task) -> EpisodeRequest:
        efforts, place = self.config.efforts, i % self.config.rollout.group_size
        return EpisodeRequest(
            id=i,
            number=number,
            task=task,
            seed=int(np.random.SeedSequence((self.config.train.seed, i)).generate_state(1)[0]),
            effort=efforts[place % len(efforts)] if efforts else None,
        )

    def _pay(self, groups: Sequence[Group], *, judged: bool) -> tuple[list[Rewards], Any]:
        """(rewards, what the reward remembers). Raises ValueError on a reward that is not finite or out of its range,
        and, where that is `judged`, `TooManyFailures`."""
        rewards, memory = self.reward.pay([group.paid for group in groups], self.reader, self.memory)
        low, high = self.reward.low - ROUND_OFF, self.reward.high + ROUND_OFF
        for group, reward in zip(groups, rewards, strict=True):
            scored = reward.total[[not error for error in reward.errors]] if reward.errors else reward.total
            check_reward(scored, low, high, f"reward {self.config.reward!r} of prompt {group.prompt}")
        if judged:
            self._note_rewards(rewards)
            self.reward.accepted()
        return rewards, memory

    def _learn(
        self, groups: Sequence[Group], rewards: Sequence[Rewards]
    ) -> tuple[TrainState, list[Event], dict[str, Any]]:
        """(the state after the optimisation steps, their events, their metrics)."""
        rollout, version = self.config.rollout, self.rollouts.version
        advantages = advantages_of(groups, rewards, (rollout.prompts_per_step, rollout.group_size))
        teacher_of = self.config.teacher_of if self.config.teachers else None
        answers = answers_of(groups, advantages, self.reader, version=version, teacher_of=teacher_of)
        state, updates = self.learn(self.state, answers, version)
        without_spread = share_without_spread(advantages[: len(groups)])
        events = [_event_of(update, groups) for update in updates]
        return state, events, summarised(updates) | {"groups_without_spread": without_spread}

    def _lost(self) -> dict[str, int]:
        """Rollouts that have left without a reward in this step, and tasks that could not be asked."""
        (generated,) = (event for event in self.events if event["kind"] == "generated")
        statuses = [status for *_, status in generated["rollouts"].values()]
        return {
            "discarded": self.rollouts.discarded,
            **{status: statuses.count(status) for status in FAILED},
            "refused": sum(event["kind"] == "refused" for event in self.events),
        }


def advantages_of(groups: Sequence[Group], rewards: Sequence[Rewards], shape: tuple[int, int]) -> np.ndarray:
    """[groups, group_size] float32 of that shape; 0 for answers without a reward and where there is no group."""
    totals, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for row, (group, reward) in enumerate(zip(groups, rewards, strict=True)):
        valid[row] = group.valid
        totals[row, valid[row]] = reward.total
    return np.asarray(_advantages(totals, valid))


def _event_of(update: Update, groups: Sequence[Group]) -> Event:
    prompts = [groups[i].prompt for i in update.groups]
    numbers = {name: repr(update.metrics[name]) for name in ("loss", "grad_norm")}
    return {"kind": "update", "prompts": prompts, "batch": digest(update.batch), **numbers}


def share_without_spread(advantages: np.ndarray) -> float:
    """The share of groups [groups, group_size] whose answers are all worth the same: no gradient comes from them."""
    return float(np.mean(~advantages.any(axis=1))) if len(advantages) else 0.0


def _digest_of_tasks(source: TaskSource) -> str:
    """Of all tasks in their order: pass rates belong to their numbers."""
    whole = hashlib.blake2b(digest_size=16)
    for task in tasks(source):
        whole.update(task.id.encode())
    return whole.hexdigest()


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
