"""What an attack is. Runs inside of boxes, as all modules of attacks do: the standard library only."""

from collections.abc import Callable
from typing import Any, NamedTuple

MIB = 1 << 20
FAST, SLOW = "fast", "slow"
ENDS_ITSELF, IS_KILLED = ("exited",), ("exited", "killed")  # a seccomp filter refuses or kills
IS_STOPPED = ("timeout",)


class Attack(NamedTuple):
    name: str  # module.function
    tries: str  # one sentence
    attempt: Callable[[Any], str | None]  # what it got hold of, as text; raises OSError or returns None if refused
    ends: tuple[str, ...] = ENDS_ITSELF  # statuses of a result that are right
    works_as: str = "anyone"  # who succeeds without a sandbox: "anyone", "root" or "user"
    capability: int | None = None  # the number of the one that root has to have for it
    unsafe: str = ""  # why it is not tried without a sandbox; empty where it is
    limits: tuple[tuple[str, Any], ...] = ()  # of the box, where they differ from `judge.LIMITS`
    stdin: bytes = b""
    left: tuple[str, ...] = ()  # paths in the box that the host reads and writes afterwards
    speed: str = FAST

    @property
    def waits(self) -> bool:
        """Whether it lasts until its deadline: such attacks run at the same time."""
        return self.ends == IS_STOPPED


def attack(**fields: Any) -> Callable[[Callable[[Any], str | None]], Attack]:
    """Makes an attack of a function: its name, and its docstring as the sentence."""

    def named(function: Callable[[Any], str | None]) -> Attack:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        limits = tuple(fields.pop("limits", {}).items())
        return Attack(name, (function.__doc__ or "").strip(), function, limits=limits, **fields)

    return named


class RefusedError(OSError):
    """The attack saw that it would come to nothing."""
