"""Episodes in which a policy works on files in a box, and what the files that it leaves are worth."""

from ling_jax.envs.base import Action, StepResult, Task
from ling_jax.envs.coding import integrity
from ling_jax.envs.coding.boxes import Boxes, check_sandbox
from ling_jax.envs.coding.functions import source_of
from ling_jax.envs.coding.workspace import BASH, Turn, act, act_turn
from ling_jax.envs.workflow.check import check_task
from ling_jax.envs.workflow.outputs import MAX_BYTES, what_is_wrong
from ling_jax.sandbox import Limits, SandboxError

LIMITS = Limits(seconds=20.0, disk_bytes=8 << 20)  # our choice: a step takes some tens of milliseconds


class WorkflowSession:
    """A session in a box of its own.

    The end's rewards: "outcome" (1 where every step wrote what it should), "steps" (the share of them that did) and
    "suspicious" (how many kinds of suspicious acts the policy spoke of, `integrity`). `StepResult.error` names the
    first step that is wrong. A task without tools has one turn, whose text is a command.
    """

    replayable = True

    def __init__(self):
        self._boxes, self._turns, self._ended, self._flags = Boxes(), 0, False, set()

    async def open(self, task: Task, seed: int) -> None:
        """Fills a box with the files. Raises ValueError on a task that is none."""
        del seed
        check_task(task)
        self._task = task
        files = {path: text.encode() for path, text in task.hidden["files"].items()}
        self._box = self._boxes.open(files, LIMITS)

    async def step(self, action: Action) -> StepResult:
        """Carries out a turn. A box that the policy destroyed ends the episode without success."""
        if self._ended:
            raise ValueError(f"task {self._task.id}: the episode has ended")
        self._turns += 1
        self._flags |= integrity.flags_of_text(action.raw)
        try:
            turn = act_turn(self._box, action) if self._task.tools else self._command(action)
            self._ended = turn.done or self._turns >= self._task.max_turns
            wrong = self._wrong() if self._ended else []
        except SandboxError as error:
            check_sandbox(error)
            self._ended = True
            self._flags.add("box destroyed")
            return StepResult((), self._worth(["the box was destroyed"]), False, True, "the box was destroyed")
        first = next((f"step {number}: {why}" for number, why in enumerate(wrong, 1) if why), None)
        error = "; ".join(filter(None, (*turn.errors, first))) or None
        rewards = self._worth(wrong) if self._ended else {}
        return StepResult(turn.observation, rewards, turn.done, self._ended and not turn.done, error)

    async def close(self) -> None:
        """Ends all that runs."""
        self._boxes.close()

    def _command(self, action: Action) -> Turn:
        acted = act(self._box, {"name": BASH, "arguments": {"command": source_of(action.content)}})
        return Turn((), True, () if acted.error is None else (acted.error,))

    def _wrong(self) -> list[str]:
        """What is wrong with each step, "" where nothing is."""
        return [what_is_wrong(output, self._content(output["path"])) for output in self._task.hidden["outputs"]]

    def _content(self, path: str) -> bytes | None:
        try:
            content = self._box.read(path)
        except SandboxError:
            self._box.run(["true"])  # raises where the box is no more; else it is no file that can be read
            return None
        return content if content is None or len(content) <= MAX_BYTES else None

    def _worth(self, wrong: list[str]) -> dict[str, float]:
        share = wrong.count("") / len(wrong)
        return {"outcome": float(share == 1), "steps": share, "suspicious": float(len(self._flags))}
