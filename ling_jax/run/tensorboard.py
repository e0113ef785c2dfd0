"""TensorBoard events of a run."""

import contextlib
import importlib.util
import math
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from etils import epath

from ling_jax.partials import write_errors
from ling_jax.paths import append, is_remote


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The finite numbers that a line of metrics.jsonl has of its step."""
    names = line.keys() - {"step", "time", "nonfinite", "spike"}
    return {name: line[name] for name in names if isinstance(line[name], (int, float)) and math.isfinite(line[name])}


def command(workdir: epath.PathLike) -> str:
    """What shows a run's curves, to be copied into a shell."""
    install = "" if importlib.util.find_spec("tensorboard") else "  # pip install tensorboard"
    return shlex.join(["tensorboard", "--logdir", f"{workdir}/tensorboard"]) + install


class EventFile:
    """Writes scalars when they are added, so that the caller gets the errors of the disk.

    tensorboardX's SummaryWriter writes from a thread, where such errors are lost. In a store the events of a local file
    are appended to the object.
    """

    def __init__(self, folder: epath.Path, *, first_step: int):
        """Hides what earlier starts wrote of `first_step` and later steps."""
        from tensorboardX import event_file_writer, summary  # this import takes a second, and only training needs it
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import directory_check

        self._event, self._scalar, self._folder = Event, summary.scalar, folder
        self._staged = tempfile.TemporaryDirectory(prefix="ling_jax_tensorboard_") if is_remote(folder) else None
        self._local, self._sent = Path(self._staged.name if self._staged else folder), 0
        with write_errors(folder):
            directory_check(str(self._local))
            self._file = event_file_writer.EventsWriter(str(self._local / "events"))
            log = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=first_step, session_log=log))

    def add(self, line: dict[str, Any]) -> None:
        """Writes the finite numbers of a line of metrics.jsonl. Raises OSError."""
        with write_errors(self._folder):
            for name, value in scalars(line).items():
                summary = self._scalar(name, value)
                self._file.write_event(self._event(wall_time=line["time"], step=line["step"], summary=summary))
            self._file.flush()
            self._send()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk was full before
            self._file.close()
            self._send()
        if self._staged:
            self._staged.cleanup()

    def _send(self) -> None:
        for file in self._local.iterdir() if self._staged else ():  # one
            with file.open("rb") as events:
                events.seek(self._sent)
                new = events.read()
            if new:
                append(self._folder / file.name, new)
                self._sent += len(new)
