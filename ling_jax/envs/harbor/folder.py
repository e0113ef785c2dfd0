"""Tasks in the directories of Harbor (task.toml, schema versions 1.0 to 1.4), which many benchmarks have.

    task.toml               settings; all have defaults
    instruction.md          what the agent is asked
    environment/Dockerfile  what it finds (`dockerfile`)
    tests/test.sh           judges: it writes /logs/verifier/reward.txt or reward.json
    solution/solve.sh       may be missing

All of it becomes part of the task, so that a run keeps its tasks whatever becomes of the folder.
"""

import base64
import dataclasses
import functools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ling_jax.envs.base import Task, is_held_out
from ling_jax.envs.coding.workspace import TOOLS
from ling_jax.envs.harbor.dockerfile import Image, Unsupported, read_dockerfile, read_text
from ling_jax.messages import nearest, shown, warn
from ling_jax.sandbox.contract import MIB

NAME = "harbor"
DIFFICULTIES = range(1, 4)
WORDS = {"easy": 1, "medium": 2, "hard": 3}  # of metadata.difficulty; others are 1
VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4")
SYSTEM = "Work in {workdir} with the tools. Call task_done when the work is done."
MAX_TOKENS = 16_384  # our choice: rollout.max_tokens sets less
MAX_TURNS = 50  # our choice
MAX_BYTES = 16 * MIB  # our choice: of a task's files together, which stand in the task
MAX_MEMORY, MAX_DISK = 4096, 1024  # MiB; our choice: a task may ask for less
MEMORY = 2048  # MiB; Harbor's default
SECONDS = 600.0  # Harbor's default, of the verifier and, our choice, of the agent
WARNINGS = 10  # our choice: of tasks that are left out, with a line each
SECTIONS = {  # what is read of task.toml: types
    "verifier": {"timeout_sec": (int, float), "env": dict},
    "agent": {"timeout_sec": (int, float)},
    "environment": {"memory_mb": int, "storage_mb": int, "cpus": (int, float)},
    "solution": {"env": dict},
    "metadata": {},
    "task": {"name": str},
}
LACKING = {  # fields that ask for what the sandbox lacks, unless they are empty
    "environment": ("docker_image", "gpus", "tpu", "mcp_servers", "healthcheck", "skills_dir"),
    "verifier": ("environment", "import_path", "collect"),
}


class Tasks(NamedTuple):
    """The tasks of a folder, sorted by its names; one in eight is held out, by its messages (`is_held_out`)."""

    training: tuple[Task, ...]
    held_out: tuple[Task, ...]


@functools.cache
def read_tasks(path: str) -> Tasks:
    """The tasks of a folder: of one task, or of folders of tasks, however deep. A task's seed is its place.

    A folder is read once: `read_tasks.cache_clear()` forgets it. Tasks that need what the sandbox lacks are left out,
    with a warning each. Raises Unsupported where all do, ValueError that names file and field on a malformed task and
    on two tasks with one name or one content, and OSError.
    """
    folders = [path] if is_task(path) else [*_folders(path)]
    tasks, lacking, names = [], [], {}
    for folder in folders:
        try:
            task = read_task(folder, len(tasks))
        except Unsupported as error:
            lacking.append(str(error))
            continue
        unnamed = dataclasses.replace(task, hidden={**task.hidden, "name": ""})
        for kind, key in (("name", task.hidden["name"]), ("content", unnamed.id)):
            if (earlier := names.setdefault((kind, key), folder)) != folder:
                raise ValueError(f"{folder}: its {kind} is that of {earlier}; leave one of the two out")
        tasks.append(task)
    if not tasks:
        raise Unsupported(lacking[0]) if lacking else ValueError(f"{path} holds no task: no folder in it has task.toml")
    for line in lacking[:WARNINGS]:
        _warn_once(f"left out: {line}")
    if more := lacking[WARNINGS:]:
        _warn_once(f"left out: {len(more)} more tasks of {path}")
    held_out = tuple(task for task in tasks if is_held_out(task))
    return Tasks(tuple(task for task in tasks if not is_held_out(task)), held_out)


@functools.cache
def _warn_once(line: str) -> None:
    """A config is checked several times before a run."""
    warn(line)


def is_task(path: str | Path) -> bool:
    """Whether a folder is that of a task."""
    return (Path(path) / "task.toml").is_file()


def read_task(folder: str | Path, seed: int = 0) -> Task:
    """The task of a folder. Raises Unsupported, ValueError and OSError as `read_tasks`."""
    folder = Path(folder)
    _check_size(folder)
    config = _read_config(folder / "task.toml")
    image = _read_image(folder, config)
    tests, solution = read_files(folder / "tests"), read_files(folder / "solution")
    if "test.sh" not in tests:
        raise ValueError(f"{folder} has no tests/test.sh, which judges")
    instruction = _instruction(folder / "instruction.md")
    hidden = {
        "name": config["task"].get("name", folder.resolve().name),
        "workdir": image.workdir,
        "env": dict(image.env),
        "files": {path: packed(data) for path, data in image.files.items()},
        "executable": sorted(image.executable),
        "tests": {path: packed(data) for path, data in tests.items()},
        "tests_env": _env(config, "verifier", folder),
        "tests_seconds": float(config["verifier"].get("timeout_sec", SECONDS)),
        "solution": {path: packed(data) for path, data in solution.items()},
        "solution_env": _env(config, "solution", folder),
        "agent_seconds": float(config["agent"].get("timeout_sec", SECONDS)),
        "memory_mib": min(config["environment"].get("memory_mb", MEMORY), MAX_MEMORY),
        "disk_mib": min(config["environment"].get("storage_mb", MAX_DISK), MAX_DISK),
    }
    system = {"role": "system", "content": SYSTEM.format(workdir=image.workdir)}
    return Task(
        environment=NAME,
        difficulty=WORDS.get(config["metadata"].get("difficulty"), 1),
        seed=seed,
        messages=[system, {"role": "user", "content": instruction}],
        hidden=hidden,
        max_tokens=MAX_TOKENS,
        max_turns=MAX_TURNS,
        tools=TOOLS,
    )


def packed(data: bytes) -> str | dict[str, str]:
    """A file's bytes as a JSON value: its text, or {"base64": …} where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def unpacked(value: str | Mapping[str, str]) -> bytes:
    """The bytes that `packed` got."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def read_files(folder: Path) -> dict[str, bytes]:
    """The files below a folder by their names there; {} where there is no folder. Raises Unsupported on a link."""
    found = sorted(folder.rglob("*"))
    if link := next((path for path in (folder, *found) if path.is_symlink()), None):
        raise Unsupported(f"{link} is a link; put the file there")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.is_file()}


def _folders(path: str) -> Iterator[str]:
    """The folders of tasks below a folder, sorted; those inside of a task are none."""
    for here, names, files in os.walk(path):
        names[:] = [] if "task.toml" in files else sorted(name for name in names if not name.startswith("."))
        if "task.toml" in files:
            yield here


def _read_config(file: Path) -> dict[str, Any]:
    """task.toml with all sections of `SECTIONS`, checked."""
    try:
        config = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file.parent} has no task.toml; expected the folder of a Harbor task") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{file} is not TOML: {error}") from None
    version = config.get("schema_version", config.get("version", VERSIONS[0]))
    if version not in VERSIONS:
        raise ValueError(f"{file}: schema_version is {shown(version)}; expected one of {', '.join(VERSIONS)}")
    if config.get("steps"):
        raise Unsupported(f"{file}: [[steps]]: tasks of several steps are not run")
    for section, fields in SECTIONS.items():
        _check_section(config.setdefault(section, {}), fields, f"{file}: {section}")
    for section, lacking in LACKING.items():
        if found := next((name for name in lacking if config[section].get(name)), None):
            raise Unsupported(f"{file}: {section}.{found} is {shown(config[section][found])}; the sandbox has none")
    return config


def _check_section(found: Any, fields: Mapping[str, Any], where: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; expected a table")
    for name, kinds in fields.items():
        value = found.get(name)
        if value is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = getattr(kinds, "__name__", "number")
            raise ValueError(f"{where}.{name} is {shown(value)}; expected a value of type {wanted}")
        if not isinstance(value, (str, dict)) and not 0 < value < float("inf"):
            raise ValueError(f"{where}.{name} is {value}; expected a number above 0")


def _env(config: Mapping[str, Any], section: str, folder: Path) -> dict[str, str]:
    """The variables of a section. Raises Unsupported where they are to come from this machine."""
    env = config[section].get("env", {})
    for name, value in env.items():
        if not isinstance(value, str):
            raise ValueError(f"{folder / 'task.toml'}: {section}.env.{name} is {shown(value)}; expected text")
        if "${" in value:
            raise Unsupported(f"{folder / 'task.toml'}: {section}.env.{name}: no variable of this machine is given")
    return env


def _read_image(folder: Path, config: Mapping[str, Any]) -> Image:
    context = folder / "environment"
    for name in ("docker-compose.yaml", "docker-compose.yml", ".dockerignore"):
        if (context / name).exists():
            raise Unsupported(f"{context / name} is not followed; the sandbox follows a Dockerfile")
    if not (context / "Dockerfile").is_file():
        near = nearest("Dockerfile", [path.name for path in context.glob("*")]) if context.is_dir() else ""
        raise ValueError(f"{folder} has no environment/Dockerfile{near}, which says what the agent finds")
    image = read_dockerfile(context / "Dockerfile")
    return image._replace(env={**image.env, **_env(config, "environment", folder)})


def _instruction(file: Path) -> str:
    """The text for the agent, without the comment before it in which benchmarks have their canary."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no instruction.md, which says what is asked")
    if not (text := re.sub(r"\A\s*<!--.*?-->", "", read_text(file), flags=re.S).strip()):
        raise ValueError(f"{file} is empty; it says what is asked")
    return text


def _check_size(folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if size > MAX_BYTES:
        raise Unsupported(f"{folder} has files of {size} bytes; a task holds {MAX_BYTES}")
