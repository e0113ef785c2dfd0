"""Where the paths of a task are in a box, whose root has links to them (`sandbox.contract.LINKS`).

The folder that the task works in is the box's work folder; others lie in a folder of it that a listing does not show:

    /app/a.py      a.py                    /tests/test.sh                .root/tests/test.sh
    /data/b.csv    .root/data/b.csv        /logs/verifier/reward.txt     .root/logs/verifier/reward.txt
"""

import posixpath

from ling_jax.sandbox.contract import HIDDEN, IN_WORK, NAMES_OF_WORK

WORK_FOLDERS = ("work", *NAMES_OF_WORK)
JUDGES = tuple(f"{HIDDEN}/{name}/" for name in ("tests", "logs", "solution"))  # where nothing of the agent's stays
KNOWN = ", ".join(f"/{name}" for name in (*WORK_FOLDERS, *IN_WORK))


def place(path: str, workdir: str = "/work") -> str:
    """The path in the box's work folder of an absolute path of the task, or of one from its working directory.

    Raises ValueError where the box has no such folder.
    """
    whole = posixpath.normpath(posixpath.join(workdir, path))
    _, top, *rest = whole.split("/")
    if top in WORK_FOLDERS:
        return "/".join(rest) or "."
    if top in IN_WORK:
        return "/".join((HIDDEN, top, *rest))
    raise ValueError(f"{whole} is in none of the task's folders, {KNOWN}")
