"""Starts a program of launch/ many times for the price of one import: each start is a fork of this process."""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Program:
    """`python -m module`; one start at a time."""

    def __init__(self, module: str, env: dict[str, str]):
        command = [sys.executable, "-m", "tests.helpers.fork_server", module]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._server = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes)

    def start(self, flags: list[str], log: Path) -> int:
        """The process id, which is that of its group, too."""
        log.write_text("")
        self._server.stdin.write(json.dumps([flags, str(log)]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def has_ended(self) -> bool:
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def wait(self) -> int:
        """The exit code of the last start; negative where a signal ended it."""
        return int(self._server.stdout.readline())

    def kill(self, pid: int) -> None:
        """Ends the last start, if it has not ended, and waits for that."""
        if not self.has_ended():
            os.killpg(pid, signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


def _run(main, flags: list[str], log: str) -> None:
    from launch.flags import run_program

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["program", *flags]
    code = 0
    try:
        run_program(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _serve() -> None:
    main = importlib.import_module(sys.argv[1]).main
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(main, *json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
