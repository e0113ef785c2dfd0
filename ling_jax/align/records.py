"""Where conversations come from: files of JSON lines, and the reference solutions of environments."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from ling_jax import data
from ling_jax.config import nearest
from ling_jax.data.conversations import Record
from ling_jax.data.json_lines import read_objects
from ling_jax.data.sources import source_digest
from ling_jax.envs import ENVIRONMENTS, Environment, Task
from ling_jax.files import replacing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSource:
    """Conversations: a file of them, or an environment's tasks with their solutions."""

    path: str = ""  # JSON lines {"messages", "tools"}: a file, a folder or a glob
    environment: str = ""
    difficulties: tuple[int, ...] = ()  # of the tasks, in turn
    count: int = 0  # of tasks
    seed: int = 0  # of the first task; the next ones count up
    solution: dict = dataclasses.field(default_factory=dict)  # options of the environment's `solution`
    weight: float = 1.0  # share of the mixture


def check_source(source: ChatSource, where: str) -> None:
    """Raises ValueError or FileNotFoundError on a source that cannot be read, naming the field."""
    if bool(source.path) == bool(source.environment):
        raise ValueError(f"{where}: name one of path ({source.path!r}) and environment ({source.environment!r})")
    if not 0 < source.weight < float("inf"):
        raise ValueError(f"{where}.weight is {source.weight}; it must be positive and finite")
    if source.path:
        data.source_files(data.JsonLines(source.path))
    else:
        check_tasks(source.environment, source.difficulties, source.count, source.seed, where)
        _check_options(source, where)


def check_tasks(environment: str, difficulties: tuple[int, ...], count: int, seed: int, where: str) -> None:
    if environment not in ENVIRONMENTS:
        found = f"{environment!r}{nearest(environment, ENVIRONMENTS)}"
        raise ValueError(f"{where}.environment is {found}; there are {', '.join(ENVIRONMENTS)}")
    possible = ENVIRONMENTS[environment].DIFFICULTIES
    if not difficulties or any(difficulty not in possible for difficulty in difficulties):
        raise ValueError(
            f"{where}.difficulties are {difficulties}; {environment} has {possible[0]} to {possible[-1]}, name some"
        )
    if count < 1 or seed < 0:
        raise ValueError(f"{where}: count is {count} and seed {seed}; expected at least 1 and at least 0")


def _check_options(source: ChatSource, where: str) -> None:
    environment = ENVIRONMENTS[source.environment]
    known = [name for name in inspect.signature(environment.solution).parameters if name != "task"]
    for name in source.solution:
        if name not in known:
            has = f"{source.environment} has {', '.join(known) or 'none'}"
            raise ValueError(f"{where}.solution: unknown option {name!r}{nearest(name, known)}; {has}")
    task = environment.make_task(source.seed, source.difficulties[0])
    environment.solution(task, **source.solution)  # refuses values out of range


def records(source: ChatSource) -> Iterator[tuple[str, Record]]:
    """(where it stands, record {"messages", "tools"}) of each conversation, in a fixed order."""
    if source.path:
        for path in data.source_files(data.JsonLines(source.path)).values():
            yield from read_objects(path, "an object with a field 'messages'")
        return
    environment = ENVIRONMENTS[source.environment]
    for task in tasks(source.environment, source.difficulties, source.count, source.seed):
        yield f"{task.environment}, seed {task.seed}", solved(environment, task, **source.solution)


def tasks(environment: str, difficulties: tuple[int, ...], count: int, seed: int) -> Iterator[Task]:
    """`count` tasks with seeds from `seed` on, of the difficulties in turn."""
    for i in range(count):
        yield ENVIRONMENTS[environment].make_task(seed + i, difficulties[i % len(difficulties)])


def solved(environment: Environment, task: Task, **options: Any) -> Record:
    """The conversation in which the environment's own solution solves a task."""
    messages, state = list(task.messages), environment.reset(task, 0)
    rewards: dict[str, float] = {}
    for turn in environment.solution(task, **options):
        observation, rewards, *_, state = environment.step(state, turn)
        messages += [{"role": "assistant", "content": turn}, *observation]
    if rewards.get("outcome") != 1:
        raise ValueError(f"{task.environment}, seed {task.seed}: its own solution does not solve it: {rewards}")
    return record_of(task, messages)


def record_of(task: Task, messages: list[dict[str, Any]]) -> Record:
    about = {"environment": task.environment, "difficulty": task.difficulty, "seed": task.seed, "id": task.id}
    return {"messages": messages, **({"tools": list(task.tools)} if task.tools else {}), **about}


def digest(source: ChatSource) -> str:
    """Hex digest of what a source gives; of files as `data.sources.source_digest`."""
    if source.path:
        return source_digest(data.JsonLines(source.path))
    fields = dataclasses.asdict(source)
    del fields["weight"]
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
        yield {"text": "\n".join(message["content"] for message in record["messages"])}
