"""What a program says beside its output."""

import sys


def warn(text: str) -> None:
    """One line on stderr, for what the user should know and that ends nothing."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
