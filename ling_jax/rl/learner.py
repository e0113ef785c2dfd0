"""The loop of reinforcement learning without the world around it: one call of `Learner.step` is one weight version.

Its events, which make the log of a run, are JSON objects of five kinds:

    prompt     which task a prompt was drawn
    refused    a task of which no prompt can come, such as one longer than the context; another one is drawn
    taken      the prompts of a batch, and those whose answers all broke; of each of their rollouts the weight versions
               with how many tokens each, the status, and a digest of tokens and log-probs
    update     the prompts of an optimisation step, a digest of its arrays, its loss and the norm of its gradient
    version    the weights moved on, and the digest of the new ones; the rollouts that have grown too old

Which slot or engine a rollout had, in which pieces it was decoded and when is in none of them: no token depends on it.
"""

import concurrent.futures
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.envs.coding.integrity import record_of
from ling_jax.envs.sources import TaskSource, task_of, tasks
from ling_jax.messages import error_text
from ling_jax.rewards import PassRates, observe, sampling_probabilities, unseen
from ling_jax.rl.accounts import ledger_metrics, use_metrics
from ling_jax.rl.answers import Answer
from ling_jax.rl.atif import to_atif
from ling_jax.rl.batch import Batch
from ling_jax.rl.buffer import Group, RolloutBuffer, Span
from ling_jax.rl.collector import Collector, Progress
from ling_jax.rl.config import RLConfig, limits_of
from ling_jax.rl.episode import Episode
from ling_jax.rl.errors import ErrorLog
from ling_jax.rl.failures import FailureShare, TooManyFailures
from ling_jax.rl.harvest import Harvest, answers_to_learn, harvest_of, reward_metrics, share_without_spread
from ling_jax.rl.pool import Pool
from ling_jax.rl.prompts import MAX_REFUSED, draws_of
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards
from ling_jax.rl.trajectory import FAILED
from ling_jax.rl.updates import Update, summarised
from ling_jax.train.state import TrainState

MAX_ATTEMPTS = 3  # to bring weights to the engines; our choice
WAIT_SECONDS = 0.02  # between two looks at an optimisation step beside which there is nothing to generate; our choice

Event = dict[str, Any]
Learn = Callable[[TrainState, Sequence[Answer], int], tuple[TrainState, list[Update]]]  # (state, answers, version)
Tell = Callable[[int, int, int], None]  # (version, tokens generated so far, rollouts under way)
Stopped = Callable[[], bool]


class Step(NamedTuple):
    """What one step leaves behind."""

    events: list[Event]  # every decision, in order
    metrics: dict[str, Any]
    samples: list[dict[str, Any]]
    spans: list[Span]  # when its rollouts got their tokens
    trajectories: list[dict[str, Any]]  # the samples as ATIF (`ling_jax.rl.atif`)
    episodes: list[dict[str, Any]]  # of the batch, failed ones too, as `envs.coding.integrity` counts them


class Learner:
    """Generates under the weights it has, learns from the groups that are complete, and so on.

    Without a `trainer` it is interleaved and deterministic: a step depends on the config, the state and nothing else,
    but the seconds in its metrics, and environments whose answers come when the clock says. With one, a thread, and
    where the config lets rollouts go on under newer weights, generation goes on while the weights learn. `learn` is
    `ling_jax.rl.updates.learn` with its programs; it uses up the state that it is given.
    """

    def __init__(
        self,
        config: RLConfig,
        reward: Reward,
        collector: Collector | Pool,
        learn: Learn,
        state: TrainState,
        trainer: concurrent.futures.Executor | None = None,
        errors: ErrorLog | None = None,
    ):
        self.config, self.reward, self.collector, self.learn, self.state = config, reward, collector, learn, state
        self.trainer = trainer if config.rollout.max_staleness and config.rollout.max_retention else None
        self.errors = errors or ErrorLog(None)
        self.events: list[Event] = []
        self.rollouts = RolloutBuffer(limits_of(config.rollout), self._draw, self._emit)
        self.rates = unseen(sum(source.size for source in config.tasks))
        self.memory: Any = None  # the reward's
        self.learning = False  # whether a batch has left the rollouts that the weights have not learnt from yet
        share = config.train.max_failed_share
        self._ended = FailureShare(share, "{} of the last {} rollouts failed")
        self._scored = FailureShare(share, f"reward {config.reward!r} failed for {{}} of the last {{}} answers")
        self._questions = {source.path: _digest_of_tasks(source) for source in config.tasks if source.path}
        self._generating = False  # whether a step has begun whose batch was not learnt from
        self._seconds = 0.0  # of generation in this step, before there is a batch
        self._optimising = 0.0  # seconds of the last optimisation steps alone
        self._beside_tokens = 0  # tokens that were generated beside the last optimisation step
        self._loaded: int | None = None  # the version of the collector's weights
        self._prepared: int | None = None  # the version of those that wait there

    @property
    def reader(self) -> Reader:
        return self.collector.reader

    def step(self, tell: Tell = lambda *progress: None, stopped: Stopped = lambda: False) -> Step | None:
        """One harvest of the token budget, the optimisation steps on it, the next version.

        `tell(version, tokens generated so far, rollouts under way)` is called after each piece of decoding, and
        `stopped()` is asked: where it says so, None is returned at once, and the next call goes on there. Raises
        `TooManyFailures` between two pieces, and ValueError on a reward that is not finite or out of its range; then
        the next call goes on there, too.
        """
        if not self._generate(tell, stopped) or stopped():
            return None
        begun, rollouts = time.perf_counter(), self.rollouts
        # What may raise comes first: a step that fails there is saved as one that has generated and not learnt.
        batch = rollouts.batch
        harvest = self._beside(lambda: self._harvest(batch), tell, stopped)
        self._note_harvest(harvest)
        rates = _observed(self.rates, harvest.drawn, rollouts.version)
        answers, advantages = answers_to_learn(self.config, harvest, self.reader, rollouts.version)
        told = {"generated_tokens": rollouts.ledger.generated, "outstanding": rollouts.ledger.outstanding}
        if self.trainer is None:
            state, updates, weights = self._optimise(answers)
            self._take(harvest, rates)
        else:
            self._take(harvest, rates)
            self.learning = True
            state, updates, weights = self._beside(lambda: self._optimise(answers), tell, stopped)
            self._beside_tokens = rollouts.ledger.generated
        self.state = state
        self.events += [event_of(update, harvest.groups) for update in updates]
        metrics = summarised(updates) | told | self._lost() | {"tokens_beside": self._beside_tokens}
        spans = rollouts.move_on(weights)
        self._generating = self.learning = False
        metrics |= {"generate_seconds": self._seconds, "train_seconds": time.perf_counter() - begun}
        metrics |= use_metrics(self.collector.take_use()) | {"optimise_seconds": self._optimising}
        metrics |= {"groups_without_spread": share_without_spread(advantages[: len(harvest.groups)])}
        metrics |= reward_metrics(harvest.groups, harvest.rewards) | ledger_metrics(rollouts.ledger, rollouts.recent)
        metrics |= {"discarded": rollouts.discarded, "reward_failed": len(harvest.without_reward)}
        first = first_answers(harvest.groups, harvest.rewards, self.config.train.samples)
        trajectories = [to_atif(episode, self.reader, reward=total, parts=parts) for episode, total, parts in first]
        episodes = [_record_of(e) for group in harvest.drawn for e in group.episodes if e is not None]
        return Step(self.events, metrics, samples(first, self.reader), spans, trajectories, episodes)

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
        self._loaded, self._prepared, self._generating = None, None, record["step"] is not None
        if self._generating:
            self.events, self._seconds = record["step"]["events"], record["step"]["seconds"]

    def _generate(self, tell: Tell, stopped: Stopped) -> bool:
        """Pieces of decoding until the version has enough; False where `stopped` said so before."""
        begun, rollouts = time.perf_counter(), self.rollouts
        if not self._generating:
            self.events, self._seconds, self._generating = [], 0.0, True
        rollouts.top_up()  # also where drawing had failed
        with self._pieces():
            while rollouts.ledger.is_open and not stopped():
                self._decode(tell)
        self._seconds += time.perf_counter() - begun
        return not rollouts.ledger.is_open

    @contextlib.contextmanager
    def _pieces(self) -> Iterator[None]:
        """A block of decoding, at whose end no piece is under way and all is accounted for."""
        try:
            with self.collector.generating():
                yield
        finally:
            if moved := self.collector.settled(self.rollouts.running):
                self._account(moved, time.time())

    def _decode(self, tell: Tell) -> None:
        """A piece of decoding."""
        rollouts = self.rollouts
        self._load()
        start = time.time()
        self._account(self.collector.advance(rollouts.running), start)
        tell(rollouts.version, rollouts.ledger.generated, len(rollouts.ledger.running))

    def _load(self) -> None:
        """Takes the weights of this version into use, once.

        In turns it is called only where something is decoded, since all contexts are read again.
        """
        version = self.rollouts.version
        if self._loaded == version:
            return
        if self._prepared != version:
            self._prepare(self.state, version)
        self.collector.commit()
        self._loaded = version

    def _account(self, moved: Sequence[Progress], start: float) -> None:
        """Tells the rollouts what a piece of decoding did that began at `start`."""
        rollouts = self.rollouts
        rollouts.advance(moved, start, time.time())
        ended = [rollouts.episodes[progress.id] for progress in moved if progress.ended]
        errors = [(episode.error or "none is on record") if episode.failed else "" for episode in ended]
        for episode, error in zip(ended, errors, strict=True):
            if error:
                self.errors.note("session", error, rollout=episode.id, status=episode.trajectory.status)
        self._ended.note(errors)

    def _beside(self, function: Callable[[], Any], tell: Tell, stopped: Stopped) -> Any:
        """The function's result; with a trainer's thread it runs there, and the weights of now go on generating."""
        if self.trainer is None:
            return function()
        self._load()  # before the state is used up, and other weights are prepared
        done = self.trainer.submit(function)
        try:
            with self._pieces():
                while not done.done():
                    if self.rollouts.ledger.running and not stopped():
                        self._decode(tell)
                    else:
                        concurrent.futures.wait([done], WAIT_SECONDS)
        finally:
            concurrent.futures.wait([done])  # the state is used up, or whole
        return done.result()

    def _optimise(self, answers: Sequence[Answer]) -> tuple[TrainState, list[Update], str]:
        """(the state after the optimisation steps on the batch of this version, these, the digest of its weights).

        The digest is "" on several processes.
        """
        begun, version = time.perf_counter(), self.rollouts.version
        try:
            state, updates = self.learn(self.state, answers, version)
        except Exception as error:
            self.errors.tell("trainer", error_text(error), version=version)
            raise
        self._optimising = time.perf_counter() - begun
        # On several processes weights move while the engine leads the others, when the next version generates.
        weights = self._prepare(state, version + 1) if self.collector.link is None else ""
        return state, updates, weights

    def _prepare(self, state: TrainState, version: int) -> str:
        """Brings the weights of a version to the engines, beside those that generate; their digest."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                told = self.collector.prepare(state.params, version)
                break
            except Exception as error:
                self.errors.tell("sync", error_text(error), version=version)
                if attempt == MAX_ATTEMPTS - 1:
                    raise
        self._prepared = version
        return told

    def _harvest(self, batch: list[Group]) -> Harvest:
        """The batch with its rewards. Raises ValueError on a reward that cannot be."""
        return harvest_of(self.config, self.reward, batch, self.reader, self.memory)

    def _note_harvest(self, harvest: Harvest) -> None:
        """Raises `TooManyFailures` where too many answers have no reward."""
        for i, error in harvest.without_reward.items():
            self.errors.tell("reward", error, rollout=i)
        self._scored.note(harvest.errors)
        self.reward.accepted()

    def _take(self, harvest: Harvest, rates: PassRates) -> None:
        """The batch leaves the rollouts under way."""
        self.rollouts.take([group.prompt for group in harvest.drawn], tuple(harvest.without_reward))
        self.rates, self.memory = rates, harvest.memory

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
        for drawn in draws_of(self.config, self.reader, prompt, weights):
            if not drawn.refused:
                self._emit("prompt", {"prompt": prompt, "task": drawn.task})
                return drawn.episodes
            self._emit("refused", {"prompt": prompt, "task": drawn.task, "reason": drawn.refused})
            print(f"prompt {prompt}: {drawn.refused}; another task is drawn", flush=True)
        raise TooManyFailures(f"{MAX_REFUSED} tasks in a row cannot be asked; the last one: {drawn.refused}")

    def _lost(self) -> dict[str, int]:
        """Rollouts that ended without a reward in this version, and tasks that could not be asked."""
        failed = {status: self.rollouts.ended.count(status) for status in FAILED}
        return failed | {"refused": sum(event["kind"] == "refused" for event in self.events)}


def event_of(update: Update, groups: Sequence[Group]) -> Event:
    """The event of an optimisation step on some of these groups."""
    prompts = [groups[i].prompt for i in update.groups]
    numbers = {name: repr(update.metrics[name]) for name in ("loss", "grad_norm")}
    return {"kind": "update", "prompts": prompts, "batch": digest(update.batch), **numbers}


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


def first_answers(
    groups: Sequence[Group], rewards: Sequence[Rewards], most: int
) -> list[tuple[Episode, float, dict[str, float]]]:
    """(episode, total reward, its parts) of the first answers of a batch."""
    found = [
        (episode, float(reward.total[i]), {name: float(values[i]) for name, values in reward.parts.items()})
        for group, reward in zip(groups, rewards, strict=True)
        for i, episode in enumerate(group.paid)
    ]
    return found[:most]


def samples(first: Sequence[tuple[Episode, float, dict[str, float]]], reader: Reader) -> list[dict[str, Any]]:
    """Answers to be read, of `first_answers`."""
    found = []
    for episode, total, parts in first:
        told = {"prompt": episode.task.prompt, "text": reader.text(episode.trajectory.completion_ids)}
        state = {"status": episode.trajectory.status, "tokens": episode.drawn, "effort": episode.effort}
        found.append({"rollout": episode.id, **told, **state, "reward": total, "parts": parts})
    return found


def _record_of(episode: Episode) -> dict[str, Any]:
    task, status = episode.task, episode.trajectory.status
    about = {"environment": task.environment, "task": task.id, "status": status, "rewards": dict(episode.rewards)}
    return {"rollout": episode.id, "tokens": episode.drawn} | record_of(about | {"messages": episode.reply})


def _observed(rates: PassRates, groups: Sequence[Group], step: int) -> PassRates:
    solved = [[episode.outcome for episode in group.paid] for group in groups]
    numbers = [next(e.number for e in group.episodes if e is not None) for group in groups]
    return observe(rates, numbers, [float(np.mean(outcomes)) for outcomes in solved], step)
