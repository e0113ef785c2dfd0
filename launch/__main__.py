"""`python -m launch` lists the programs."""

import ast
import sys
from pathlib import Path

from launch.early import START


def programs() -> dict[str, str]:
    """{name: first line of its docstring} of every program in this folder."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    return {name: ast.get_docstring(ast.parse(s)).splitlines()[0] for name, s in sources.items() if START in s}


def main() -> None:
    """Prints the programs, a line for each."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal without UTF-8
    listed = programs()
    width = max(map(len, listed))
    print("The programs, each with --help:")
    for name, purpose in listed.items():
        print(f"  python -m launch.{name:<{width}}  {purpose}")


if __name__ == "__main__":
    main()
