"""Environments of the user's own, `module:name`: a class, which is made without arguments, or any object or module.

make_task(seed, difficulty) -> Task               the same task for the same arguments
session() -> Session                              or, where an episode only computes, two functions of values:
reset(task, seed) -> state
step(state, action) -> (state, StepResult)
solution(task) -> tuple of turns                  may be missing: no rehearsal, no fine-tuning data
DIFFICULTIES: range                               may be missing: any difficulty is handed on
SANDBOXED = True                                  where sessions use `ling_jax.sandbox.shared`: it starts before JAX
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from ling_jax.chat.template import check_messages
from ling_jax.envs.base import Session, Task
from ling_jax.envs.pure import PureSession
from ling_jax.messages import error_text, shown
from ling_jax.user_code import load_object

ANY_DIFFICULTY = range(1 << 31)
SIGNATURES = {
    "make_task": "make_task(seed, difficulty) -> Task",
    "session": "session() -> Session",
    "reset": "reset(task, seed) -> state",
    "step": "step(state, action) -> (state, StepResult)",
    "solution": "solution(task) -> tuple of texts",
}
ARGUMENTS = {"make_task": 2, "session": 0, "reset": 2, "step": 2, "solution": 1}
OF_SESSIONS = {
    "open": "async open(task, seed)",
    "step": "async step(action) -> StepResult",
    "close": "async close()",
    "replayable": "replayable = True or False",
}
ARGUMENTS_OF_SESSIONS = {"open": 2, "step": 1, "close": 0}


@dataclasses.dataclass(frozen=True)
class OwnEnvironment:
    """What `envs.base.Environment` says, of an object that is not ours."""

    NAME: str
    DIFFICULTIES: range
    make_task: Callable[[int, int], Task]
    session: Callable[[], Session]
    solution: Callable[[Task], tuple[str, ...]] | None
    SANDBOXED: bool  # whether its sessions run foreign code in boxes of `ling_jax.sandbox`


@functools.cache
def own_environment(name: str) -> OwnEnvironment:
    """The environment that `module:name` names.

    Raises ValueError with all that is missing or takes other arguments.
    """
    made = _made(load_object(name, "environment"), name)
    acts = ("reset", "step") if getattr(made, "session", None) is None else ("session",)
    members = {member: getattr(made, member, None) for member in ("make_task", *acts, "solution")}
    _check_members(name, members, acts)
    if "session" in members:
        _check_session(name, members["session"])
    return OwnEnvironment(
        NAME=name,
        DIFFICULTIES=_difficulties(made, name),
        make_task=functools.partial(_make_task, name, members["make_task"]),
        session=members.get("session") or functools.partial(PureSession, members["reset"], members["step"]),
        solution=members["solution"] and _checked_solution(name, members["solution"]),
        SANDBOXED=bool(getattr(made, "SANDBOXED", False)),
    )


def _made(found: Any, name: str) -> Any:
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:  # the user's own
        raise ValueError(f"environment {name}: making it raised {error_text(error)}") from None


def _check_members(name: str, members: dict[str, Any], acts: tuple[str, ...]) -> None:
    missing = [SIGNATURES[member] for member in ("make_task", *acts) if members[member] is None]
    if missing:
        more = "" if "session" in acts else f"; in the place of reset and step, {SIGNATURES['session']} would do"
        raise ValueError(f"environment {name} lacks {' and '.join(missing)}{more}")
    for member, function in members.items():
        if function is not None and not _takes(function, ARGUMENTS[member]):
            raise ValueError(f"environment {name}: {member} is {_described(function)}; expected {SIGNATURES[member]}")
        if inspect.iscoroutinefunction(function):
            raise ValueError(f"environment {name}: {member} is async; expected {SIGNATURES[member]} without async")


def _check_session(name: str, make: Callable[[], Any]) -> None:
    """Makes one, which is never opened. Raises ValueError with what it lacks."""
    try:
        session = make()
    except Exception as error:  # the user's own
        raise ValueError(f"environment {name}: session() raised {error_text(error)}") from None
    where = f"environment {name}: what session() returns, a {type(session).__name__},"
    missing = [OF_SESSIONS[member] for member in OF_SESSIONS if getattr(session, member, None) is None]
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(missing)}")
    for member, count in ARGUMENTS_OF_SESSIONS.items():
        if not _takes(function := getattr(session, member), count):
            raise ValueError(f"{where} has as {member} {_described(function)}; expected {OF_SESSIONS[member]}")


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:  # not callable, or other arguments
        return False
    except ValueError:  # a built-in that does not say
        return True
    return True


def _described(function: Any) -> str:
    if not callable(function):
        return f"a {type(function).__name__}"
    return f"a function of {inspect.signature(function)}"


def _difficulties(made: Any, name: str) -> range:
    found = getattr(made, "DIFFICULTIES", ANY_DIFFICULTY)
    if not isinstance(found, range) or not found:
        raise ValueError(f"environment {name}: DIFFICULTIES is {found!r}; expected a range, such as range(1, 4)")
    return found


def _checked_solution(name: str, solution: Callable[..., Any]) -> Callable[..., tuple[str, ...]]:
    """`solution`, with its options. Raises ValueError where it raises or returns no turns."""

    @functools.wraps(solution)
    def checked(task: Task, **options: Any) -> tuple[str, ...]:
        where = f"environment {name}: solution of task {task.seed}"
        try:
            turns = solution(task, **options)
        except Exception as error:  # the user's own
            raise ValueError(f"{where} raised {error_text(error)}") from None
        if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError(f"{where} is {shown(turns)}; expected a tuple of texts, one for each turn")
        return tuple(turns)

    return checked


def _make_task(name: str, make_task: Callable[[int, int], Task], seed: int, difficulty: int) -> Task:
    """The task under the name by which its environment is found. Raises ValueError on one that cannot be."""
    where = f"environment {name}: make_task({seed}, {difficulty})"
    try:
        task = make_task(seed, difficulty)
    except Exception as error:  # the user's own
        raise ValueError(f"{where} raised {error_text(error)}") from None
    if not isinstance(task, Task):
        raise ValueError(f"{where} returned a {type(task).__name__}; expected a ling_jax.envs.Task")
    task = dataclasses.replace(task, environment=name, difficulty=difficulty, seed=seed)
    try:
        check_messages(task.messages, "messages")
        task.id  # noqa: B018  its content has to be JSON
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}; a task is messages, and JSON values") from None
    for field in ("max_tokens", "max_turns"):
        if not isinstance(value := getattr(task, field), int) or value < 1:
            raise ValueError(f"{where}: {field} is {value!r}; expected a whole number from 1")
    return task
