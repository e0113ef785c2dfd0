"""Writes docs/programs.md: what `python -m launch` and every program's --help say.

python docs/write_programs.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Programs

Run from a checkout. `python -m launch` lists the programs; what follows is their `--help` (this page is written by
`docs/write_programs.py`). A config is a file of `configs/`; its fields are overridden one by one, as in
`--config.train.steps=200`. A field without a default stands in the file.
"""


def page() -> str:
    sys.path.insert(0, str(ROOT))
    from launch.__main__ import programs

    listed = programs()
    rows = [f"| [`launch.{name}`](#launch{name}) | {purpose} |" for name, purpose in listed.items()]
    table = "\n".join(["| program | what it does |", "|---|---|", *rows])
    sections = (f"## launch.{name}\n\n```text\n{_help(name)}\n```\n" for name in listed)
    return "\n".join([HEAD, table, "", *sections])


def _help(name: str) -> str:
    command = [sys.executable, "-m", f"launch.{name}", "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.rstrip()


if __name__ == "__main__":
    (ROOT / "docs" / "programs.md").write_text(page())
