"""Saves that fail in the background: one error at the next step, in place of Orbax's stacks at the next save."""

import contextlib
import logging
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from ling_jax.checkpoint.steps import steps_in
from ling_jax.messages import one_line


class SaveFailed(RuntimeError):
    """A checkpoint that could not be written."""


class Manager(ocp.CheckpointManager):
    """Orbax's manager, whose failed saves are a SaveFailed.

    Orbax writes one save at a time: `save` waits for the one before it to be on the disk before it copies the arrays,
    so that memory holds one copy of the state.
    """

    def __init__(self, *args, **options):
        _FAILURES.errors.clear()
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
            raise self._failed(error) from None

    def close(self) -> None:
        if _FAILURES.errors and jax.process_count() > 1:
            return  # the others wait for this process in a barrier, and it is about to end them
        with contextlib.suppress(SaveFailed) if _FAILURES.errors else contextlib.nullcontext():
            super().close()

    def _failed(self, error: BaseException) -> SaveFailed:
        kept: list[int] = []
        with contextlib.suppress(OSError):  # of the folder, which may be why the save failed
            kept = steps_in(epath.Path(self.directory))
        newest = f"the newest whole one is {kept[-1]}" if kept else "there is no other one"
        reason = one_line(next(iter(str(error).splitlines()), "") or type(error).__name__, 300)
        return SaveFailed(
            f"a checkpoint could not be written into {self.directory}: {reason}; {newest}, and the same command goes "
            "on from there"
        )


class _Failures(logging.Filter):
    """Keeps the errors of background saves, which Orbax only writes into the log, and their stacks out of it."""

    def __init__(self):
        super().__init__()
        self.errors: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not record.pathname.endswith(("/async_checkpointer.py", "/checkpoint_manager.py")):
            return True
        self.errors.append(error)
        return False


_FAILURES = _Failures()
absl_logging.get_absl_logger().addFilter(_FAILURES)
