"""The boxes of a session."""

import threading
from collections.abc import Mapping

from ling_jax.envs.base import InfraError
from ling_jax.sandbox import Box, Limits, SandboxError, shared


class Boxes:
    """Boxes that a session has open; `close` ends all, may come from any thread, and lets none be opened afterwards."""

    def __init__(self):
        self._lock, self._open, self._closed = threading.Lock(), set(), False

    def open(self, files: Mapping[str, bytes], limits: Limits) -> Box:
        """A box with these files. Raises InfraError where there is none to be had."""
        if self._closed:
            raise InfraError("the session was closed")
        try:
            box = shared().open(files, limits)
        except SandboxError as error:
            raise InfraError(f"no box could be opened: {error}") from error
        with self._lock:
            if not self._closed:
                self._open.add(box)
                return box
        box.close()
        raise InfraError("the session was closed")

    def discard(self, box: Box) -> None:
        """Closes one."""
        with self._lock:
            self._open.discard(box)
        box.close()

    def close(self) -> None:
        """Closes all."""
        with self._lock:
            self._closed, boxes = True, list(self._open)
            self._open.clear()
        for box in boxes:
            box.close()


def check_sandbox(error: SandboxError) -> None:
    """Raises InfraError where the sandbox runs nothing any more; where it does, what ran in one box caused `error`."""
    try:
        shared().run(["true"])
    except SandboxError:
        raise InfraError(f"the sandbox failed: {error}") from error
