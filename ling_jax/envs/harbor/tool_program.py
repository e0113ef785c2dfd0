"""The tools of an exported task as a program, and the verifier of what was done with them.

    python3 tools.py NAME '{"argument": "value"}'      a call
    python3 tools.py say 'TEXT'                        words to the user

The standard library is enough, since tasks carry this module and that of their episodes (`bundle`). Each call, and all
that is said, becomes a line of a log. Nothing else is kept: whatever a tool or the user answers follows from the lines
before it, all of which are carried out again. So the verifier, which has its own program and task, needs the log
alone, and a log that was edited is nothing but other calls.

A task is {"module", "hidden"}. The module has begin(hidden) -> episode, act(episode, call), hear(episode, words) and
rewards(episode), as `envs.tools.episode` and `envs.search.episode` have.
"""

import fcntl
import hashlib
import importlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

TASK = "task"
SAY = "say"
MAX_LINES = 1000  # our choice: the longest reference has some hundred
MAX_BYTES = 1 << 20  # of a log; our choice
REWARD = "/logs/verifier/reward.json"
USAGE = """usage: python3 tools.py NAME '{"argument": "value"}', or python3 tools.py say 'TEXT'"""
LAST = "That was the last turn."
ENDED = "The last turn was before; nothing more counts."

Line = Mapping[str, Any]  # {"call": {"name", "arguments"}} or {"say": text}
Task = Mapping[str, Any]
Episode = Any  # of the task's module


def main(archive: str, log: str) -> None:
    """Carries out the command line after what the log has, and prints what is answered."""
    try:
        line = line_of(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{error}\n{USAGE}")
    task = read_task(archive)
    with open(log, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        added = f"{json.dumps(line)}\n".encode()
        lines, error = read_log(file.read() + added)
        if error:
            sys.exit(f"{log}: {error}")
        episode = replay(task, lines[:-1])
        if episode.ended:
            sys.exit(ENDED)
        _, messages = take(task, episode, line)
        file.write(added)
    print("\n".join(message["content"] for message in messages) or LAST)


def judge(archive: str, log: str) -> None:
    """Writes what the episode of a log is worth."""
    rewards, error = worth(read_task(archive), _content(log))
    with open(REWARD, "w") as file:
        json.dump({"reward": rewards.pop("outcome"), **rewards}, file)
    if error:
        print(f"{log}: {error}", file=sys.stderr)


def worth(task: Task, data: bytes | None) -> tuple[dict[str, float], str]:
    """(the rewards of a log, what is wrong with it or ""): outcome 0 where a line is none of the program's."""
    lines, error = read_log(data)
    rewards = importlib.import_module(task["module"]).rewards(replay(task, lines))
    return rewards | ({"outcome": 0.0} if error else {}), error


def packed(task: Task) -> bytes:
    """A task as the file TASK of an archive. It cannot be read as text, and is no secret: `read_task` reads it."""
    return _masked(zlib.compress(json.dumps(task).encode()))


def read_task(archive: str | BinaryIO) -> Task:
    """The task in an archive (`bundle.archive`)."""
    with zipfile.ZipFile(archive) as files:
        return json.loads(zlib.decompress(_masked(files.read(TASK))))


def line_of(argv: Sequence[str]) -> Line:
    """The line of a command. Raises ValueError where it is none."""
    if len(argv) == 2 and argv[0] == SAY:
        return {"say": argv[1]}
    if len(argv) not in (1, 2) or argv[0] == SAY:
        raise ValueError(f"expected a name and one argument more, found {len(argv)} arguments")
    line = {"call": {"name": argv[0], "arguments": _json(argv[1] if len(argv) == 2 else "{}")}}
    if not _is_line(line):
        raise ValueError(f"{argv[-1][:100]!r} is no JSON object")
    return line


def read_log(data: bytes | None) -> tuple[list[Line], str]:
    """(the lines up to the first that the program does not write, what is wrong with it or "").

    None stands for what is no plain file.
    """
    lines: list[Line] = []
    if data is None:
        return lines, "it is no plain file"
    if len(data) > MAX_BYTES:
        return lines, f"it has more than {MAX_BYTES} bytes"
    for number, text in enumerate(data.splitlines(keepends=True), 1):
        if number > MAX_LINES:
            return lines, f"it has more than {MAX_LINES} lines"
        line = _json(text) if text.endswith(b"\n") else None
        if not _is_line(line):
            return lines, f"line {number} is neither a call nor said"
        lines.append(line)
    return lines, ""


def replay(task: Task, lines: Sequence[Line]) -> Episode:
    """The episode after these lines; those after its end do not count."""
    episode = importlib.import_module(task["module"]).begin(task["hidden"])
    for line in lines:
        if episode.ended:
            break
        episode, _ = take(task, episode, line)
    return episode


def take(task: Task, episode: Episode, line: Line) -> tuple[Episode, list[dict[str, Any]]]:
    """(the episode after a line, the messages of tool or user)."""
    module = importlib.import_module(task["module"])
    if "say" in line:
        return module.hear(episode, line["say"])
    episode, message, _ = module.act(episode, line["call"])
    return episode, [message]


def _masked(data: bytes) -> bytes:
    """The data with a stream of bits added, and without it again."""
    stream = hashlib.shake_256(TASK.encode()).digest(len(data))
    return (int.from_bytes(data) ^ int.from_bytes(stream)).to_bytes(len(data))


def _content(path: str) -> bytes | None:
    """The bytes of a log, cut where they are too many; none where nothing was done. None where it is no plain file."""
    if not os.path.lexists(path):
        return b""
    if not os.path.isfile(path) or os.path.islink(path):
        return None
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _json(text: str | bytes) -> Any:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or len(line) != 1:
        return False
    if "say" in line:
        return isinstance(line["say"], str)
    call = line.get("call")
    return (
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and isinstance(call["name"], str)
        and isinstance(call["arguments"], dict)
    )
