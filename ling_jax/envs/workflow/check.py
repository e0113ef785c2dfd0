"""What a task has to hold before it is begun; it may come from a file."""

from ling_jax.envs.base import Task
from ling_jax.envs.coding.check import check_fields, is_list, is_text, is_texts


def check_task(task: Task) -> None:
    """Raises ValueError naming the field that is missing or of another type."""
    where = f"task {task.id}: hidden"
    check_fields(task.hidden, {"files": is_texts, "outputs": is_list}, where)
    for number, output in enumerate(task.hidden["outputs"]):
        here = f"{where}.outputs[{number}]"
        check_fields(output, {"path": is_text, "columns": is_rows, "rows": is_rows}, here)
        for row in output["rows"]:
            if is_rows(row):
                raise ValueError(f"{here}.rows holds {row!r}; expected lists of values")


def is_rows(value) -> str:
    """What is expected of a list that may be empty; "" of one."""
    return "" if isinstance(value, (list, tuple)) else "a list"
