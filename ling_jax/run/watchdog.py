"""A watchdog for steps that hang: it writes the stacks of every thread of every host, and ends the run.

A collective that lacks a host, a disk that does not answer or an empty data source blocks the main thread for ever,
while the process looks alive. The exit code is `hosts.EXIT_HUNG`, on which launchers start the run again.
"""

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from etils import epath

from ling_jax.distributed import hosts
from ling_jax.distributed.rendezvous import own_name
from ling_jax.messages import print_last

POLLS = 20  # of the watchdog in a time-out
FIRST_STEPS = 3  # our choice: steps of a start that are not watched
WRITE_SECONDS = 10  # time-out of the file, whose disk may hang


@contextlib.contextmanager
def watch_steps(workdir: epath.PathLike, seconds: float) -> Iterator[Callable[[], None]]:
    """Yields a function to call at the end of every step, evaluation and save.

    Without a call in `seconds` (0: no limit) after the first steps, the process writes its stacks to stderr and to
    WORKDIR/stacks/host_N.txt and ends, and so do all other hosts.
    """
    if not seconds:
        yield lambda: None
        return
    watchdog = _Watchdog(epath.Path(workdir), seconds)
    hosts.on_hang(watchdog.write_stacks)
    thread = threading.Thread(target=watchdog.run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield watchdog.note_end
    finally:
        watchdog.leaving.set()
        hosts.on_hang(None)


@contextlib.contextmanager
def stacks_on_hang(workdir: epath.PathLike) -> Iterator[None]:
    """A block in which this process writes its stacks, as above, where another host's watchdog ends all."""
    hosts.on_hang(_Watchdog(epath.Path(workdir), 0.0).write_stacks)
    try:
        yield
    finally:
        hosts.on_hang(None)


class _Watchdog:
    def __init__(self, workdir: epath.Path, seconds: float):
        self.file = workdir / "stacks" / f"host_{hosts.process_index()}.txt"
        self.seconds, self.ends, self.leaving = seconds, 0, threading.Event()
        self._writing = threading.Lock()

    def note_end(self) -> None:
        self.ends += 1

    def run(self) -> None:
        # Polls are counted, not seconds: a process that was suspended has not hung.
        seen, polls = 0, 0
        while not self.leaving.wait(self.seconds / POLLS):
            polls = polls + 1 if self.ends == seen and self.ends >= FIRST_STEPS else 0
            seen = self.ends
            if polls > POLLS:
                try:
                    self.write_stacks()
                finally:
                    hosts.end_hung(
                        f"no step ended in {self.seconds:g} seconds (train.hang_seconds); the stacks of all threads "
                        f"are above and in {self.file.parent}; the same command continues from the newest checkpoint"
                    )

    def write_stacks(self) -> None:
        """Writes the stacks of this process to stderr and the file; only the first call does."""
        if not self._writing.acquire(blocking=False):
            return
        text = f"stacks of {own_name(hosts.process_index())}:\n{_stacks()}"
        writer = threading.Thread(target=self._write_file, args=(text,), daemon=True)
        writer.start()
        print_last(text)
        writer.join(WRITE_SECONDS)

    def _write_file(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(f"{text}\n", encoding="utf-8")


def _stacks() -> str:
    """The stack of every thread, innermost call first, without source lines, whose disk may hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for number, top in sys._current_frames().items():
        lines.append(f"Thread {number:#x} ({names.get(number, 'without a name')}):")
        for frame, line in traceback.walk_stack(top):
            lines.append(f'  File "{frame.f_code.co_filename}", line {line} in {frame.f_code.co_name}')
    return "\n".join(lines)
