"""`python -m launch` lists the programs."""

import ast
import sys

from launch.early import program_sources


def programs() -> dict[str, str]:
    """{name: first line of its docstring} of every program in this folder."""
    return {name: ast.get_docstring(ast.parse(s)).splitlines()[0] for name, s in program_sources().items()}


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
