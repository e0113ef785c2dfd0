"""Where conversations come from: files of JSON lines, and the reference solutions of environments."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ling_jax import data
from ling_jax.chat.conversations import Record
from ling_jax.chat.tool_calls import as_message, parse_either, render_call
from ling_jax.data.json_lines import read_objects
from ling_jax.data.sources import source_digest
from ling_jax.envs import Task, environment, parse_action
from ling_jax.envs.sources import READERS, TaskSource, check_tasks, tasks
from ling_jax.files import replacing
from ling_jax.messages import nearest
from ling_jax.rl.sessions import open_session


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSource:
    """Conversations: a file of them, or an environment's tasks with their solutions."""

    path: str = ""  # JSON lines {"messages", "tools"}: a file, a folder or a glob
    environment: str = ""
    difficulties: tuple[int, ...] = ()  # this and the next two as in TaskSource
    count: int = 0
    seed: int = 0
    solution: dict = dataclasses.field(default_factory=dict)  # options of the environment's `solution`
    weight: float = 1.0  # share of the mixture

    @property
    def tasks(self) -> TaskSource:
        return TaskSource(
            environment=self.environment,
            difficulties=self.difficulties,
            count=self.count,
            seed=self.seed,
            path=self.path if self.environment else "",
        )


def check_source(source: ChatSource, where: str) -> None:
    """Raises ValueError on a source that cannot be, naming the field."""
    if bool(source.path) == bool(source.environment) and source.environment not in READERS:
        raise ValueError(f"{where}: name one of path ({source.path!r}) and environment ({source.environment!r})")
    if not 0 < source.weight < float("inf"):
        raise ValueError(f"{where}.weight is {source.weight}; it must be positive and finite")
    if source.environment:
        check_tasks(source.tasks, where)
        _check_options(source, where)


def check_files(sources: Sequence[ChatSource]) -> None:
    """Raises OSError or ValueError where a source's files are not there: flags may still name others in a config."""
    for source in sources:
        if not source.environment:
            data.source_files(data.JsonLines(source.path))


def _check_options(source: ChatSource, where: str) -> None:
    solution = environment(source.environment).solution
    if solution is None:
        raise ValueError(f"{where}.environment is {source.environment!r}, which has no solution(task) to learn from")
    known = [name for name in inspect.signature(solution).parameters if name != "task"]
    for name in source.solution:
        if name not in known:
            has = f"{source.environment} has {', '.join(known) or 'none'}"
            raise ValueError(f"{where}.solution: unknown option {name!r}{nearest(name, known)}; {has}")
    solution(next(tasks(source.tasks)), **source.solution)  # refuses values out of range


def records(source: ChatSource) -> Iterator[tuple[str, Record]]:
    """(where it stands, record {"messages", "tools"}) of each conversation, in a fixed order."""
    if not source.environment:
        for path in data.source_files(data.JsonLines(source.path)).values():
            yield from read_objects(path, "an object with a field 'messages'")
        return
    for task in tasks(source.tasks):
        where = f"{task.environment}, seed {task.seed}"
        messages, outcome = converse(task, environment(task.environment).solution(task, **source.solution))
        if outcome != 1:
            raise ValueError(f"{where}: its own solution, {messages}, does not solve it")
        yield where, record_of(task, messages)


def converse(task: Task, turns: Iterable[str]) -> tuple[list[dict[str, Any]], float]:
    """(messages, outcome) of an episode in which the policy says these turns; 0 unless the last of them ends it.

    Raises InfraError where its session fails.
    """
    messages, ended, rewards = list(task.messages), False, {}
    with open_session(task) as act:
        for turn in turns:
            if ended:
                return messages, 0.0
            step = act(parse_action(turn, task.tools))
            rewards, ended = step.rewards, step.terminated or step.truncated
            messages += [{"role": "assistant", "content": turn}, *step.observation]
    return messages, float(rewards.get("outcome", 0.0)) if ended else 0.0


def record_of(task: Task, messages: Sequence[dict[str, Any]]) -> Record:
    """The conversation of an episode, and the task it is of. Its messages are `parsed_turns`."""
    about = {"environment": task.environment, "difficulty": task.difficulty, "seed": task.seed, "id": task.id}
    tools = {"tools": list(task.tools)} if task.tools else {}
    return {"messages": parsed_turns(messages, task.tools), **tools, **about}


def parsed_turns(messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the reasoning and the calls of each turn apart, so that any template writes them in its form.

    A turn that cannot be parsed stays as the policy wrote it.
    """
    return [_parsed(message, tools) if message["role"] == "assistant" else message for message in messages]


def _parsed(message: dict[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    parsed = parse_either(message["content"], tools)
    if parsed.errors:
        return message
    return {key: value for key, value in as_message(parsed).items() if value is not None}


def digest(source: ChatSource) -> str:
    """Hex digest of what a source gives; of files as `data.sources.source_digest`."""
    if not source.environment:
        return source_digest(data.JsonLines(source.path))
    fields = dataclasses.asdict(source)
    del fields["weight"]
    if source.path:
        fields["path"] = [task.id for task in tasks(source.tasks)]
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_records(found: Iterable[Record], path: epath.PathLike) -> int:
    """Writes JSON lines, whole or not at all; returns how many."""
    count = 0
    with replacing(path) as file:
        for record in found:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def texts(found: Iterable[Record]) -> Iterator[Record]:
    """{"text"} of each conversation: what is said, a line a message. Plain documents to pre-train on."""
    for record in found:
        yield {"text": "\n".join(_text(message) for message in record["messages"])}


def _text(message: Mapping[str, Any]) -> str:
    """The content of a message, and its calls as the default template writes them."""
    calls = [render_call(call, "xml") for call in message.get("tool_calls") or ()]
    return "\n".join([message["content"]] * bool(message["content"] or not calls) + calls)
