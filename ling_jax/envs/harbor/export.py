"""Tasks as directories of Harbor, which other tools run and `folder` reads back."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ling_jax.envs.base import Task
from ling_jax.envs.coding.verdict import CALL_SECONDS, MODULE_SECONDS, PROGRAM, TESTS_SECONDS
from ling_jax.envs.find import environment
from ling_jax.envs.harbor import instructions, tool_files
from ling_jax.envs.harbor.folder import NAME, WORDS, unpacked
from ling_jax.envs.reasoning import answers
from ling_jax.envs.workflow import outputs, small
from ling_jax.envs.workflow.environment import RULES
from ling_jax.files import new_folder

IMAGE = "python:3.12-slim"  # our choice: a shell and Python
TOML = """schema_version = "1.4"

[task]
name = {name}

[metadata]
difficulty = {difficulty}

[verifier]
timeout_sec = {tests_seconds}
env = {tests_env}

[agent]
timeout_sec = {agent_seconds}

[environment]
memory_mb = {memory_mib}
storage_mb = {disk_mib}
network_mode = "no-network"

[solution]
env = {solution_env}
"""


ANSWER = "answer.py"
REPOSITORY = "`python3 -m unittest` runs the tests. They are right; more of them than are here have to pass in the end."
MEND = """import json
import pathlib

for fix in json.loads(pathlib.Path("/solution/fixes.json").read_text()):
    path = pathlib.Path(fix["path"])
    text = path.read_text()
    assert text.count(fix["search"]) == 1, fix
    path.write_text(text.replace(fix["search"], fix["replace"]))
"""


class Parts(NamedTuple):
    """What a directory holds; files by absolute path, tests and solution by their names in their folders."""

    name: str
    difficulty: int
    instruction: str
    files: Mapping[str, bytes]
    tests: Mapping[str, bytes]  # test.sh among them
    solution: Mapping[str, bytes] = {}  # solve.sh among them, or none
    executable: tuple[str, ...] = ()  # of the files
    workdir: str = "/work"
    env: Mapping[str, str] = {}
    tests_env: Mapping[str, str] = {}
    solution_env: Mapping[str, str] = {}
    tests_seconds: float = 60.0
    agent_seconds: float = 600.0
    memory_mib: int = 512
    disk_mib: int = 64


def export_tasks(tasks: Iterable[Task], folder: Path) -> list[Path]:
    """Writes a directory for each task into a new folder, whole or not at all; returns their paths.

    Raises ValueError on a task of an environment whose tasks do not become directories, and on variables that a
    Dockerfile cannot hold.
    """
    with new_folder(folder) as made:
        names = [write_task(made, parts_of(task)).name for task in tasks]
    return [Path(folder) / name for name in names]


def parts_of(task: Task) -> Parts:
    """What the directory of a task holds. Raises ValueError where tasks of its environment do not become one."""
    if task.environment not in PARTS:
        known = ", ".join(PARTS)
        raise ValueError(f"task {task.id} of {task.environment}: of {known} tasks become directories, of others not")
    return PARTS[task.environment](task)


def _parts_of_folder(task: Task) -> Parts:
    hidden = task.hidden
    same = ("executable", "workdir", "env", "tests_env", "solution_env", "tests_seconds", "agent_seconds", "memory_mib",
            "disk_mib")  # fmt: skip
    files = {
        part: {path: unpacked(text) for path, text in hidden[part].items()} for part in ("files", "tests", "solution")
    }
    return Parts(hidden["name"], task.difficulty, task.prompt, **files, **{name: hidden[name] for name in same})


def _parts_of_function(task: Task) -> Parts:
    cases = task.hidden["cases"]
    request = {
        "kind": "calls",
        "name": task.hidden["name"],
        "calls": [case["arguments"] for case in cases],
        "expected": [case["expected"] for case in cases],
        "answer": ANSWER,
        "seconds": CALL_SECONDS,
    }
    instruction = f"{task.prompt}\n\nWrite the function into {ANSWER} in the working directory."
    solve = f"cat > {ANSWER} <<'END'\n{task.hidden['solution'].rstrip()}\nEND\n"
    return Parts(_name(task), task.difficulty, instruction, {}, _judge(request), {"solve.sh": solve.encode()})


def _parts_of_repository(task: Task) -> Parts:
    hidden = task.hidden
    request = {
        "kind": "tests",
        "modules": hidden["tests"],
        "tests": sorted((*hidden["fail_to_pass"], *hidden["pass_to_pass"])),  # module by module
        "module_seconds": MODULE_SECONDS,
        "seconds": TESTS_SECONDS,
    }
    solution = {
        "fixes.json": json.dumps(hidden["fixes"], indent=1).encode(),
        "solve.py": MEND.encode(),
        "solve.sh": b"python3 /solution/solve.py\n",
    }
    files = {f"/work/{path}": text.encode() for path, text in hidden["files"].items()}
    return Parts(_name(task), task.difficulty, f"{task.prompt} {REPOSITORY}", files, _judge(request), solution)


def _parts_of_workflow(task: Task) -> Parts:
    hidden = task.hidden
    files = {f"/work/{path}": text.encode() for path, text in hidden["files"].items()}
    tests = {
        "test.sh": b"#!/bin/bash\nexec python3 -I /tests/outputs.py\n",
        "outputs.py": Path(outputs.__file__).read_bytes(),
        "request.json": json.dumps({"outputs": hidden["outputs"]}).encode(),
    }
    solution = {"solve.sh": "\n".join([*hidden["commands"], ""]).encode()}
    instruction = f"{RULES if task.tools else small.SYSTEM}\n\n{task.prompt}"
    return Parts(_name(task), task.difficulty, instruction, files, tests, solution)


def _parts_of_answer(task: Task) -> Parts:
    rule = ANSWERED[task.environment]
    tests = {
        "test.sh": b"#!/bin/bash\nexec python3 -I /tests/answers.py\n",
        "answers.py": Path(answers.__file__).read_bytes(),
        "request.json": json.dumps({"rule": rule, "answer": task.hidden["answer"]}).encode(),
    }
    (turn,) = _solution(task)
    solve = f"echo {shlex.quote(turn.splitlines()[-1])} > {answers.FILE}\n"
    instruction = instructions.of_answer(task, rule)
    return Parts(_name(task), task.difficulty, instruction, {}, tests, {"solve.sh": solve.encode()})


def _parts_of_tools(task: Task) -> Parts:
    instruction = instructions.of_tools(task, tool_files.schemas(task))
    solve = "\n".join([*tool_files.commands(task, _solution(task)), ""])
    files, tests = tool_files.files(task), tool_files.tests(task)
    return Parts(_name(task), task.difficulty, instruction, files, tests, {"solve.sh": solve.encode()})


def _solution(task: Task) -> tuple[str, ...]:
    return environment(task.environment).solution(task)


def _name(task: Task) -> str:
    return f"ling_jax/{task.environment}-{task.difficulty}-{task.seed}"


def _judge(request: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of tests/ that give the verdict of `ling_jax.envs.coding.verdict`."""
    return {
        "test.sh": b"#!/bin/bash\nexec python3 -I /tests/judge.py\n",
        "judge.py": (Path(__file__).parent / "judge.py").read_bytes(),
        "verify.py": PROGRAM.encode(),
        "request.json": json.dumps(request).encode(),
    }


ANSWERED = {  # environments with one answer -> the rule of `reasoning.answers`
    "running_sums": "text",
    "digit_sums": "text",
    "ordering": "text",
    "needle": "code",
    "knights": "list",
    "grid": "list",
    "scheduling": "list",
}
PARTS = {
    NAME: _parts_of_folder,
    "functions": _parts_of_function,
    "repositories": _parts_of_repository,
    "workflow": _parts_of_workflow,
    **dict.fromkeys(ANSWERED, _parts_of_answer),
    **dict.fromkeys(tool_files.EPISODES, _parts_of_tools),
}


def write_task(folder: Path, parts: Parts) -> Path:
    """Writes the directory of a task, called by the last part of its name, into a folder; returns its path."""
    here = folder / parts.name.rpartition("/")[2]
    here.mkdir()
    (here / "task.toml").write_text(_toml(parts))
    (here / "instruction.md").write_text(f"{parts.instruction}\n")
    (here / "environment").mkdir()
    (here / "environment" / "Dockerfile").write_text(_dockerfile(parts))
    for path, data in parts.files.items():
        _write(here / "environment" / path.lstrip("/"), data, path in parts.executable)
    for part, files in (("tests", parts.tests), ("solution", parts.solution)):
        for name, data in files.items():
            _write(here / part / name, data, name.endswith(".sh"))
    return here


def _toml(parts: Parts) -> str:
    words = {number: word for word, number in WORDS.items()}
    values = parts._asdict() | {"difficulty": words.get(parts.difficulty, "hard")}
    return TOML.format(**{name: _value(values[name]) for name in re.findall(r"{(\w+)}", TOML)})


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{json.dumps(key)} = {_value(one)}" for key, one in value.items()) + " }"
            if value
            else "{}"
        )
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, int, float)) else ""


def _dockerfile(parts: Parts) -> str:
    lines = [f"FROM {IMAGE}", f"WORKDIR {parts.workdir}"]
    for name, value in parts.env.items():
        if not value.isprintable() or set(value) & set("$'\"\\"):
            raise ValueError(f"{parts.name}: the variable {name} is {value!r}; a Dockerfile is written without quotes")
        lines.append(f'ENV {name}="{value}"')
    tops = sorted({path.split("/")[1] for path in parts.files})
    return "\n".join([*lines, *(f"COPY {top}/ /{top}/" for top in tops), ""])


def _write(path: Path, data: bytes, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if executable:
        path.chmod(0o755)
