"""Saves that fail in the background: one error at the next step, in place of Orbax's stacks at the next save."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

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
    """Orbax's manager, whose failed saves are a SaveFailed.

    Orbax writes one save at a time: `save` waits for the one before it to be on the disk before it copies the arrays,
    so that memory holds one copy of the state.
    """

    def __init__(self, *args, **options):
        _FAILURES.errors.clear()
        self._said = False  # whether a SaveFailed was raised
        super().__init__(*args, **options)

    def check_saves(self) -> None:
        """Raises SaveFailed where a save in the background has failed; does not wait, and costs nothing."""
        if _FAILURES.errors:
            raise self._failed(_FAILURES.errors[0])

    def wait_until_finished(self) -> None:
        with self.named_failures():
            super().wait_until_finished()

    @contextlib.contextmanager
    def named_failures(self) -> Iterator[None]:
        """An error of the block as SaveFailed."""
        try:
            yield
        except SaveFailed:
            raise
        except Exception as error:
            _FAILURES.errors.append(error)
            raise self._failed(error) from None

    def close(self) -> None:
        if _FAILURES.errors and jax.process_count() > 1:
            return  # the others wait for this process in a barrier, and it is about to end them
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
            with contextlib.suppress(OSError):  # Orbax's threads may still write there; the next start removes it
                path.rmtree()

    def _failed(self, error: BaseException) -> SaveFailed:
        self._said = True
        kept: list[int] = []
        with contextlib.suppress(OSError):  # of the folder, which may be why the save failed
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
    """Keeps the errors of background saves, which Orbax only writes into the log, and their stacks out of it.

    What was to follow in its event loops fails, too, and is said by asyncio.
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
    """Leaves out what comes behind the first error of a save or a restore, which is raised.

    tensorstore calls back into event loops that Orbax has closed, and coroutines of Orbax end unfinished.
    """
    closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    code = getattr(unraisable.object, "cr_code", None)
    if not closed and not (code and "/orbax/" in code.co_filename):
        default_hook(unraisable)


sys.unraisablehook = _without_background
