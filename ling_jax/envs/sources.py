"""Tasks by the thousand: which ones a config means, whoever learns from them."""

import dataclasses
from collections.abc import Iterator, Sequence

from ling_jax.config import nearest
from ling_jax.envs import ENVIRONMENTS, HELD_OUT_SEEDS, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSource:
    """Tasks of an environment."""

    environment: str
    difficulties: tuple[int, ...]  # of the tasks, in turn
    count: int
    seed: int = 0  # of the first task; the next ones count up


def check_tasks(source: TaskSource, where: str) -> None:
    """Raises ValueError on tasks that cannot be made, naming the field."""
    name = source.environment
    if name not in ENVIRONMENTS:
        found = f"{name!r}{nearest(name, ENVIRONMENTS)}"
        raise ValueError(f"{where}.environment is {found}; there are {', '.join(ENVIRONMENTS)}")
    known = ENVIRONMENTS[name].DIFFICULTIES
    if not source.difficulties or not set(source.difficulties) <= set(known):
        found = f"{where}.difficulties is {list(source.difficulties)}"
        raise ValueError(f"{found}; {name} has {known[0]} to {known[-1]}, name some of them")
    if source.count < 1 or source.seed < 0 or source.seed + source.count > HELD_OUT_SEEDS:
        raise ValueError(
            f"{where}: count is {source.count} and seed {source.seed}; expected at least 1 and 0, and all seeds below "
            f"{HELD_OUT_SEEDS}: from there on they make held-out tasks"
        )


def tasks(source: TaskSource) -> Iterator[Task]:
    """All of them, in order."""
    return (task_of([source], number) for number in range(source.count))


def task_of(sources: Sequence[TaskSource], number: int) -> Task:
    """Task `number` of all the sources' tasks, one source after the other. Raises ValueError past the last."""
    left = number
    for source in sources:
        if left < source.count:
            return _make(source.environment, source.difficulties, source.seed, left)
        left -= source.count
    raise ValueError(f"task {number} was asked for; there are {sum(source.count for source in sources)}")


def held_out_tasks(environment: str, difficulties: Sequence[int], count: int) -> list[Task]:
    """The first `count` held-out tasks of an environment, whose difficulties go round."""
    return [_make(environment, difficulties, HELD_OUT_SEEDS, i) for i in range(count)]


def _make(environment: str, difficulties: Sequence[int], seed: int, i: int) -> Task:
    return ENVIRONMENTS[environment].make_task(seed + i, difficulties[i % len(difficulties)])
