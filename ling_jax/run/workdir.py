"""The workdir of a run: its checks, its config and its lock."""

import contextlib
import dataclasses
import fcntl
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from etils import epath

from ling_jax.checkpoint.manifest import META_FILE
from ling_jax.checkpoint.orbax import check_path
from ling_jax.checkpoint.steps import newest_step, steps_in
from ling_jax.config_dicts import differences
from ling_jax.distributed import hosts
from ling_jax.files import read_object, write_json
from ling_jax.messages import warn
from ling_jax.partials import sweep
from ling_jax.paths import as_path, is_remote, resolved
from ling_jax.preflight import check_folder
from ling_jax.sums import checks, read_sealed, write_sealed
from ling_jax.train.config import RESUMABLE

FOLDERS = ("checkpoints", "data", "evaluation", "tensorboard", "tokenizer", "trajectories")
FILES = (
    "config.json", "origins.json", "metrics.jsonl", "samples.jsonl", "events.jsonl", "timeline.jsonl", "episodes.jsonl",
    "integrity.json",
)  # fmt: skip
LOCK = ".lock"
Result = TypeVar("Result")


def open_workdir(workdir: epath.PathLike) -> epath.Path:
    """The checked path of a workdir.

    Raises ValueError where it cannot be the folder of a run, and PermissionError where it cannot be written.
    """
    if not str(workdir):
        raise ValueError("the workdir is empty; name a folder")
    workdir = epath.Path(as_path(workdir))
    if os.path.isfile(workdir):
        raise ValueError(f"{workdir} is not a folder; name another workdir")
    check_folder(workdir)
    check_path(workdir)
    for name in ("", *FOLDERS):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise ValueError(f"{workdir / name} is not a folder; name another workdir")
        _check_inside(workdir / name, workdir)
    for name in FILES:
        if (workdir / name).is_dir():
            raise ValueError(f"{workdir / name} is a folder where a run has a file; name another workdir")
    if workdir.is_dir() and any(workdir.glob("*.safetensors")):  # a run would replace its config.json
        raise ValueError(f"{workdir} holds a model (*.safetensors); name another workdir")
    if not is_remote(workdir):
        _check_ours(Path(workdir))
    return workdir


def _check_ours(workdir: Path) -> None:
    """Raises where files of a local workdir have the names of a run's files but are no run's, or cannot be written."""
    for name in FOLDERS:
        if (workdir / name).exists():
            check_folder(workdir / name)
    for name in FILES:
        if (workdir / name).exists() and not os.access(workdir / name, os.W_OK):
            raise PermissionError(f"{workdir / name} cannot be written: permission denied; change its mode or owner")
    if hosts.process_index() or (workdir / LOCK).exists() or has_checkpoint(epath.Path(workdir)):
        return
    if found := [name for name in (*FOLDERS, *FILES) if _has_content(workdir / name)]:
        raise ValueError(
            f"{workdir / found[0]} is not of a run: the folder has no {LOCK}, which every run begins with; name "
            "another workdir, or move it away"
        )


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _check_inside(path: epath.Path, workdir: epath.Path) -> None:
    """Raises ValueError on a link out of the workdir: a run removes files in its folders only."""
    if resolved(path).is_relative_to(resolved(workdir)):
        return
    raise ValueError(
        f"{path} is a link to {resolved(path)}, outside of the workdir; remove the link (data.folder names a "
        "folder for tokens, and the workdir as a whole may be a link)"
    )


def has_checkpoint(workdir: epath.Path) -> bool:
    """Whether the workdir holds a whole checkpoint."""
    return bool(steps_in(workdir / "checkpoints"))


def check_workdir(config: Any, workdir: epath.Path, resumable: Sequence[str] = RESUMABLE) -> None:
    """Raises ValueError where the workdir holds another run, with a line for each field that may not differ.

    `config` is the dataclass of the stage, and `resumable` its fields that may differ. A workdir without a checkpoint
    takes any config.
    """
    if not has_checkpoint(workdir):
        return
    try:
        changed = differences(_config_of(workdir), config, resumable)
    except RecursionError:
        raise ValueError(
            f"{workdir / 'config.json'} is nested too deeply; restore it, or name another workdir"
        ) from None
    if changed:
        lines = "\n  ".join(changed)
        raise ValueError(f"{workdir} holds another run; name another workdir, or undo these:\n  {lines}")


def _config_of(workdir: epath.Path) -> dict[str, Any]:
    """The config of a run that has a checkpoint, from config.json or, where that is damaged, from the checkpoint.

    The second case prints a warning; with `checks.strict` it is an error.
    """
    path = workdir / "config.json"
    try:
        if not path.exists():
            raise ValueError(f"{workdir} holds checkpoints but no config.json to compare with; name another workdir")
        return read_config(path)
    except (OSError, ValueError) as error:
        step = newest_step(workdir / "checkpoints")
        noted = None if checks.strict else _noted_config(workdir / "checkpoints" / str(step) / META_FILE)
        if noted is None:
            raise
        instead = f"the config that checkpoint {step} notes is compared, and written anew"
        print(f"WARNING: DAMAGED FILE: {error}; {instead}", file=sys.stderr, flush=True)
        return noted


def read_config(path: epath.Path) -> dict[str, Any]:
    """The config.json of a run. Raises OSError, ValueError, and DamagedFile where its checksum is another."""
    expected = "the config of the run; restore it, or name another workdir"
    found = read_object(path, expected)
    if checks.verify and "crc32c" in found:  # earlier versions wrote none
        return read_sealed(path, expected)
    found.pop("crc32c", None)
    return found


def _noted_config(record: epath.Path) -> dict[str, Any] | None:
    """The config in the record of a checkpoint; None where it cannot be read."""
    try:
        return read_object(record)["run"]["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_config(config: Any, workdir: epath.Path) -> None:
    """Writes config.json with its own checksum, on host 0."""
    if not hosts.process_index():
        write_sealed(dataclasses.asdict(config), workdir / "config.json")


def read_origins(workdir: epath.Path) -> dict[str, int | None]:
    """{path: step} of the models that the run started from, by `write_origins`; {} until it has a checkpoint.

    A resumed run starts from the same checkpoints, even if newer ones have been saved there since.
    """
    path = workdir / "origins.json"
    return read_object(path) if has_checkpoint(workdir) and path.exists() else {}


def write_origins(origins: Mapping[str, int | None], workdir: epath.Path) -> None:
    """Notes which checkpoint of each model the run starts from; None for a Hugging Face folder, which has no steps.

    A run that has a checkpoint keeps its note.
    """
    if not has_checkpoint(workdir) and not hosts.process_index():
        write_json(dict(origins), workdir / "origins.json")


def lock_and_fill(workdir: epath.Path, fill: Callable[[], Result]) -> tuple[IO[bytes] | None, Result]:
    """(the lock of a workdir, `fill()`), which host 0 calls first, so that the others find its files.

    After an error the workdir is unlocked. Raises ValueError as `lock`, and where a host has another workdir.
    """

    def fill_shared() -> Result:
        if hosts.process_index() and not (workdir / "config.json").exists():
            lacks = f"{workdir} lacks the files that host 0 wrote into its workdir"
            raise ValueError(f"{lacks}; name a workdir that all hosts share")
        return fill()

    held = lock(workdir)
    try:
        return held, hosts.first_host_first(fill_shared)
    except BaseException:
        unlock(workdir, held)
        raise


def lock(workdir: epath.Path) -> IO[bytes] | None:
    """Locks a local workdir for this process while the returned file is open; the system unlocks it at any end.

    Host 0 holds the lock for all hosts. A workdir in a store has no lock, nor has one on a file system without locks,
    which prints a warning. Raises ValueError where another process holds the lock.
    """
    if hosts.process_index() or is_remote(workdir):
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / LOCK, "ab")  # noqa: SIM115  open until the run ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{workdir} is in use by another process; wait for it, or name another workdir") from None
    except OSError as error:
        reason = f"its file system has no locks ({error.strerror})"
        warn(f"{workdir}: {reason}, so two runs in it would not notice each other; start one at a time")
    for folder in (Path(workdir), *(Path(workdir, name) for name in FOLDERS)):
        sweep(folder)
    return file


def unlock(workdir: epath.Path, held: IO[bytes] | None) -> None:
    """Unlocks a workdir, and removes it if it holds nothing but its lock."""
    if held is None:
        return
    with held, contextlib.suppress(FileNotFoundError):  # another program removed the workdir
        if [path.name for path in workdir.iterdir()] == [LOCK]:
            (workdir / LOCK).unlink()
            workdir.rmdir()
