"""What a task has to hold before it is begun; a task may come from a file."""

from collections.abc import Callable
from typing import Any

from ling_jax.envs.base import Task
from ling_jax.messages import shown


def check_function_task(task: Task) -> None:
    """Raises ValueError naming the field of a task of `functions` that is missing or of another type."""
    where = f"task {task.id}: hidden"
    _check(task.hidden, {"name": _is_name, "cases": _is_list, "solution": _is_text}, where)
    for number, case in enumerate(task.hidden["cases"]):
        _check(case, {"arguments": _is_list, "expected": _is_any}, f"{where}.cases[{number}]")


def check_repository_task(task: Task) -> None:
    """Raises ValueError naming the field of a task of `repositories` that is missing or of another type."""
    where, hidden = f"task {task.id}: hidden", task.hidden
    lists = dict.fromkeys(("fail_to_pass", "fixes"), _is_list)
    _check(hidden, {"files": _is_texts, "tests": _is_texts, "pass_to_pass": _is_any, **lists}, where)
    for number, fix in enumerate(hidden["fixes"]):
        _check(fix, dict.fromkeys(("path", "search", "replace"), _is_text), f"{where}.fixes[{number}]")
    for field in ("fail_to_pass", "pass_to_pass"):
        if not isinstance(hidden[field], (list, tuple)):
            raise ValueError(f"{where}.{field} is {shown(hidden[field])}; expected a list")
        for test in hidden[field]:
            module = test.rsplit(".", 2)[0] if isinstance(test, str) else None
            if module not in hidden["tests"]:
                raise ValueError(f"{where}.{field} names {shown(test)}; expected module.Class.method of tests")


def _check(value: Any, fields: dict[str, Callable[[Any], str]], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}; expected an object with {', '.join(fields)}")
    for name, expected in fields.items():
        if name not in value:
            raise ValueError(f"{where} has no {name!r}; expected {', '.join(fields)}")
        if wanted := expected(value[name]):
            raise ValueError(f"{where}.{name} is {shown(value[name])}; expected {wanted}")


def _is_any(value: Any) -> str:
    del value
    return ""


def _is_text(value: Any) -> str:
    return "" if isinstance(value, str) else "text"


def _is_name(value: Any) -> str:
    return "" if isinstance(value, str) and value.isidentifier() else "the name of a function"


def _is_list(value: Any) -> str:
    return "" if isinstance(value, (list, tuple)) and value else "a list that is not empty"


def _is_texts(value: Any) -> str:
    good = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return "" if good and value else "texts by name"
