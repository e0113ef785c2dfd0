"""Saves that fail in the background: one error at the next step, instead of Orbax's tracebacks at the next save."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint._src.futures import future  # the threads of a save have no public name

from ling_jax.checkpoint.steps import steps_in
from ling_jax.partials import write_reason


class SaveFailed(OSError):
    """A checkpoint that could not be written."""


class Manager(ocp.CheckpointManager):
    """Orbax's manager, with SaveFailed for saves that fail.

    Orbax writes one save at a time. `save` waits until the one before it is on the disk before it copies the arrays, so
    that memory holds one copy of the state.
    """

    def __init__(self, *args: Any, **options: Any):
        _FAILURES.errors.clear()
        self._said = False  # whether this manager has raised SaveFailed
        super().__init__(*args, **options)

    def check_saves(self) -> None:
        """Raises SaveFailed where a save in the background has failed; returns at once."""
        if _FAILURES.errors:
            raise self._failed(_FAILURES.errors[0])

    def wait_until_finished(self) -> None:
        """Waits for the save in the background. Raises SaveFailed."""
        with self.named_failures():
            super().wait_until_finished()

    @contextlib.contextmanager
    def named_failures(self) -> Iterator[None]:
        """Turns an error of the block into SaveFailed."""
        try:
            yield
        except SaveFailed:
            raise
        except Exception as error:
            _FAILURES.errors.append(error)
            raise self._failed(error) from None

    def close(self) -> None:
        """Waits for the save in the background and closes the manager; half-written saves are removed."""
        if _FAILURES.errors and jax.process_count() > 1:
            return  # this process is about to end the others, which wait for it in a barrier
        said = self._said
        try:
            super().close()
        except Exception:
            if not said:
                raise
        finally:
            if _FAILURES.errors:
                _end_waiting_threads()
                self._remove_half_written()

    def _remove_half_written(self) -> None:
        for path in epath.Path(self.directory).glob("*.orbax-checkpoint-tmp"):
            with contextlib.suppress(OSError):  # Orbax may still write there; then the next start removes it
                path.rmtree()

    def _failed(self, error: BaseException) -> SaveFailed:
        self._said = True
        kept: list[int] = []
        with contextlib.suppress(OSError):  # the folder itself may be unreadable
            kept = steps_in(epath.Path(self.directory))
        again = "there is no other one, and the same command starts again"
        if kept:
            again = f"the newest whole one is {kept[-1]}, and the same command continues from there"
        return SaveFailed(f"a checkpoint could not be written into {self.directory}: {write_reason(error)}; {again}")


def _end_waiting_threads() -> None:
    """Ends the threads of a failed save that wait for its next part.

    They would wait until Orbax's time-out of minutes, and so would the interpreter, which joins them when it exits.
    """
    for thread in threading.enumerate():
        if isinstance(thread, future._SignalingThread):
            thread.cancel()  # it does nothing more once its signals are there
            future.set_signals(thread._receive_signals, operation_id=thread._operation_id)


class _Failures(logging.Filter):
    """Collects the errors of background saves from Orbax's log, and removes their tracebacks from it.

    It also drops asyncio's messages about coroutines that fail after such an error.
    """

    def __init__(self):
        super().__init__()
        self.errors: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.name == "asyncio":
            return error is None or "never retrieved" not in record.getMessage()
        if error is None or "/orbax/" not in record.pathname:
            return True
        if record.pathname.endswith(("/async_checkpointer.py", "/checkpoint_manager.py")):
            self.errors.append(error)
        return False


_FAILURES = _Failures()
absl_logging.get_absl_logger().addFilter(_FAILURES)
logging.getLogger("asyncio").addFilter(_FAILURES)


def _without_background(unraisable, default_hook=sys.unraisablehook) -> None:
    """Ignores the errors that follow the first error of a save or restore, which is raised.

    They come from tensorstore's callbacks into closed event loops and from unfinished coroutines of Orbax.
    """
    closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    code = getattr(unraisable.object, "cr_code", None)
    if not closed and not (code and "/orbax/" in code.co_filename):
        default_hook(unraisable)


sys.unraisablehook = _without_background
