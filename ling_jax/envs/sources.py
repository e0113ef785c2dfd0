"""Tasks by the thousand: which ones a config means, whoever learns from them."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

from ling_jax.envs import HELD_OUT_SEEDS, NAMES, Task, environment
from ling_jax.envs.harbor import folder as harbor
from ling_jax.envs.own import ANY_DIFFICULTY
from ling_jax.envs.reasoning import questions

READERS = {questions.NAME: questions.read_questions, harbor.NAME: harbor.read_tasks}
MIN_REPEATED = 1000  # tasks on end that were made before: our choice; then there are no more, but for one in a thousand


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Tasks of an environment: made from seeds, or read, "questions" from a file and "harbor" from a folder."""

    environment: str = ""  # a shipped one, or module:name of one's own; "": what `path` is
    difficulties: tuple[int, ...] = ()  # of the tasks, in turn
    count: int = 0  # of a file or folder: the first so many of its training tasks; 0: all
    seed: int = 0  # of the first task; the next ones count up
    path: str = ""  # JSON lines {"prompt", "answer"} (envs.reasoning.questions), or a folder of tasks (envs.harbor)

    def __post_init__(self):
        if self.path and not self.environment:
            name = harbor.NAME if os.path.isdir(self.path) else questions.NAME
            object.__setattr__(self, "environment", name)

    @property
    def is_there(self) -> bool:
        """Whether its file or folder is, if it has one."""
        return not self.path or os.path.exists(self.path)

    @property
    def size(self) -> int:
        """How many tasks it has."""
        if not self.path:
            return self.count
        found = len(_read(self).training)
        return min(self.count or found, found)


def check_tasks(source: TaskSource, where: str) -> None:
    """Raises ValueError or OSError on tasks that cannot be made, naming the field, or file and line.

    A file that is not there is no error yet, since flags may still name another one: `check_files` says so.
    """
    if not source.environment:
        wanted = f"name a file of questions, a folder of tasks, or one of {_names()}"
        raise ValueError(f"{where} has neither path nor environment; {wanted}")
    try:
        known = environment(source.environment).DIFFICULTIES
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    _check_path(source, where)
    if not source.path:
        _check_made(source, known, where)
    elif source.is_there:
        _check_read(source, where)


def check_files(sources: Sequence[TaskSource], where: str) -> None:
    """Raises FileNotFoundError where a file of questions, or a folder of tasks, is not there."""
    for i, source in enumerate(sources):
        if not source.is_there:
            wanted = "a folder of tasks" if source.environment == harbor.NAME else "a file of questions"
            raise FileNotFoundError(f"{where}[{i}].path: {source.path} does not exist; name {wanted}")


def _check_path(source: TaskSource, where: str) -> None:
    name = source.environment
    if source.path and name not in READERS:
        whole = f"--config.{where.partition('[')[0]}=\"({{'path': {source.path!r}}},)\""
        raise ValueError(
            f"{where}.path is {source.path!r} and environment {name!r}, which reads no file; for the questions of the "
            f"file alone set {whole}, for {name} alone {where}.path=''"
        )
    if not source.path and name in READERS:
        needs = {
            questions.NAME: 'the file of its questions, JSON lines {"prompt", "answer"}',
            harbor.NAME: "the folder of its tasks",
        }
        raise ValueError(f"{where}.path is ''; {name} needs {needs[name]}")


def _check_made(source: TaskSource, known: range, where: str) -> None:
    """Of tasks that are made from seeds."""
    name = source.environment
    fit = all(difficulty in known for difficulty in source.difficulties)
    if not fit or not (source.difficulties or known == ANY_DIFFICULTY):
        found = f"{where}.difficulties is {list(source.difficulties)}"
        raise ValueError(f"{found}; {name} has {known[0]} to {known[-1]}, name some of them")
    if source.count < 1 or source.seed < 0 or source.seed + source.count > HELD_OUT_SEEDS:
        raise ValueError(
            f"{where}: count is {source.count} and seed {source.seed}; expected at least 1 and 0, and all seeds below "
            f"{HELD_OUT_SEEDS}: from there on they make held-out tasks"
        )
    if name not in NAMES:
        _check_own(source, where)


def _check_own(source: TaskSource, where: str) -> None:
    """Of an environment that is not ours: its first tasks can be made, and are the same when they are made again."""
    for i in range(min(source.count, max(1, len(source.difficulties)))):
        first, again = (task_of([source], i) for _ in range(2))
        if first.id != again.id:
            raise ValueError(
                f"{where}: make_task({first.seed}, {first.difficulty}) of {source.environment} made two different "
                "tasks; draw from random.Random(seed)"
            )


def _check_read(source: TaskSource, where: str) -> None:
    """Of tasks that are read."""
    if source.difficulties or source.seed:
        found = f"difficulties is {list(source.difficulties)} and seed {source.seed}"
        whose = (
            "the questions of a file have neither" if source.environment == questions.NAME else "a folder has neither"
        )
        raise ValueError(f"{where}: {found}; {whose}: remove them")
    READERS[source.environment].cache_clear()  # an earlier run of this process may have read another file there
    found = _read(source)
    if not found.training or source.count < 0 or source.count > len(found.training):
        kind = "questions" if source.environment == questions.NAME else "tasks"
        raise ValueError(
            f"{where}.count is {source.count}; {source.path} has {len(found.training)} {kind} to train on and "
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
        return _read(source).training[left]
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
        return list(itertools.islice(_read(source).held_out, count))
    return held_out_tasks(source.environment, source.difficulties, count)


def place_of(task: Task) -> str:
    """Where a task that was read stands in its file or folder."""
    return f"line {task.seed}" if task.environment == questions.NAME else f"task {task.hidden['name']}"


def tasks_of_path(path: str) -> list[Task]:
    """All tasks of a file of questions or a folder of tasks, in its order. Errors as `check_tasks`."""
    found = _read(TaskSource(path=path))
    return sorted((*found.training, *found.held_out), key=lambda task: task.seed)


def distinct_held_out(sources: Sequence[TaskSource], count: int) -> list[Task]:
    """The first `count` held-out tasks of each source; of equal ones, the first."""
    return list({task.id: task for source in sources for task in held_out_of(source, count)}.values())


def distinct_tasks(name: str, difficulty: int, count: int, *, seed: int = 0) -> list[Task]:
    """The first `count` tasks of an environment, from a seed on, that all differ.

    Raises ValueError with how many there are, where so many seeds on end make none that is new that it has no more.
    """
    found: dict[str, Task] = {}
    seeds, last_new = itertools.count(seed), seed
    while len(found) < count:
        task = environment(name).make_task(next(seeds), difficulty)
        if found.setdefault(task.id, task) is task:
            last_new = task.seed
        elif task.seed - last_new > max(MIN_REPEATED, len(found)):
            raise ValueError(
                f"{name}: difficulty {difficulty} makes {len(found)} different tasks, and {count} were asked for; "
                "choose a higher difficulty, or fewer"
            )
    return list(found.values())


def held_out_tasks(name: str, difficulties: Sequence[int], count: int) -> list[Task]:
    """The first `count` held-out tasks of an environment, whose difficulties go round."""
    return [_make(name, difficulties, HELD_OUT_SEEDS, i) for i in range(count)]


def _read(source: TaskSource) -> questions.Questions | harbor.Tasks:
    return READERS[source.environment](source.path)


def _make(name: str, difficulties: Sequence[int], seed: int, i: int) -> Task:
    return environment(name).make_task(seed + i, difficulties[i % len(difficulties)] if difficulties else 1)


def _names() -> str:
    return f"the environments {', '.join(NAMES)}, or module:name for one of your own"
