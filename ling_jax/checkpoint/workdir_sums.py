"""Checksums of the other files in a workdir, which a checkpoint records and which are compared when it is read.

Logs grow after a save, but their earlier part must not change. The tokenizer and the files beside it must not change at
all, or the model would read other tokens than in its training.
"""

import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from ling_jax.checkpoint import manifest
from ling_jax.files import read_object
from ling_jax.messages import shown
from ling_jax.paths import files_below, is_remote
from ling_jax.sums import DamagedFile, checks, compare, sums_of

# Further logs: files that grow, or that are written once.
ALSO = ("origins.json",)
FOLDERS = ("tensorboard", "evaluation")


def workdir_sums(workdir: epath.PathLike, logs: Sequence[str]) -> dict[str, Any]:
    """{"logs", "texts"}: sums of the logs, of `ALSO` and of tokenizer/, which are flushed to the disk."""
    workdir = epath.Path(workdir)
    logs = [name for name in (*logs, *ALSO) if (workdir / name).exists()]
    also = [name for folder in FOLDERS for name in _files(workdir, folder)]
    sums = {
        "logs": sums_of(workdir, logs + also, flush=True),
        "texts": sums_of(workdir, _files(workdir, "tokenizer"), flush=True),
    }
    if not is_remote(workdir):
        manifest.flush_folder(workdir)
    return sums


def _files(workdir: epath.Path, folder: str) -> list[str]:
    found = (PurePosixPath(folder, name) for name in files_below(workdir / folder))
    return [str(path) for path in found if not path.name.startswith(".")]


def check_texts(workdir: epath.PathLike, step: int) -> None:
    """Raises DamagedFile where the tokenizer or a file beside it has changed since a checkpoint was saved."""
    try:
        compare(epath.Path(workdir), _noted(workdir, step, "texts"))
    except DamagedFile as error:
        raise DamagedFile(
            f"{error}; checkpoint {step} was saved with it: restore the file (--no_verify reads what is there)"
        ) from None


def check_logs(workdir: epath.PathLike, step: int) -> None:
    """Warns where the part of the logs that a checkpoint records has changed.

    With `checks.strict` it raises DamagedFile instead.
    """
    for name, wanted in _noted(workdir, step, "logs").items():
        try:
            compare(epath.Path(workdir), {name: wanted}, may_be_longer=True)
        except DamagedFile as error:
            if checks.strict:
                raise
            effect = f"the run continues from checkpoint {step}, and lines before it are missing or changed"
            print(f"WARNING: DAMAGED LOG: {error}; {effect}", file=sys.stderr, flush=True)


def _noted(workdir: epath.PathLike, step: int, kind: str) -> dict[str, Any]:
    """The `workdir_sums` of a checkpoint; {} for one of an earlier version, and where nothing is verified."""
    if not checks.verify or not step:
        return {}
    file = epath.Path(workdir) / "checkpoints" / str(step) / manifest.META_FILE
    run = read_object(file).get("run", {})
    noted = run.get(kind, {}) if isinstance(run, dict) else None
    if not isinstance(noted, dict):
        raise manifest.DamagedCheckpoint(f"{file}: run is {shown(run)}; expected an object with {kind}")
    return noted
