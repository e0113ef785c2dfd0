"""Rollouts that a program plays: it asks a server of this process, which records what it asks (docs/serving.md)."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ling_jax.config import ModelConfig
from ling_jax.envs import environment, parse_action
from ling_jax.messages import error_text
from ling_jax.rl.collector import WAIT_SECONDS, Collector, EngineError, Progress
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode
from ling_jax.rl.errors import ErrorLog
from ling_jax.rl.failures import FailureShare
from ling_jax.rl.reader import Reader
from ling_jax.rl.sessions import SessionResult
from ling_jax.serve.agent_process import AgentProcess
from ling_jax.serve.app import Server
from ling_jax.serve.calls import Call, chosen, main_chain, sample
from ling_jax.serve.http import Keys, Limits
from ling_jax.serve.recorded import Session, Sessions
from ling_jax.serve.rule import Rule
from ling_jax.serve.run import in_thread, served_of

POLL_SECONDS = 0.01  # between two looks at the programs; our choice
NAME = "policy"  # of the model, where an agent asks for it


@dataclasses.dataclass(frozen=True)
class AgentOptions:
    """How a run uses its agent: the fields of `RolloutConfig`, and where failures are noted."""

    command: Sequence[str]
    max_calls: int
    samples: str
    branches: str
    max_failed_share: float
    errors: ErrorLog


def agent_collector(config: RLConfig, workdir: Any) -> Callable[..., Collector]:
    """What makes the collectors of a run with an agent. Raises ValueError where there is no such program."""
    rollout = config.rollout
    if shutil.which(rollout.agent[0]) is None:
        raise ValueError(
            f"rollout.agent is {rollout.agent}, and there is no program {rollout.agent[0]!r}: name one that is in "
            "PATH, or its path"
        )
    options = AgentOptions(
        rollout.agent,
        rollout.max_calls,
        rollout.samples,
        rollout.branches,
        config.train.max_failed_share,
        ErrorLog(workdir),
    )
    return functools.partial(AgentCollector, options=options)


@dataclasses.dataclass(eq=False)
class _Agent:
    """A program that plays an episode."""

    episode: Episode
    session: Session
    process: AgentProcess | None = None  # None once it has ended
    told: int = 0  # tokens that were reported
    answer: str = ""  # once it has ended, as are the calls
    calls: Sequence[Call] = ()

    def idle_seconds(self) -> float:
        """For how long it has neither asked nor ended."""
        if self.process is None or self.session.pending:
            return 0.0
        return time.monotonic() - max(self.session.used, self.process.started)


class AgentCollector(Collector):
    """A collector whose episodes are played by programs, a process each, which ask a server in this process.

    The server's thread and the engine's go on beside the caller's, within `generating`; outside of it calls wait.
    `session_seconds` is how long a program may neither ask nor end, and the environment's deadline for its answer.
    """

    def __init__(self, config: ModelConfig, reader: Reader, slots: int, *, options: AgentOptions, **more: Any):
        """`more` are options of `Collector`."""
        super().__init__(config, reader, slots, **more)
        self.options = options
        self._agents: dict[int, _Agent] = {}
        self._ended: list[str] = []  # how programs ended, "" where well, that were not judged yet
        self._crashes = FailureShare(options.max_failed_share, "the agent failed in {} of the last {} rollouts")
        self._server = Server(
            self.engine,
            served_of(reader.tokenizer, reader.template, reader.end_ids, config.vocab_size, reader.context, NAME),
            Limits(choices=sys.maxsize, seconds=1e9),
            Keys(admin=secrets.token_hex()),
            sessions=Sessions(sys.maxsize, is_open=False),
        )
        self._stack = contextlib.ExitStack()
        self._url = self._stack.enter_context(in_thread(self._server))
        asyncio.run(self._server.service.pause("keep"))

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """A block in which calls are answered; the others wait for the next one."""
        self._check_engine()
        asyncio.run(self._server.service.resume())
        try:
            yield
        finally:
            if not self._server.service.ended.done():
                asyncio.run(self._server.service.pause("keep"))

    def commit(self) -> None:
        """The prepared weights are those of what is drawn from here on: contexts are read again by them."""
        asyncio.run(self._server.service.read(lambda engine: engine.commit()))

    @property
    def ids(self) -> set[int]:
        """Of the episodes that it has."""
        return set(self._agents)

    def advance(self, episodes: Mapping[int, Episode], until: Mapping[int, int] | None = None) -> list[Progress]:
        """What programs did for these episodes, by id: it returns when there is something to tell, or after 0.2 s.

        The program of an episode that is new is started; that of one that is not among these any more is killed.
        Raises TooManyFailures where programs fail too often, and EngineError where the engine has ended.
        """
        if until:
            raise ValueError("an agent cannot be stopped at a number of tokens, as a replay would")
        errors, self._ended = self._ended, []
        self._crashes.note(errors)
        for id, agent in list(self._agents.items()):
            if episodes.get(id) is not agent.episode:
                self._leave(id)
        for id in sorted(episodes.keys() - self._agents.keys()):
            self._start(episodes[id])
        end = time.monotonic() + WAIT_SECONDS
        while True:
            self._check_engine()
            self._look()
            moved = any(not agent.episode.running for agent in self._agents.values())
            if moved or time.monotonic() >= end:
                return self.settled(episodes)
            with self._timed("generating" if self.engine.busy else "waiting"):
                time.sleep(POLL_SECONDS)

    def settled(self, episodes: Mapping[int, Episode]) -> list[Progress]:
        """What programs have done for these episodes since the last call. Episodes that have ended leave."""
        moved = []
        for id, agent in sorted(self._agents.items()):
            if id not in episodes:
                continue
            drawn, ended = agent.session.drawn - agent.told, not agent.episode.running
            agent.told += drawn
            if drawn or ended:
                moved.append(Progress(id, drawn, ended))
            if ended:
                self._leave(id)
        return moved

    def close(self) -> None:
        """All programs are killed, and the server ends."""
        for id in list(self._agents):
            self._leave(id)
        self._sessions.close_all()
        self._stack.close()

    def _check_engine(self) -> None:
        if self._server.service.ended.done():
            raise EngineError(error_text(self._server.service.ended.result()))

    def _start(self, episode: Episode) -> None:
        """Begins an episode, also one that was under way when a run ended."""
        rule = Rule(episode.seed, self.temperature, episode.max_tokens, self.options.max_calls, episode.id)
        session = Session(f"{episode.id}-{secrets.token_hex(8)}", rule)
        self._server.sessions.open(session)
        agent = self._agents[episode.id] = _Agent(episode, session)
        task = episode.task
        given = {"messages": task.messages, "tools": task.tools, "seed": task.seed, "difficulty": task.difficulty}
        variables = {
            "OPENAI_BASE_URL": f"{self._url}/sessions/{session.name}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": NAME,
        }
        try:
            agent.process = AgentProcess(self.options.command, json.dumps(given), variables)
        except OSError as error:
            episode.end("infra_failed", f"the agent did not start: {error}")

    def _look(self) -> None:
        """Takes the answers of programs that have ended, and what environments make of them."""
        for agent in list(self._agents.values()):
            if agent.process is None:
                continue
            problem = agent.process.problem
            if not problem and agent.idle_seconds() > self._sessions.seconds:
                problem = f"neither asked nor ended in {self._sessions.seconds:g} s{agent.process.last_words()}"
            if problem or agent.process.ended:
                self._end(agent, problem)
        for result in self._sessions.results():
            self._judge(self._agents[result.id], result)

    def _end(self, agent: _Agent, problem: str) -> None:
        """The program has ended, or is ended; its environment gets the answer."""
        assert agent.process is not None
        agent.answer, agent.calls = agent.process.answer, list(agent.session.calls)
        agent.process.end()
        agent.process = None
        self._server.sessions.discard(agent.session.name)
        self._ended.append(problem)
        if problem:
            self._fail(agent, f"the agent {problem}")
            return
        task, id = agent.episode.task, agent.episode.id
        self._sessions.open(id, environment(task.environment).session, task, agent.episode.seed)
        result = self._sessions.act(id, parse_action(agent.answer, task.tools))
        if result is not None:
            self._judge(agent, result)

    def _fail(self, agent: _Agent, error: str) -> None:
        """The program has failed. Once the policy has written something it may be to blame, so that the episode counts
        as a wrong answer."""
        if not agent.session.drawn:
            agent.episode.end("env_failed", error)
        elif self._fill(agent):
            self.options.errors.tell("agent", error, rollout=agent.episode.id)
            agent.episode.end("truncated", error)

    def _judge(self, agent: _Agent, result: SessionResult) -> None:
        """The episode ends with what its environment says of the answer."""
        episode, step = agent.episode, result.step
        if step is None:
            episode.end(result.status, result.error)
        elif self._fill(agent):
            episode.messages += [{"role": "assistant", "content": agent.answer}, *step.observation]
            episode.rewards = {name: float(value) for name, value in step.rewards.items()}
            episode.end("finished" if step.terminated else "truncated")

    def _fill(self, agent: _Agent) -> bool:
        """The episode gets the trajectory of the main chain, and the parts that are learnt from.

        False where it has failed: a log-prob is not finite.
        """
        episode, calls, options = agent.episode, agent.calls, self.options
        name, chain = episode.task.id, main_chain(calls)
        try:
            if chain:
                episode.trajectory = sample(calls, chain, name)
                episode.messages = [*episode.task.messages, *_conversation(calls, chain, self.reader)]
            if (options.samples, options.branches) != ("concat", "main"):
                parts = chosen(calls, options.samples, options.branches)
                episode.parts = [sample(calls, part, name) for part in parts]
        except ValueError as error:
            episode.end("infra_failed", f"the engine: {error}")
        return episode.running

    def _leave(self, id: int) -> None:
        agent = self._agents.pop(id)
        self._server.sessions.discard(agent.session.name)
        if agent.process is not None:
            agent.process.end()
        if id in self._sessions:
            self._sessions.close(id)


def _conversation(calls: Sequence[Call], chain: Sequence[int], reader: Reader) -> list[dict[str, Any]]:
    """The turns of a chain as the policy wrote them, and the messages between them."""
    found: list[dict[str, Any]] = []
    before: int | None = None
    for number in chain:
        call, drawn = calls[number], calls[number].drawn.tolist()
        between = () if before is None else call.messages[before:-1]
        found += [{"role": m["role"], "content": m["content"]} for m in between if m["role"] != "assistant"]
        words = drawn[:-1] if drawn[-1] in reader.end_ids else drawn
        found.append({"role": "assistant", "content": reader.text(words)})
        before = len(call.messages)
    return found
