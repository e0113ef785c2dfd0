"""Kills a program at random moments, starts it again, and compares where it ends with a run that was left alone.

    python -m tests.faults --kills=20 --seed=0 -- python -m launch.pretrain --config=FILE --workdir={workdir}

The program must go on when started again, and write metrics.jsonl and checkpoints/ into its `{workdir}`.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ling_jax.checkpoint.steps import newest_step
from ling_jax.spec import named_leaves

# What depends on the clock and not on the data.
MEASURED = (
    "time", "tokens_per_second", "mfu", "generate_seconds", "train_seconds", "host_memory_gb", "host_memory_growth_gb",
)  # fmt: skip
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Kill:
    seconds: float  # after the start
    last_line: str  # of the program's output: what it was doing


def run_with_kills(
    command: list[str], *, kills: int, longest: float, seed: int, log: Path, number=signal.SIGKILL, begin: str = ""
):
    """Starts `command`, kills it after a uniformly random time up to `longest` seconds, and so on; then lets it end.

    The time runs from the start or, where given, from the first output that holds `begin`: how long a start takes
    depends on the machine. Returns the kills that hit a living program, and raises RuntimeError where the program fails
    by itself.
    """
    rng, hits = random.Random(seed), []
    for _ in range(kills):
        seconds = rng.uniform(0, longest)
        if (code := _run(command, log, seconds, number, begin)) is None:
            hits.append(Kill(seconds, _last_line(log)))
        elif code == 0:
            break
        else:
            raise RuntimeError(f"{command} failed with {code}:\n{log.read_text()[-3000:]}")
    if (code := _run(command, log, None, number, "")) != 0:
        raise RuntimeError(f"{command} failed with {code}:\n{log.read_text()[-3000:]}")
    return hits


def _run(command: list[str], log: Path, seconds: float | None, number: int, begin: str) -> int | None:
    """The exit code, or None where the program was ended by `number` so many seconds after it told `begin`."""
    with log.open("w") as out:
        # A group of its own: the program's children die with it.
        program = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, start_new_session=True)
        try:
            while begin not in log.read_text(errors="replace") and program.poll() is None:
                time.sleep(0.02)
            return program.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, number)
            program.wait()
            return None


def _last_line(log: Path) -> str:
    return (log.read_text().splitlines() or ["nothing yet"])[-1][:100]


def metrics_of(workdir: Path) -> list[dict]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def step_seconds(workdir: Path) -> float:
    """From the first step to the last."""
    first, *_, last = (json.loads(line)["time"] for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return last - first


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint by path, whatever devices it was written from."""
    state = workdir / "checkpoints" / str(newest_step(workdir / "checkpoints")) / "state"
    stored = ocp.PyTreeCheckpointHandler().metadata(state).tree
    as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(state, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {name: np.asarray(x) for name, x in named_leaves(restored).items()}


def assert_same_end(alone: Path, killed: Path) -> None:
    """Every step once, every metric and every bit of the state equal."""
    wanted, found = metrics_of(alone), metrics_of(killed)
    assert [line["step"] for line in found] == list(range(len(wanted))), "a step is lost or repeated"
    for expected, line in zip(wanted, found, strict=True):
        assert line == expected, f"step {line['step']} differs"
    wanted, found = final_state(alone), final_state(killed)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert array.dtype == found[name].dtype and array.tobytes() == found[name].tobytes(), f"{name} differs"


def runs_below(folder: Path) -> list[str]:
    """The workdirs of runs in a folder, itself among them, relative to it."""
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("metrics.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, help="seconds; by default what the run takes when left alone")
    parser.add_argument("--begin", default="", help="what the program prints where the time of a kill begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    alone, killed = ([part.format(workdir=folder / name) for part in options.command] for name in ("alone", "killed"))
    start = time.monotonic()
    run_with_kills(alone, kills=0, longest=0, seed=0, log=folder / "alone.log")
    longest = options.longest or time.monotonic() - start
    print(f"alone: {time.monotonic() - start:.0f} s; files in {folder}", flush=True)
    how = dict(kills=options.kills, longest=longest, seed=options.seed, begin=options.begin)
    hits = run_with_kills(killed, log=folder / "killed.log", **how)
    for kill in hits:
        print(f"killed after {kill.seconds:5.1f} s at: {kill.last_line}")
    runs = runs_below(folder / "alone")
    assert runs == runs_below(folder / "killed")
    for run in runs:
        assert_same_end(folder / "alone" / run, folder / "killed" / run)
    steps = sum(len(metrics_of(folder / "alone" / run)) for run in runs)
    print(f"{len(hits)} kills: {steps} steps, each once; metrics, parameters and optimizer bit-equal")


if __name__ == "__main__":
    sys.exit(main())
