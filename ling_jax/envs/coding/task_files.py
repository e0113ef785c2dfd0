"""Tasks of coding environments as JSON lines; what is wrong with a file is named by line and field."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ling_jax.chat.template import check_messages
from ling_jax.data.json_lines import field, read_objects
from ling_jax.envs import workflow
from ling_jax.envs.base import Task
from ling_jax.envs.coding import functions, repositories
from ling_jax.envs.coding.check import check_function_task, check_repository_task
from ling_jax.envs.workflow.check import check_task
from ling_jax.files import replacing
from ling_jax.messages import nearest, shown
from ling_jax.paths import as_path

CHECKS = {
    functions.NAME: check_function_task,
    repositories.NAME: check_repository_task,
    workflow.environment.NAME: check_task,
}
TYPES = {"environment": str, "difficulty": int, "seed": int, "hidden": dict, "max_tokens": int, "max_turns": int}


def write_tasks(tasks: Iterable[Task], path: str | Path) -> None:
    """Writes tasks, one a line, with their ids."""
    with replacing(as_path(path)) as file:
        for task in tasks:
            file.write(json.dumps({"id": task.id} | dataclasses.asdict(task)).encode() + b"\n")


def read_tasks(path: str | Path) -> tuple[Task, ...]:
    """The tasks of a file. Raises ValueError on the first that is none, and on two of one id; OSError."""
    tasks, lines = [], {}
    for where, record in read_objects(path, "a task"):
        task = _task(record, where)
        if (earlier := lines.setdefault(task.id, where)) != where:
            raise ValueError(f"{where}: it has the id {task.id}, as the task of {earlier}; leave one of the two out")
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{path} holds no task; expected JSON lines as write_tasks writes them")
    return tuple(tasks)


def _task(record: dict[str, Any], where: str) -> Task:
    for name, kind in TYPES.items():
        if type(value := field(record, name, where)) is not kind:
            raise ValueError(f"{where}: {name} is {shown(value)}; expected a value of type {kind.__name__}")
    known = [known.name for known in dataclasses.fields(Task)]
    for name in record:
        if name not in (*known, "id"):
            raise ValueError(f"{where} has the unknown field {shown(name)}{nearest(name, known)}")
    if record["environment"] not in CHECKS:
        raise ValueError(f"{where}: environment is {shown(record['environment'])}; expected one of {', '.join(CHECKS)}")
    for name in ("max_tokens", "max_turns"):
        if record[name] < 1:
            raise ValueError(f"{where}: {name} is {record[name]}; expected at least 1")
    try:
        check_messages(field(record, "messages", where), "messages")
        task = Task(**{name: record[name] for name in known if name in record})
        CHECKS[task.environment](task)
    except ValueError as error:
        raise ValueError(f"{where}: {error}".replace(f"{where}: {where}", where)) from None
    if record.get("id", task.id) != task.id:
        raise ValueError(f"{where}: id is {shown(record['id'])}, and the task's content has {task.id}; leave it out")
    return task
