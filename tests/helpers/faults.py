"""Kills programs at random moments, starts them again, and compares where they end with runs that were left alone.

    python -m tests.helpers.faults --kills=100 --seed=0

Each kind of kill (`kinds`) waits for something of the program's files or output and then for a random time: steps,
saves, deletions of old checkpoints, tokenising, ports in both directions, answers, the start.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ling_jax.checkpoint import save_hf
from ling_jax.checkpoint.steps import newest_step
from ling_jax.data import save_tokenizer, train_bpe
from ling_jax.resumable import RECORD
from ling_jax.spec import named_leaves
from tests.helpers.damage import files_below
from tests.helpers.fork_server import ROOT, Program
from tests.helpers.small_run import write_corpus
from tests.helpers.tiny import random_params, tiny_config

# What depends on the clock and not on the data.
MEASURED = (
    "time", "tokens_per_second", "mfu", "generate_seconds", "train_seconds", "optimise_seconds",
    "engine/generate_seconds", "engine/wait_seconds", "engine/load_seconds", "engine/live", "host_memory_gb",
    "host_memory_growth_gb",
)  # fmt: skip
KINDS = ("start", "steps", "saves", "deletions", "tokens", "ports in", "ports out", "answers")


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


@dataclasses.dataclass(frozen=True)
class Kind:
    """Where kills of one kind come, and how the output is compared with that of a program that was left alone."""

    name: str
    program: Program
    flags: Callable[[Path], list[str]]  # of the output
    begun: Callable[[Path, Path], bool]  # (output, log): from here on a random time runs
    longest: float  # seconds of it
    compare: Callable[[Path, Path], None]  # (alone, killed)
    output: str = "out"
    appears_whole: bool = False  # the output takes its name when nothing is left to do, and a next start is refused


def kill_often(kind: Kind, folder: Path, kills: int, rng: random.Random) -> list[str]:
    """Kills the program so many times; it goes on each time, and its output is compared whenever it ends by itself.

    Returns the last line of output before each kill. Raises where a start fails, or an output or what lies beside it is
    not that of the program alone.
    """
    (folder / "alone").mkdir(parents=True)
    alone, log, moments = folder / "alone" / kind.output, folder / "log", []
    kind.program.start(kind.flags(alone), log)
    assert kind.program.wait() == 0, log.read_text()[-3000:]
    for number in itertools.count():
        place = folder / f"killed_{number}"
        place.mkdir()
        output, left = place / kind.output, kills - len(moments)
        moments += _kill_until_done(kind, output, log, left, rng)
        kind.compare(alone, output)
        beside = {path.name for path in place.iterdir()} | {path.name for path in alone.parent.iterdir()}
        found = [path for path in place.rglob("*") if path.name.endswith((".partial", "-tmp"))]
        assert beside == {kind.output} and not found, f"{place}: {beside}, {found}"
        if len(moments) == kills:
            return moments
        shutil.rmtree(place)
    raise AssertionError("the loop returns")


def _kill_until_done(kind: Kind, output: Path, log: Path, kills: int, rng: random.Random) -> list[str]:
    """Starts and kills, at most so often, until the program ends well; returns the last lines before the kills."""
    moments: list[str] = []
    while True:
        pid, seconds = kind.program.start(kind.flags(output), log), rng.uniform(0, kind.longest)
        while not kind.begun(output, log) and not kind.program.has_ended():
            time.sleep(0.001)
        end = time.monotonic() + seconds
        while (len(moments) == kills or time.monotonic() < end) and not kind.program.has_ended():
            time.sleep(0.001)
        if not kind.program.has_ended():
            os.killpg(pid, signal.SIGKILL)
        code = kind.program.wait()
        if code == 0:
            return moments
        assert code == -signal.SIGKILL, f"{kind.name}: exit code {code}\n{log.read_text()[-3000:]}"
        moments.append(_last_line(log))
        if kind.appears_whole and output.exists() and not (output / RECORD).exists():
            return moments


def kinds(folder: Path) -> Iterator[list[Kind]]:
    """Kinds of kills that share a program, one list after the other; their inputs are made below the folder."""
    write_corpus(folder / "corpus", documents=60)
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    run = [
        f"--config={ROOT / 'tests/helpers/small_run.py'}",
        f"--config.data.sources={sources}",
        "--config.train.steps=40",
    ]
    run += ["--config.train.save_every=4", "--config.model.num_layers=1", "--config.model.mtp_depth=0"]
    env = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}

    def trained(workdir: Path) -> list[str]:
        return [*run, f"--workdir={workdir}"]

    with contextlib.closing(Program("launch.pretrain", env)) as program:
        common = dict(program=program, flags=trained, compare=assert_same_run)
        yield [
            Kind("start", begun=lambda output, log: True, longest=3.0, **common),
            Kind("steps", begun=lambda output, log: "\nstep=" in log.read_text(), longest=1.0, **common),
            Kind("saves", begun=lambda output, log: _present(output, "checkpoints/*-tmp"), longest=0.3, **common),
            Kind("deletions", begun=lambda output, log: _deletes(output), longest=0.02, **common),
            Kind("tokens", begun=lambda output, log: _present(output, "data/.*.partial"), longest=0.2, **common),
        ]
    config = tiny_config(num_layers=2, hidden_size=256, expert_ffn_size=128, compute_dtype="float32", vocab_size=300)
    save_hf(random_params(config, dtype="float32"), config, folder / "hf")
    save_tokenizer(train_bpe(["some words, and some more words"], 270), folder / "hf")
    with contextlib.closing(Program("launch.port", env)) as program:

        def ported(source: Path) -> Callable[[Path], list[str]]:
            return lambda output: [f"--source={source}", f"--target={output}", "--shard_gb=0.001"]

        common = dict(program=program, longest=1.0, appears_whole=True)
        common |= dict(begun=lambda output, log: output.with_name(".out.partial").exists())
        yield [Kind("ports in", flags=ported(folder / "hf"), compare=assert_same_model, **common)]
        program.start(ported(folder / "hf")(folder / "run"), folder / "log")
        assert program.wait() == 0
        yield [Kind("ports out", flags=ported(folder / "run"), compare=assert_same_files, **common)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"some words {i}"}) + "\n" for i in range(40)))
    asked = [f"--model={folder / 'hf'}", f"--prompts={folder / 'prompts.jsonl'}", "--batch_size=4"]
    asked += ["--max_new_tokens=24"]
    with contextlib.closing(Program("launch.generate", env)) as program:
        common = dict(program=program, compare=assert_same_files, longest=4.0, output="out.jsonl")
        partial = ".out.jsonl.partial"
        yield [
            Kind(
                "answers",
                flags=lambda output: [*asked, f"--out={output}"],
                begun=lambda output, log: output.with_name(partial).exists(),
                **common,
            )
        ]


def _present(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def _deletes(workdir: Path) -> bool:
    """Whether there are more checkpoints than a run keeps."""
    with contextlib.suppress(FileNotFoundError):
        return sum(name.isdigit() for name in os.listdir(workdir / "checkpoints")) > 2
    return False


def assert_same_run(alone: Path, killed: Path) -> None:
    assert_same_end(alone, killed)
    assert_same_files(alone / "data", killed / "data")


def assert_same_files(alone: Path, killed: Path) -> None:
    """Of a file, or of all files below folders."""
    wanted, found = (files_below(path) if path.is_dir() else {"": path.read_bytes()} for path in (alone, killed))
    assert wanted.keys() == found.keys()
    for name, content in wanted.items():
        assert content == found[name], f"{killed / name} differs"


def assert_same_model(alone: Path, killed: Path) -> None:
    """Of workdirs."""
    wanted, found = final_state(alone), final_state(killed)
    assert {name: x.tobytes() for name, x in wanted.items()} == {name: x.tobytes() for name, x in found.items()}
    assert_same_files(alone / "tokenizer", killed / "tokenizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of kinds, with commas between; all if not given")
    options = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp(prefix="faults-")), random.Random(options.seed)
    print(f"files in {folder}", flush=True)
    names = options.only.split(",") if options.only else KINDS
    counts = [len(part) for part in np.array_split(range(options.kills), len(names))]
    left, start = dict(zip(names, counts, strict=True)), time.monotonic()
    for group in kinds(folder):
        for kind in group:
            if count := left.pop(kind.name, 0):
                moments = kill_often(kind, folder / kind.name.replace(" ", "_"), count, rng)
                print(f"{kind.name}: {count} kills, the same end; {time.monotonic() - start:.0f} s", flush=True)
                print("".join(f"    at {moment}\n" for moment in moments), end="", flush=True)
    assert not left, f"no such kinds: {', '.join(left)}"
    print(f"{options.kills} kills: every start went on, every output is the same, and nothing is left over")
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
