"""What a task has to hold before it is begun; a task may come from a file."""

from collections.abc import Callable
from typing import Any

from ling_jax.envs.base import Task
from ling_jax.messages import shown


def check_function_task(task: Task) -> None:
    """Raises ValueError naming the field of a task of `functions` that is missing or of another type."""
    where = f"task {task.id}: hidden"
    check_fields(task.hidden, {"name": is_name, "cases": is_list, "solution": is_text}, where)
    for number, case in enumerate(task.hidden["cases"]):
        check_fields(case, {"arguments": is_list, "expected": is_any}, f"{where}.cases[{number}]")


def check_repository_task(task: Task) -> None:
    """Raises ValueError naming the field of a task of `repositories` that is missing or of another type."""
    where, hidden = f"task {task.id}: hidden", task.hidden
    lists = dict.fromkeys(("fail_to_pass", "fixes"), is_list)
    check_fields(hidden, {"files": is_texts, "tests": is_texts, "pass_to_pass": is_any, **lists}, where)
    for number, fix in enumerate(hidden["fixes"]):
        check_fields(fix, dict.fromkeys(("path", "search", "replace"), is_text), f"{where}.fixes[{number}]")
    for field in ("fail_to_pass", "pass_to_pass"):
        if not isinstance(hidden[field], (list, tuple)):
            raise ValueError(f"{where}.{field} is {shown(hidden[field])}; expected a list")
        for test in hidden[field]:
            module = test.rsplit(".", 2)[0] if isinstance(test, str) else None
            if module not in hidden["tests"]:
                raise ValueError(f"{where}.{field} names {shown(test)}; expected module.Class.method of tests")


def check_fields(value: Any, fields: dict[str, Callable[[Any], str]], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {shown(value)}; expected an object with {', '.join(fields)}")
    for name, expected in fields.items():
        if name not in value:
            raise ValueError(f"{where} has no {name!r}; expected {', '.join(fields)}")
        if wanted := expected(value[name]):
            raise ValueError(f"{where}.{name} is {shown(value[name])}; expected {wanted}")


def is_any(value: Any) -> str:
    del value
    return ""


def is_text(value: Any) -> str:
    return "" if isinstance(value, str) else "text"


def is_name(value: Any) -> str:
    return "" if isinstance(value, str) and value.isidentifier() else "the name of a function"


def is_list(value: Any) -> str:
    return "" if isinstance(value, (list, tuple)) and value else "a list that is not empty"


def is_texts(value: Any) -> str:
    good = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return "" if good and value else "texts by name"
