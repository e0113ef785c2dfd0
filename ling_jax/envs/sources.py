"""Tasks by the thousand: which ones a config means, whoever learns from them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from ling_jax.config import nearest
from ling_jax.envs import ENVIRONMENTS, HELD_OUT_SEEDS, Task
from ling_jax.envs.reasoning import questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Tasks of an environment: made from seeds, or, of "questions", read from a file."""

    environment: str
    difficulties: tuple[int, ...] = ()  # of the tasks, in turn
    count: int = 0  # of a file: the first so many of its training questions; 0: all
    seed: int = 0  # of the first task; the next ones count up
    path: str = ""  # JSON lines {"question", "answer"}

    @property
    def size(self) -> int:
        """How many tasks it has."""
        if not self.path:
            return self.count
        found = len(questions.read_questions(self.path).training)
        return min(self.count or found, found)


def check_tasks(source: TaskSource, where: str) -> None:
    """Raises ValueError or OSError on tasks that cannot be made, naming the field, or file and line."""
    name = source.environment
    if name not in ENVIRONMENTS:
        found = f"{name!r}{nearest(name, ENVIRONMENTS)}"
        raise ValueError(f"{where}.environment is {found}; there are {', '.join(ENVIRONMENTS)}")
    if (name == questions.NAME) != bool(source.path):
        wanted = 'the file of its questions, JSON lines {"question", "answer"}' if not source.path else "no file"
        raise ValueError(f"{where}.path is {source.path!r}; {name} needs {wanted}")
    if source.path:
        _check_questions(source, where)
        return
    known = ENVIRONMENTS[name].DIFFICULTIES
    if not source.difficulties or not set(source.difficulties) <= set(known):
        found = f"{where}.difficulties is {list(source.difficulties)}"
        raise ValueError(f"{found}; {name} has {known[0]} to {known[-1]}, name some of them")
    if source.count < 1 or source.seed < 0 or source.seed + source.count > HELD_OUT_SEEDS:
        raise ValueError(
            f"{where}: count is {source.count} and seed {source.seed}; expected at least 1 and 0, and all seeds below "
            f"{HELD_OUT_SEEDS}: from there on they make held-out tasks"
        )


def _check_questions(source: TaskSource, where: str) -> None:
    if source.difficulties or source.seed:
        found = f"difficulties is {list(source.difficulties)} and seed {source.seed}"
        raise ValueError(f"{where}: {found}; the questions of a file have neither: remove them")
    questions.read_questions.cache_clear()  # an earlier run of this process may have read another file there
    found = questions.read_questions(source.path)
    if not found.training or source.count < 0 or source.count > len(found.training):
        raise ValueError(
            f"{where}.count is {source.count}; {source.path} has {len(found.training)} questions to train on and "
            f"{len(found.held_out)} that are held out, by their text"
        )


def describe_source(source: TaskSource) -> str:
    """One line for the report of a run."""
    if source.path:
        return f"{source.size} of {source.environment}, from {source.path}"
    return f"{source.count} of {source.environment}, difficulties {list(source.difficulties)}, seed {source.seed}"


def tasks(source: TaskSource) -> Iterator[Task]:
    """All of them, in order."""
    return (task_of([source], number) for number in range(source.size))


def task_of(sources: Sequence[TaskSource], number: int) -> Task:
    """Task `number` of all the sources' tasks, one source after the other. Raises ValueError past the last."""
    place, left = locate(sources, number)
    source = sources[place]
    if source.path:
        return questions.read_questions(source.path).training[left]
    return _make(source.environment, source.difficulties, source.seed, left)


def locate(sources: Sequence[TaskSource], number: int) -> tuple[int, int]:
    """(which of the sources task `number` is of, its number there). Raises ValueError past the last."""
    left = number
    for place, source in enumerate(sources):
        if left < source.size:
            return place, left
        left -= source.size
    raise ValueError(f"task {number} was asked for; there are {sum(source.size for source in sources)}")


def held_out_of(source: TaskSource, count: int) -> list[Task]:
    """The first `count` held-out tasks of a source; a file may have fewer."""
    if source.path:
        return list(itertools.islice(questions.read_questions(source.path).held_out, count))
    return held_out_tasks(source.environment, source.difficulties, count)


def held_out_tasks(environment: str, difficulties: Sequence[int], count: int) -> list[Task]:
    """The first `count` held-out tasks of an environment, whose difficulties go round."""
    return [_make(environment, difficulties, HELD_OUT_SEEDS, i) for i in range(count)]


def _make(environment: str, difficulties: Sequence[int], seed: int, i: int) -> Task:
    return ENVIRONMENTS[environment].make_task(seed + i, difficulties[i % len(difficulties)])
