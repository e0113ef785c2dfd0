"""Episodes: a policy's turns in an environment, token by token, drawn by the engine."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ling_jax.chat.continuation import UnreadableAnswer, continue_conversation
from ling_jax.chat.end_tokens import token_texts
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, Piece, encode_all, opened_reasoning, opens_reasoning
from ling_jax.chat.tool_calls import END_THINK, THINK, parse_either
from ling_jax.checkpoint.folder import Loaded, ModelFolder
from ling_jax.config import ModelConfig
from ling_jax.data.token_bytes import token_bytes
from ling_jax.engine import EXACT_TILE, Engine, Event, Request, Snapshot, memory_for
from ling_jax.envs import ENVIRONMENTS, Task
from ling_jax.envs.base import Message
from ling_jax.envs.tools.call import Call
from ling_jax.evaluate.report import Metric, with_progress
from ling_jax.evaluate.statistics import Z95, wilson_interval
from ling_jax.rewards import split_sentences
from ling_jax.rl.trajectory import Trajectory, append_observation, append_segment

PREFILL_TOKENS = 16_384  # that a step reads at most: all episodes go on together where they fit; our choice


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """A task and how far a policy has come with it."""

    id: int
    number: int  # of the task, in the caller's list
    task: Task
    seed: int  # of its stream of random numbers
    max_tokens: int  # that the policy may write in all its turns
    trajectory: Trajectory
    state: Any  # of the environment, which alone knows what it is
    messages: tuple[Message, ...]  # the conversation so far, the policy's turns as it wrote them
    history: tuple[Message, ...] = ()  # the same as the template gets it: reasoning and calls are apart
    effort: str | None = None  # the thinking effort that its prompt asks for
    rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the environment, once it has ended
    error: str = ""  # what broke, of a failed one; why the conversation cannot go on from the policy's words

    @property
    def running(self) -> bool:
        return self.trajectory.status == "running"

    @property
    def drawn(self) -> int:
        """Tokens that the policy wrote."""
        return int(self.trajectory.loss_mask.sum())

    @property
    def turns(self) -> list[str]:
        """What the policy wrote, turn by turn; a turn that a limit cut off is not among them."""
        first = len(self.task.messages)
        return [message["content"] for message in self.messages[first:] if message["role"] == "assistant"]

    @property
    def calls(self) -> list[Call]:
        """The tool calls that it made and that could be read."""
        return [call for turn in self.turns for call in parse_either(turn, self.task.tools).tool_calls]

    @property
    def superfluous_calls(self) -> int:
        """Calls more than the task needs."""
        return max(0, len(self.calls) - len(self.task.hidden.get("calls", ())))

    @property
    def outcome(self) -> float:
        """1 solved, 0 not; an answer that a limit cut off is not solved."""
        return float(self.rewards.get("outcome", 0.0))

    @property
    def context(self) -> list[int]:
        return [*self.trajectory.prompt_ids, *self.trajectory.completion_ids.tolist()]


class Ask(NamedTuple):
    """An episode to be; its fields are `Episode`'s."""

    id: int
    number: int
    task: Task
    seed: int
    effort: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Between conversations and tokens: a stage's tokenizer and template."""

    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    end_ids: frozenset[int]
    context: int  # tokens that a row can hold
    max_tokens: int = 0  # at most, whatever the task says; 0: what the task says
    _bytes: tuple[list[bytes], list[bool]] = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "_bytes", token_bytes(self.tokenizer))

    def begin(self, asks: Sequence[Ask]) -> list[Episode]:
        """Episodes before their first token. Raises ValueError where the context has no room for an answer."""
        pieces = [
            self._template(ask.effort).render(ask.task.messages, tools=ask.task.tools, prompt=True) for ask in asks
        ]
        prompts = [ids for ids, _ in encode_all(self.tokenizer, pieces)]
        return [self._episode(ask, prompt) for ask, prompt in zip(asks, prompts, strict=True)]

    def text(self, tokens: Sequence[int]) -> str:
        """As it was written: a special token in it is its name, which an answer cannot hide behind."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def sentence_ids(self, trajectory: Trajectory) -> np.ndarray:
        """[T] int32: which sentence of its turns each drawn token is in, counted through; -1 for other tokens."""
        ids = np.full(len(trajectory.completion_ids), -1, np.int32)
        pieces, special = self._bytes
        for start, stop in turn_spans(trajectory):
            tokens = trajectory.completion_ids[start:stop].tolist()
            found = split_sentences([pieces[token] for token in tokens], [special[token] for token in tokens])
            ids[start:stop] = np.asarray(found.ids) + ids.max(initial=-1) + 1
        return ids

    def go_on(self, episode: Episode, words: str, observation: Sequence[Message]) -> tuple[Message, list[Piece]]:
        """`chat.continuation.continue_conversation` after the episode's history, with its errors."""
        ends = token_texts(self.tokenizer, self.end_ids)
        template, tools = self._template(episode.effort), episode.task.tools
        return continue_conversation(template, episode.history, words, observation, tools=tools, end_tokens=ends)

    def _template(self, effort: str | None):
        return self.template if effort is None else dataclasses.replace(self.template, effort=effort)

    def _episode(self, ask: Ask, prompt: list[int]) -> Episode:
        task = ask.task
        most = min(self.max_tokens or task.max_tokens, task.max_tokens)
        if len(prompt) + most > self.context:
            raise ValueError(
                f"task {task.id} ({task.environment}, difficulty {task.difficulty}) has a prompt of {len(prompt)} "
                f"tokens and may write {most}; the context has {self.context}: raise rollout.context, or lower "
                "rollout.max_tokens or the difficulty"
            )
        return Episode(
            id=ask.id,
            number=ask.number,
            task=task,
            seed=ask.seed,
            max_tokens=most,
            trajectory=Trajectory(task.id, prompt),
            state=ENVIRONMENTS[task.environment].reset(task, ask.seed),
            messages=tuple(task.messages),
            history=tuple(task.messages),
            effort=ask.effort,
        )


def make_reader(loaded: Loaded | ModelFolder, *, context: int, max_tokens: int = 0) -> Reader:
    """Raises ValueError where the context passes the model's."""
    if context > loaded.config.max_length:
        raise ValueError(f"the context is {context} tokens; the model's, max_length, is {loaded.config.max_length}")
    return Reader(loaded.tokenizer, loaded.template, loaded.end_ids, context, max_tokens)


def turn_spans(trajectory: Trajectory) -> list[tuple[int, int]]:
    """[start, stop) of each of the policy's turns in the completion."""
    edges = np.flatnonzero(np.diff(trajectory.loss_mask.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def take(episode: Episode, drawn: Event, version: int, reader: Reader) -> tuple[Episode, list[Piece]]:
    """(the episode with what weights `version` drew, what it has to read before it can go on).

    Where a turn has ended the environment answers it; one that raises makes the episode "failed", and so does a chat
    template that rewrites what the policy has read or written. Words that are no answer in the template's form are the
    policy's mistake: they make it "truncated", an episode without success, or hiding would pay better than an honest
    wrong answer.
    """
    trajectory = append_segment(episode.trajectory, drawn.tokens, drawn.logps, version)
    episode = dataclasses.replace(episode, trajectory=trajectory)
    if drawn.finish_reason is None:
        return episode, []
    if drawn.finish_reason != "stop":
        return _ended(episode, "truncated"), []
    return answer(episode, reader)


def answer(episode: Episode, reader: Reader) -> tuple[Episode, list[Piece]]:
    """(the episode after the environment answered its last turn, what it has to read before it can go on)."""
    start, stop = turn_spans(episode.trajectory)[-1]
    size = len(episode.trajectory.prompt_ids) + start
    opened = opened_reasoning(reader.tokenizer, episode.context[:size])
    return _answered(episode, opened, reader.text(episode.trajectory.completion_ids[start : stop - 1]), reader)


def rehearse(episode: Episode, reader: Reader) -> Episode:
    """A fresh episode in which the task's own solution is said, behind no reasoning where a prompt opens it.

    Raises ValueError where the template cannot go on.
    """
    opened = opened_reasoning(reader.tokenizer, episode.context)
    for turn in ENVIRONMENTS[episode.task.environment].solution(episode.task):
        if episode.running:
            words = (END_THINK if opened else "") + turn
            before, (episode, observation) = episode, _acted(episode, opened + words)
            if episode.running:
                episode, pieces = _went_on(before, episode, words, observation, reader)
                opened = THINK if opens_reasoning(pieces) else ""
    return episode


def _answered(episode: Episode, opened: str, words: str, reader: Reader) -> tuple[Episode, list[Piece]]:
    """`opened` is <think> where the prompt ended with it: the environment gets it in front of the words."""
    after, observation = _acted(episode, opened + words)
    if not after.running:
        return after, []
    try:
        return _went_on(episode, after, words, observation, reader)
    except UnreadableAnswer as error:
        return _ended(dataclasses.replace(after, error=str(error)), "truncated"), []
    except ValueError as error:  # the template rewrites what the policy has read or written
        return _failed(after, error), []


def _acted(episode: Episode, action: str) -> tuple[Episode, Sequence[Message]]:
    """(the episode after the environment answered, its answer)."""
    try:
        result = ENVIRONMENTS[episode.task.environment].step(episode.state, action)
    except Exception as error:  # whatever it is: it says nothing about the policy, and must not end the run
        return _failed(episode, error), ()
    spoken = (*episode.messages, {"role": "assistant", "content": action})
    episode = dataclasses.replace(
        episode, state=result.state, messages=(*spoken, *result.observation), rewards=dict(result.rewards)
    )
    if result.terminated or result.truncated:
        episode = _ended(episode, "finished" if result.terminated else "truncated")
    elif len(episode.turns) >= episode.task.max_turns or episode.drawn >= episode.max_tokens:
        episode = _ended(episode, "truncated")
    return episode, result.observation


def _went_on(
    before: Episode, after: Episode, action: str, observation: Sequence[Message], reader: Reader
) -> tuple[Episode, list[Piece]]:
    """(the episode with its history, what the policy has to read); errors as `Reader.go_on`."""
    message, pieces = reader.go_on(before, action, observation)
    return dataclasses.replace(after, history=(*before.history, message, *observation)), pieces


def _failed(episode: Episode, error: Exception) -> Episode:
    print(f"rollout {episode.id} failed: {type(error).__name__}: {error}", flush=True)
    return _ended(dataclasses.replace(episode, error=f"{type(error).__name__}: {error}"), "failed")


def hear(episode: Episode, tokens: Sequence[int], version: int, reader: Reader) -> Episode:
    """The episode with an observation; one that leaves no room in the context truncates it."""
    if len(episode.context) + len(tokens) >= reader.context:
        return _ended(episode, "truncated")
    return dataclasses.replace(episode, trajectory=append_observation(episode.trajectory, tokens, version))


def room(episode: Episode, reader: Reader) -> int:
    """How many tokens the policy may still write."""
    return min(episode.max_tokens - episode.drawn, reader.context - len(episode.context))


def _ended(episode: Episode, status: str) -> Episode:
    return dataclasses.replace(episode, trajectory=dataclasses.replace(episode.trajectory, status=status))


class Player:
    """Moves episodes on by steps of an engine. Where one lies in the engine is its business: no token depends on it."""

    def __init__(
        self,
        config: ModelConfig,
        reader: Reader,
        size: int,
        *,
        temperature: float = 1.0,
        row_tile: int | None = EXACT_TILE,
    ):
        """With so many slots of the model; temperature 0 takes the likeliest tokens.

        With `row_tile` None the last bits of log-probs depend on which episodes run side by side.
        """
        self.reader, self.size, self.temperature = reader, size, temperature
        self.engine = Engine(
            config,
            slots=size,
            memory_bytes=memory_for(config, slots=size, max_tokens=reader.context),
            row_tile=row_tile,
            prefill_tokens=min(PREFILL_TOKENS, size * reader.context),
        )

    def load(self, params, version: int = 0) -> None:
        """New weights: what goes on is read again by them."""
        self.engine.load(params, version)

    def advance(self, episodes: Mapping[int, Episode]) -> dict[int, Episode]:
        """These running episodes, at most as many as there are slots, a step further: one of them draws at least.

        Others leave the engine.
        """
        if len(episodes) > self.size:
            raise ValueError(f"{len(episodes)} episodes are to go on at once; there are {self.size} slots")
        for left in self._seated - episodes.keys():
            self.engine.release(left)
        for joining in sorted(episodes.keys() - self._seated):
            self.engine.resume(self._snapshot(episodes[joining]))
        events: list[Event] = []
        while not events and self.engine.busy:
            events = self.engine.step()
        if errors := [event.error for event in events if event.error]:
            raise RuntimeError(f"the engine refused an episode: {errors[0]}")
        taken = {event.id: take(episodes[event.id], event, self.engine.version, self.reader) for event in events}
        return {**episodes, **self._heard(taken)}

    def leave(self) -> None:
        """All episodes leave the engine."""
        for left in self._seated:
            self.engine.release(left)

    @property
    def _seated(self) -> set[int]:
        return self.engine.ids

    def _snapshot(self, episode: Episode) -> Snapshot:
        """The request that goes on where the episode is; its id is its priority, so that all schedules are the same."""
        request = Request(
            episode.id,
            episode.trajectory.prompt_ids,
            episode.max_tokens,
            seed=episode.seed,
            temperature=self.temperature,
            stop_ids=tuple(sorted(self.reader.end_ids)),
            priority=episode.id,
        )
        limit = episode.drawn + room(episode, self.reader)
        return Snapshot(
            request=request,
            tokens=tuple(episode.context),
            turn=episode.drawn,
            drawn=episode.drawn,
            limit=limit,
            recorded=0,
            prompt_logps=(),
            finish_reason=None,
            fingerprint=self.engine.fingerprint,
        )

    def _heard(self, taken: dict[int, tuple[Episode, list[Piece]]]) -> dict[int, Episode]:
        """All observations of a step are encoded together, on all threads."""
        hearing = [i for i, (_, pieces) in taken.items() if pieces]
        encoded = encode_all(self.reader.tokenizer, [taken[i][1] for i in hearing]) if hearing else ()
        moved = {i: episode for i, (episode, _) in taken.items()}
        for i, (tokens, _) in zip(hearing, encoded, strict=True):
            moved[i] = hear(moved[i], tokens, self.engine.version, self.reader)
            if moved[i].running:
                self.engine.extend(i, tokens, room(moved[i], self.reader))
        for i, episode in moved.items():
            if not episode.running:
                self.engine.release(i)
        return moved


def play(player: Player, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Episodes to their ends under the weights that are loaded, in the order in which they end; slots never wait."""
    waiting, running = iter(episodes), {}
    while True:
        running |= {episode.id: episode for episode in itertools.islice(waiting, player.size - len(running))}
        if not running:
            return
        running = player.advance(running)
        yield from [episode for episode in running.values() if not episode.running]
        running = {i: episode for i, episode in running.items() if episode.running}


def evaluate(player: Player, params, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """What the weights do with each task, in order: a JSON object with outcome (0 or 1), tokens, calls, superfluous
    calls, status, the messages after the prompt, and the answer that is expected. With a player of temperature 0, the
    likeliest answers."""
    player.load(params)
    asks = [Ask(i, i, task, seed=i) for i, task in enumerate(tasks)]
    playing = ([episode] for episode in play(player, player.reader.begin(asks)))
    episodes = sorted(with_progress(playing, "rollouts", len(tasks)), key=lambda episode: episode.id)
    return [describe(episode) for episode in episodes]


def describe(episode: Episode) -> dict[str, Any]:
    task = episode.task
    return {
        "task": task.id,
        "environment": task.environment,
        "difficulty": task.difficulty,
        "seed": task.seed,
        "prompt": task.prompt,
        "outcome": episode.outcome,
        "tokens": episode.drawn,
        "calls": len(episode.calls),
        "superfluous_calls": episode.superfluous_calls,
        "status": episode.trajectory.status,
        "messages": [{"role": m["role"], "content": m["content"]} for m in episode.messages[len(task.messages) :]],
        "expected": task.hidden.get("answer"),
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Of each environment: accuracy with its Wilson interval, mean tokens and superfluous calls with normal ones.

    Broken episodes ("failed") are left out.
    """
    metrics = []
    for environment in dict.fromkeys(record["environment"] for record in records):
        kept = [r for r in records if r["environment"] == environment and r["status"] != "failed"]
        if not kept:
            continue
        solved = np.mean([r["outcome"] for r in kept])
        metrics.append(
            Metric(f"{environment}/accuracy", float(solved), wilson_interval(solved, len(kept)), len(kept), "tasks")
        )
        for name in ("tokens", "superfluous_calls"):
            metrics.append(_mean(f"{environment}/{name}", [r[name] for r in kept]))
    return metrics


def _mean(name: str, values: Sequence[float]) -> Metric:
    mean, half = np.mean(values), Z95 * np.std(values) / np.sqrt(len(values))
    return Metric(name, float(mean), (float(mean - half), float(mean + half)), len(values), "tasks")
