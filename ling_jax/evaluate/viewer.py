"""A page of trajectories: one HTML file that needs no server and loads nothing, from ATIF (`ling_jax.rl.atif`).

The trajectories stand in the page as data, and its script writes them as text nodes alone. The page's own policy allows
that script and that style by their digests, so a script in an observation would not run even if it were markup.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ling_jax.data.json_lines import read_objects
from ling_jax.files import read_object
from ling_jax.messages import shown

HERE = Path(__file__).parent
FORMAT = "ATIF-v1."  # later versions of 1 add fields only
SOURCES = ("system", "user", "agent")

Trajectory = Mapping[str, Any]


def viewer_page(trajectories: Sequence[Trajectory], title: str) -> str:
    """The page of these trajectories, in their order. Raises ValueError on NaN and infinities."""
    style, script = ((HERE / f"viewer.{kind}").read_text() for kind in ("css", "js"))
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}"
    data = json.dumps(list(trajectories), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head><body>"
        f'<nav><h1>{html.escape(title)}</h1><input id="find" type="search" placeholder="filter: words, right, wrong" '
        'aria-label="filter"><p id="count"></p><ol id="list"></ol></nav><main id="episode" tabindex="-1"></main>'
        '<footer id="tip" aria-live="polite"></footer>'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """The ATIF trajectories of a file (JSON, or JSON lines), or of a folder: of all its files below, sorted by name,
    that are trajectory*.json, or JSON lines called trajectories*.jsonl or in a folder trajectories.

    Raises FileNotFoundError where there are none, and ValueError that names the file, the line and the field of one
    that is no trajectory.
    """
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(
            f"{path} holds no trajectories; name a run's workdir, the --out of launch.evaluate, or a file"
        )
    for file in files:
        yield from (_checked(record, where) for where, record in _records(file))


def _files(folder: Path) -> list[Path]:
    found = {*folder.rglob("trajectory*.json"), *folder.rglob("trajectories*.jsonl"), *folder.glob("*.jsonl")}
    if folder.name != "trajectories":
        found -= {*folder.glob("*.jsonl")} - {*folder.glob("trajectories*.jsonl")}
    return sorted(found | {*folder.rglob("trajectories/*.jsonl")})


def _records(file: Path) -> Iterable[tuple[str, Trajectory]]:
    if file.suffix == ".json":
        return [(str(file), read_object(file, "an ATIF trajectory"))]
    return read_objects(file, "an ATIF trajectory")


def _checked(record: Trajectory, where: str) -> Trajectory:
    """Raises ValueError on what the page could not show."""
    version = record.get("schema_version")
    if not isinstance(version, str) or not version.startswith(FORMAT):
        raise ValueError(f"{where}: schema_version is {shown(version)}; expected {FORMAT}0 or a later one of {FORMAT}")
    steps = record.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"{where}: steps is {shown(steps)}; expected a list of at least one step")
    for i, step in enumerate(steps):
        source = step.get("source") if isinstance(step, dict) else step
        if source not in SOURCES:
            raise ValueError(f"{where}: steps[{i}].source is {shown(source)}; expected one of {', '.join(SOURCES)}")
    return record


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
