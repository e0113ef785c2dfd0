"""Episodes in tasks of Harbor's form: an agent with a shell and an editor in a box, judged by the task's tests.

The tasks are a folder's (`folder.read_tasks`), so nothing is drawn from a seed.
"""

import base64
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs.base import Action, InfraError, StepResult, Task
from ling_jax.envs.coding.boxes import Boxes, check_sandbox
from ling_jax.envs.coding.integrity import flags_of_text
from ling_jax.envs.coding.workspace import BASH, DONE, Turn, act_turn
from ling_jax.envs.harbor.folder import DIFFICULTIES as DIFFICULTIES
from ling_jax.envs.harbor.folder import NAME as NAME
from ling_jax.envs.harbor.folder import unpacked
from ling_jax.envs.harbor.places import place
from ling_jax.envs.harbor.verifier import Verdict, failed, open_box, run_in, verify
from ling_jax.sandbox import Box, Result, SandboxError

SANDBOXED = True
COMMAND_SECONDS = 60.0  # of a command of the agent; our choice
OWN_PLACE = re.compile(r"\$0|BASH_SOURCE|/solution")  # what a script has that asks where it is


def make_task(seed: int, difficulty: int) -> Task:
    """Raises ValueError: the tasks are a folder's, which `folder.read_tasks` reads."""
    raise ValueError(f"{NAME}: task {seed} of difficulty {difficulty} comes from a folder; name it in tasks[0].path")


def session() -> "HarborSession":
    """An episode that ends with `task_done`, with the last turn, or when the agent's time is over."""
    return HarborSession()


def solution(task: Task) -> tuple[str, ...]:
    """Commands that do what solution/solve.sh does, then `task_done`; () where the task has none."""
    files = {name: unpacked(text) for name, text in task.hidden["solution"].items()}
    if "solve.sh" not in files:
        return ()
    commands = [f"export {name}={shlex.quote(value)}" for name, value in task.hidden["solution_env"].items()]
    script = files["solve.sh"].decode()
    if len(files) == 1 and not OWN_PLACE.search(script):
        commands.append(script.strip())
    else:
        commands += [_writing(name, data) for name, data in files.items()] + ["bash /solution/solve.sh"]
    return _call(BASH, command="\n".join(commands)), _call(DONE)


class HarborSession:
    """One episode. The same commands say the same again, but for what prints times or random numbers."""

    replayable = True

    def __init__(self):
        self._boxes = Boxes()
        self._turns, self._seconds = 0, 0.0
        self._flags: set[str] = set()

    async def open(self, task: Task, seed: int) -> None:
        """Puts the task's files into a box. Raises InfraError where the sandbox fails."""
        del seed
        self._task = task
        where = {path: place(path) for path in task.hidden["files"]}
        files = {where[path]: unpacked(text) for path, text in task.hidden["files"].items()}
        executable = [where[path] for path in task.hidden["executable"]]
        try:
            self._box = open_box(self._boxes, task, files, executable, COMMAND_SECONDS)
        except SandboxError as error:
            raise InfraError(str(error)) from None

    async def step(self, action: Action) -> StepResult:
        """Carries out the calls of a turn; at the end the tests judge. A box that the agent destroyed ends the episode
        without success. Raises InfraError where the sandbox fails."""
        begun = time.monotonic()
        self._flags |= flags_of_text(action.raw)
        try:
            turn = act_turn(TaskBox(self._box, self._task), action)
            self._turns, self._seconds = self._turns + 1, self._seconds + time.monotonic() - begun
            return self._result(turn)
        except SandboxError as error:
            check_sandbox(error)
            self._flags.add("box destroyed")
            verdict = failed(f"the box was destroyed: {error}")
            return StepResult((), self._worth(verdict), False, True, verdict.error)

    async def close(self) -> None:
        """Ends all that runs."""
        self._boxes.close()

    def _result(self, turn: Turn) -> StepResult:
        task, errors = self._task, list(turn.errors)
        cut = self._turns >= task.max_turns or self._seconds >= task.hidden["agent_seconds"]
        if not turn.done and not cut:
            return StepResult(turn.observation, {}, False, False, "; ".join(errors) or None)
        verdict = verify(self._boxes, task, self._box)
        errors += [verdict.error] if verdict.error else []
        return StepResult(turn.observation, self._worth(verdict), turn.done, not turn.done, "; ".join(errors) or None)

    def _worth(self, verdict: Verdict) -> dict[str, float]:
        return {**verdict.rewards, "suspicious": float(len(self._flags))}


class TaskBox:
    """A box as the agent's tools see it: in the task's working directory, with its variables and its paths."""

    def __init__(self, box: Box, task: Task):
        self._box, self._task = box, task

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        """`Box.run`."""
        return run_in(self._box, self._task, argv, **options)

    def read(self, path: str) -> bytes | None:
        """`Box.read`."""
        return self._box.read(place(path, self._task.hidden["workdir"]))

    def write(self, files: Mapping[str, bytes]) -> None:
        """`Box.write`."""
        self._box.write({place(path, self._task.hidden["workdir"]): data for path, data in files.items()})


def _writing(name: str, data: bytes) -> str:
    """A command that writes a file of the solution."""
    path = f"/solution/{name}"
    return f"mkdir -p $(dirname {path}) && base64 -d > {path} <<'END'\n{base64.encodebytes(data).decode()}END"


def _call(name: str, **arguments: str) -> str:
    call = {"name": name, "arguments": arguments}
    try:
        return render_call(call, "xml")
    except ValueError:  # a script spells a tag of that form
        return render_call(call, "json")
