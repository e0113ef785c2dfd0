"""The checkpoint of a run that is read: the newest whole one."""

import re
import sys
import time

from etils import epath
from orbax.checkpoint.path import atomicity

from ling_jax.checkpoint import manifest
from ling_jax.checkpoint.manifest import DamagedCheckpoint
from ling_jax.distributed.peers import ALONE, Peers
from ling_jax.files import read_object
from ling_jax.paths import is_remote
from ling_jax.sums import checks

DAMAGED_SUFFIX = ".damaged"
STEP = re.compile("0|[1-9][0-9]*")
ATTEMPTS = 5  # our choice: a run may delete old checkpoints meanwhile
LISTING_SECONDS, POLL_SECONDS = 60, 2  # our choice: a network file system may show an old listing for a minute


def steps_in(folder: epath.PathLike) -> list[int]:
    """The steps of all completely written checkpoints in a folder, ascending."""
    folder = epath.Path(folder)
    if not folder.exists():
        return []
    found = [path for path in folder.iterdir() if STEP.fullmatch(path.name) and path.is_dir()]
    if is_remote(folder):  # the commit file is written last, since no store renames a folder
        found = [path for path in found if (path / atomicity.COMMIT_SUCCESS_FILE).exists()]
    return sorted(int(path.name) for path in found)


def newest_step(folder: epath.PathLike) -> int:
    """The newest step, unverified; 0 where there is no checkpoint."""
    return max(steps_in(folder), default=0)


def choose_step(folder: epath.PathLike, step: int | None = None, *, verify: bool = True, peers: Peers = ALONE) -> int:
    """The given step, or the newest whose files are all as they were saved.

    All `peers`, which share the folder, call it, and each compares a part of the files. Without `verify` no file is
    compared. It warns about damaged checkpoints. Raises FileNotFoundError where there is no such checkpoint, and
    DamagedCheckpoint where none is whole, where the given one is not, and with `checks.strict` where the newest is not.
    """
    folder = epath.Path(folder)
    for attempt in range(ATTEMPTS):
        present = _steps_of_all(folder, peers)
        if not present or step not in (None, *present):
            raise FileNotFoundError(f"{folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        if not (verify and checks.verify):
            return present[-1] if step is None else step
        wanted = present[::-1] if step is None else [step]
        may_be_gone = attempt + 1 < ATTEMPTS
        try:
            chosen, damage = _first_whole(folder, wanted, peers)
        except DamagedCheckpoint:
            if may_be_gone and _steps_of_all(folder, peers) != present:  # the run has deleted it meanwhile
                continue
            raise
        if damage and may_be_gone and _steps_of_all(folder, peers) != present:
            continue
        if damage and not peers.index:
            print(_warning(damage, f"checkpoint {chosen} is read, the newest whole one"), file=sys.stderr, flush=True)
        return chosen
    raise AssertionError("the last attempt returns or raises")


def resume_step(folder: epath.PathLike, peers: Peers = ALONE) -> int:
    """The step from which a run continues: `choose_step`, or 0 where there is no checkpoint.

    Newer, damaged checkpoints are renamed, so that the run can save these steps again; nothing is deleted.
    """
    folder = epath.Path(folder)
    if not _steps_of_all(folder, peers):
        return 0
    chosen = choose_step(folder, peers=peers)
    for step in [] if peers.index else steps_in(folder):
        if step > chosen:
            _set_aside(folder / str(step))
    peers.wait("damage set aside")
    return chosen


def _steps_of_all(folder: epath.Path, peers: Peers) -> list[int]:
    """`steps_in` when all processes see the same. Raises ValueError where they differ for `LISTING_SECONDS`."""
    for _ in range(LISTING_SECONDS // POLL_SECONDS):
        views = peers.gather(steps_in(folder), "steps")
        differing = [host for host, view in enumerate(views) if view != views[0]]
        if not differing:
            return views[0]
        time.sleep(POLL_SECONDS)
    raise ValueError(
        f"{folder} holds checkpoints {views[0]} on host 0 and {views[differing[0]]} on host {differing[0]}; name a "
        "folder that all hosts share"
    )


def _first_whole(folder: epath.Path, candidates: list[int], peers: Peers) -> tuple[int, list[DamagedCheckpoint]]:
    """(the first whole candidate, the damage of those before it)."""
    damage: list[DamagedCheckpoint] = []
    for step in candidates:
        try:
            check(folder / str(step), peers)
            return step, damage
        except DamagedCheckpoint as error:
            damage.append(error)
            older = candidates[len(damage) :]
            if checks.strict and older:
                raise DamagedCheckpoint(f"{error}; without --strict an older one is used, if it is whole") from None
    advice = "; no older one is whole" if len(candidates) > 1 else ""
    raise DamagedCheckpoint(f"{damage[0]}{advice} (--no_verify reads it all the same)") from None


def check(folder: epath.Path, peers: Peers = ALONE) -> None:
    """Raises DamagedCheckpoint where files of a checkpoint have changed since the save.

    All `peers` call it: each compares a share of the files, and the damage that one finds is raised in all.
    """
    damage = None
    try:
        _check_share(folder, peers)
    except DamagedCheckpoint as error:
        damage = error
    peers.raise_in_all(damage, DamagedCheckpoint, "damage")


def _check_share(folder: epath.Path, peers: Peers) -> None:
    if manifest.verify(folder, peers):
        return
    try:
        has_manifest = read_object(folder / manifest.META_FILE).get("has_manifest", False)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder} has neither {manifest.FILE_NAME} nor a record: {error}") from None
    if has_manifest:
        raise DamagedCheckpoint(f"{folder / manifest.FILE_NAME} is missing")
    if not peers.index:
        why = f"{folder} is of an earlier version and has no {manifest.FILE_NAME}: its bytes are not verified"
        print(why, file=sys.stderr, flush=True)


def _set_aside(folder: epath.Path) -> None:
    damaged = folder.with_name(folder.name + DAMAGED_SUFFIX)
    if damaged.exists():  # from an earlier try to reach this step
        damaged.rmtree()
    folder.rename(damaged)
    print(f"WARNING: {folder} is now {damaged.name}; remove it when you have looked at it", file=sys.stderr, flush=True)


def _warning(damage: list[DamagedCheckpoint], instead: str) -> str:
    return "\n".join(f"WARNING: DAMAGED CHECKPOINT: {error}; {instead}" for error in damage)
