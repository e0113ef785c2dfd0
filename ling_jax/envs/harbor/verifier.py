"""The verdict on what an agent left: tests/test.sh in a box of its own, and the reward that it writes there.

Whatever is wrong with a verdict is outcome 0 and a line that says why: an agent can break the tests that run its code,
and to break them must pay no better than to fail them.
"""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ling_jax.envs.base import Task
from ling_jax.envs.coding.boxes import Boxes
from ling_jax.envs.harbor.folder import unpacked
from ling_jax.envs.harbor.places import JUDGES, place
from ling_jax.files import parse_object
from ling_jax.messages import one_line, shown
from ling_jax.sandbox import Box, Result, SandboxError, shared
from ling_jax.sandbox.contract import HIDDEN, MIB, Limits

MADE = " ".join(f"{HIDDEN}/{name}" for name in ("logs/verifier", "logs/agent", "tests", "solution"))
PREPARE = f"mkdir -p {MADE} && xargs -0 -r chmod +x -- && test -d /tests"
FIND = "find . -type f -perm -u+x -print0"
REWARDS = f"{HIDDEN}/logs/verifier/reward"
PROCESSES, FILES = 256, 1 << 16  # of a box; our choice: test suites start more than an agent's command


class Verdict(NamedTuple):
    """What the tests say."""

    rewards: Mapping[str, float]  # "outcome" from 0 to 1, and what reward.json has besides
    error: str | None = None  # what was wrong with the verdict


def open_box(
    boxes: Boxes, task: Task, files: Mapping[str, bytes], executable: Sequence[str], seconds: float, spare: int = 1
) -> Box:
    """A box with these files by their paths in it, the task's limits, its folders, and empty log folders.

    `spare` is how many times the task's disk it has. Raises InfraError where there is no box to be had, and
    SandboxError where it cannot take the files, or has no folders such as /tests.
    """
    hidden = task.hidden
    limits = Limits(
        seconds=seconds,
        memory_bytes=hidden["memory_mib"] * MIB,
        disk_bytes=hidden["disk_mib"] * MIB * spare,
        processes=PROCESSES,
        files=FILES * spare,
    )
    box = boxes.open({}, limits)
    try:
        box.write(files)
    except ValueError as error:  # a name that no file can have
        raise SandboxError(str(error)) from None
    made = box.run(["bash", "-c", PREPARE], stdin=b"\0".join(map(os.fsencode, executable)))
    if made.code != 0:
        why = made.stderr.decode(errors="replace").strip()
        raise SandboxError(why or f"{shared().tier} has no folder /tests: tasks of Harbor need T3")
    return box


def run_in(box: Box, task: Task, argv: Sequence[str], **options: Any) -> Result:
    """`Box.run` in the task's working directory, with its variables besides those given."""
    env = {**options.pop("env", {}), **task.hidden["env"]}
    there = place(task.hidden["workdir"])
    return box.run(["bash", "-c", 'cd -- "$0" && exec "$@"', there, *argv], env=env, **options)


def verify(boxes: Boxes, task: Task, box: Box) -> Verdict:
    """Runs the task's tests on the files that the agent's box holds, which is closed.

    What the agent put where tests, logs and solution belong is left out. Regular files are taken over, and whether they
    are executable; links and empty folders are not. Raises SandboxError where the files cannot be had, and InfraError.
    """
    hidden = task.hidden
    executable = _listed(box.run(["bash", "-c", FIND]))
    files = {path: data for path, data in box.files().items() if not f"{path}/".startswith(JUDGES) and path != HIDDEN}
    boxes.discard(box)
    tests = {f"{HIDDEN}/tests/{name}": unpacked(text) for name, text in hidden["tests"].items()}
    kept = [path for path in executable if path in files]
    judge = open_box(boxes, task, files | tests, [*kept, *tests], hidden["tests_seconds"], spare=2)
    # By bash, which also runs a script without a first line #!.
    result = run_in(judge, task, ["bash", "-c", "/tests/test.sh"], env=hidden["tests_env"])
    found = {kind: judge.read(f"{REWARDS}.{kind}") for kind in ("json", "txt")}
    boxes.discard(judge)
    if result.status == "timeout":
        return failed(f"tests/test.sh did not end in {hidden['tests_seconds']:g} s")
    return read_reward(found, result)


def read_reward(found: Mapping[str, bytes | None], result: Result) -> Verdict:
    """The verdict of reward.json or, where there is none, of reward.txt; `result` is that of the tests."""
    try:
        if found["json"] is not None:
            return _named(parse_object(found["json"], "reward.json", "numbers by their names"))
        if found["txt"] is not None:
            return Verdict({"outcome": _checked(_number(found["txt"]), "reward.txt")})
    except ValueError as error:
        return failed(one_line(str(error)))
    end = f"exit code {result.code}" if result.status == "exited" else result.status
    said = one_line((result.stderr or result.stdout).decode(errors="replace").strip()[-200:])
    return failed(f"tests/test.sh wrote no reward.txt and no reward.json: {end}{f', {said}' if said else ''}")


def _named(rewards: Mapping[str, object]) -> Verdict:
    """The numbers of reward.json; "reward", or the only one, is the outcome. What is no number is left out."""
    values = {name: float(value) for name, value in rewards.items() if isinstance(value, numbers.Real)}
    name = "reward" if "reward" in rewards else next(iter(values)) if len(values) == 1 else ""
    if name not in values:
        raise ValueError(f"reward.json has {', '.join(rewards) or 'nothing'}; expected a number 'reward'")
    outcome = _checked(values.pop(name), f"reward.json: {name}")
    return Verdict({"outcome": outcome} | {other: value for other, value in values.items() if math.isfinite(value)})


def _number(text: bytes) -> float:
    try:
        return float(text.decode())
    except ValueError:
        raise ValueError(f"reward.txt is {shown(text[:200])}; expected a number") from None


def _checked(value: float, where: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{where} is {value:g}; expected a number from 0 to 1")
    return value


def failed(error: str) -> Verdict:
    """Outcome 0, and why."""
    return Verdict({"outcome": 0.0, "verifier_failed": 1.0}, error)


def _listed(result: Result) -> list[str]:
    """The paths of find, without their first ./"""
    return [path.removeprefix("./") for path in os.fsdecode(result.stdout).split("\0") if path]
