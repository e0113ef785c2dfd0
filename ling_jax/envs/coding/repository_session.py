"""Episodes in which an agent works on a project in a box, and what its work is worth."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from ling_jax.envs.base import Action, InfraError, StepResult, Task
from ling_jax.envs.coding import integrity
from ling_jax.envs.coding.boxes import Boxes, check_sandbox
from ling_jax.envs.coding.check import check_repository_task
from ling_jax.envs.coding.verdict import TEST_LIMITS, Verdict, judge_tests
from ling_jax.envs.coding.workspace import Turn, act_turn
from ling_jax.sandbox import Limits, SandboxError

AGENT_LIMITS = Limits(seconds=20.0)  # our choice: of a command; the tests of a project take less than one
MAX_FILE_BYTES = 1 << 20  # our choice: of a file that is judged
MAX_PATH = 200  # our choice: characters
IGNORED = {"tests", "__pycache__", ".git", "conftest.py", "sitecustomize.py", "usercustomize.py"}  # at any depth


class RepositorySession:
    """A session in a box of its own. The same commands say the same again, but for what prints times or random numbers.

    The end's rewards: "outcome" (1 where all tests pass that should), "tests" (the share of them that do) and
    "suspicious" (how many kinds of suspicious acts there were, `integrity`).
    """

    replayable = True

    def __init__(self):
        self._boxes, self._turns, self._ended, self._flags = Boxes(), 0, False, set()

    async def open(self, task: Task, seed: int) -> None:
        """Fills a box with the project. Raises ValueError on a task that is none, or that gives its answer away."""
        del seed
        check_repository_task(task)
        if leaks := integrity.leaks(task):
            raise ValueError(f"task {task.id}: {'; '.join(leaks)}")
        integrity.check_reach()
        self._task = task
        files = {path: text.encode() for path, text in task.hidden["files"].items()}
        self._box = self._boxes.open(files, AGENT_LIMITS)

    async def step(self, action: Action) -> StepResult:
        """Carries out the calls of a turn. A box that the agent destroyed ends the episode without success."""
        if self._ended:
            raise ValueError(f"task {self._task.id}: the episode has ended")
        self._turns += 1
        self._flags |= integrity.flags_of_text(action.raw)
        try:
            turn = act_turn(self._box, action)
            self._ended = turn.done or self._turns >= self._task.max_turns
            rewards = self._rewards(self._box.files()) if self._ended else {}
        except SandboxError as error:
            check_sandbox(error)
            self._ended = True
            self._flags.add("box destroyed")
            return StepResult((), self._worth(Verdict((False,), "", ())), False, True, "the box was destroyed")
        return self._result(turn, rewards)

    async def close(self) -> None:
        """Ends all that runs."""
        self._boxes.close()

    def _result(self, turn: Turn, rewards: Mapping[str, float]) -> StepResult:
        error = "; ".join(turn.errors) or None
        return StepResult(turn.observation, rewards, turn.done, self._ended and not turn.done, error)

    def _rewards(self, files: Mapping[str, bytes]) -> dict[str, float]:
        """Raises InfraError where no verdict can be had."""
        hidden = self._task.hidden
        self._flags |= integrity.flags_of_files(hidden["files"], files)
        self._boxes.discard(self._box)  # all that the agent left running has ended
        box = self._boxes.open(judged_files(files), TEST_LIMITS)
        try:
            verdict = judge_tests(box, hidden["tests"], [*hidden["fail_to_pass"], *hidden["pass_to_pass"]])
        except SandboxError as error:
            raise InfraError(f"the work was not judged: {error}") from error
        finally:
            self._boxes.discard(box)
        return self._worth(verdict)

    def _worth(self, verdict: Verdict) -> dict[str, float]:
        self._flags |= set(verdict.flags)
        return {"outcome": verdict.outcome, "tests": verdict.share, "suspicious": float(len(self._flags))}


def judged_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The Python sources of a work folder; tests and what an interpreter reads by itself are left out."""
    return {
        path: data
        for path, data in files.items()
        if path.endswith(".py") and path.isprintable() and len(path) <= MAX_PATH and len(data) <= MAX_FILE_BYTES
        if not IGNORED & set(PurePosixPath(path).parts)
    }
