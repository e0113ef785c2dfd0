"""Starts a program of launch/ many times for the price of one: for tests of what it refuses before it computes."""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.faults import ROOT


def run_each(
    module: str, commands: list[list[str]], *, path: str = "", together: int = 1, prefix: Sequence[str] = ()
) -> list[subprocess.CompletedProcess]:
    """What `python -m module` does with the flags of each command, from a checkout; `path` comes first on PYTHONPATH.

    Its imports are done once, and each command runs in a fork of that process, so many at the same time. None may
    compute before the forks. `prefix` is what stands before the command, such as one that takes rights away.
    """
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.helpers.refusals", module, str(together)],
        input=json.dumps(commands),
        env=os.environ | {"PYTHONPATH": f"{path}:{ROOT}"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    results = json.loads(done.stdout)
    return [subprocess.CompletedProcess(*result) for result in zip(commands, *zip(*results, strict=True), strict=True)]


def parse_each(module: str, commands: list[list[str]]) -> list[subprocess.CompletedProcess]:
    """Reads the flags of each command, configs and overrides included, and runs nothing."""
    return run_each(module, [["--only_parse", *command] for command in commands])


def _run(main, flags: list[str], outputs: list[Path]) -> None:
    from launch.flags import run_program

    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), descriptor)
    only_parse = flags[:1] == ["--only_parse"]
    sys.argv = ["program", *flags[only_parse:]]
    try:
        run_program((lambda: None) if only_parse else main)
    finally:
        if "jax" in sys.modules:  # which does this at the exit of a process, but not of a fork
            sys.modules["jax"].distributed.shutdown()


def _main() -> None:
    main, together, commands = importlib.import_module(sys.argv[1]).main, int(sys.argv[2]), json.load(sys.stdin)
    fork, results = multiprocessing.get_context("fork"), []
    for first in range(0, len(commands), together):
        with tempfile.TemporaryDirectory() as folder:
            programs = []
            for i, flags in enumerate(commands[first : first + together]):
                outputs = [Path(folder, f"{i}.{name}") for name in ("stdout", "stderr")]
                programs.append((fork.Process(target=_run, args=(main, flags, outputs)), outputs))
                programs[-1][0].start()
            for program, outputs in programs:
                program.join()
                results.append([program.exitcode, *(output.read_text() for output in outputs)])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    _main()
