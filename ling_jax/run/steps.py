"""The loop of every stage: steps, evaluations, saves and signals, in one order."""

import signal
from collections.abc import Callable
from typing import Protocol

from etils import epath

from ling_jax.run.stop import stop_signals
from ling_jax.run.watchdog import watch_steps
from ling_jax.train.config import RunFields


class Interrupted(Exception):
    """A signal ended the run after a save; the same call continues it."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command continues from there")
        self.number = number


class TooManyNonfiniteSteps(RuntimeError):
    """`train.max_nonfinite_steps` steps changed nothing, since their loss or gradient was not finite."""


class Stage(Protocol):
    """What a kind of run does where the loop calls it; `done` counts the steps so far."""

    def begin(self, stopped: list[int], note: Callable[[], None]) -> None:
        """What comes before the first step; arguments as of `step`."""

    def step(self, step: int, stopped: list[int], note: Callable[[], None]) -> None:
        """Step number `step`. A long one calls `note` now and then, and where `stopped` has a signal it may save and
        raise `Interrupted`."""

    def stop(self, done: int, number: int | None) -> int | None:
        """The signal for which all processes stop now; `number` is the one that this process has received."""

    def is_evaluated(self, done: int, *, stops: bool) -> bool:
        """Whether an evaluation is due, after which the run may stop for a signal."""

    def settle(self) -> None:
        """Waits for the metrics of all steps."""

    def evaluate(self, done: int) -> bool:
        """Evaluates; whether the run has reached its target and ends."""

    def save(self, done: int, *, waits: bool) -> None:
        """Saves, with the lines of all steps in the log; `waits` for the end of it."""

    def save_after_error(self, done: int) -> None:
        """Saves after an error in an evaluation, where this process alone can."""

    def failed_steps(self) -> int:
        """How many steps changed nothing, as far as metrics are known."""

    def failed_text(self) -> str:
        """What is wrong with them, and where they are listed."""


def run_steps(stage: Stage, train: RunFields, steps: int, start: int, workdir: epath.PathLike, when: str) -> None:
    """Runs steps `start` to `steps` - 1, with evaluations and saves between them.

    `when` says when the run stops for a signal. Raises `Interrupted` after SIGTERM or Ctrl-C and
    `TooManyNonfiniteSteps`, both after a save; an error in an evaluation, too, where the process can save alone.
    """
    with stop_signals(when) as stopped, watch_steps(workdir, train.hang_seconds) as note:
        _check_failed(stage, train, start)
        stage.begin(stopped, note)
        for step in range(start, steps):
            stage.step(step, stopped, note)
            done = step + 1
            # Read once: a signal may arrive at any moment.
            stop = stage.stop(done, stopped[0] if stopped else None)
            reached = _after(stage, train, done, ends=done == steps, stops=stop is not None)
            _check_failed(stage, train, done)
            note()
            if reached:
                return
            if stop is not None and done < steps:
                raise Interrupted(stop, done)


def _after(stage: Stage, train: RunFields, done: int, *, ends: bool, stops: bool) -> bool:
    """Evaluates and saves where either is due; whether the run has reached its target."""
    evaluates = stage.is_evaluated(done, stops=stops)
    saves = ends or stops or done % train.save_every == 0 or stage.failed_steps() >= train.max_nonfinite_steps
    if not evaluates and not saves:
        return False
    stage.settle()
    stops = stops or stage.failed_steps() >= train.max_nonfinite_steps
    reached = False
    if evaluates:
        try:
            reached = stage.evaluate(done)
        except BaseException:
            stage.save_after_error(done)
            raise
    if saves or stops or reached:
        stage.save(done, waits=ends or stops or reached)
    return reached


def _check_failed(stage: Stage, train: RunFields, done: int) -> None:
    if (count := stage.failed_steps()) >= train.max_nonfinite_steps:
        raise TooManyNonfiniteSteps(
            f"{count} steps until step {done} {stage.failed_text()} (train.max_nonfinite_steps is "
            f"{train.max_nonfinite_steps})"
        )
