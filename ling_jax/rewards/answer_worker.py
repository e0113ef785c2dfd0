"""The process of `AnswerChecker`: compares mathematical answers, one JSON line in, one out.

It is run as a file and imports nothing of this package, so that it starts without JAX.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30  # our choice: a tower of powers must fail here, not fill the machine
ORPHAN_SECONDS = 60  # past a check's limit


def main() -> None:
    # What a library prints must not get among the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(ValueError, OSError):  # macOS may refuse
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    _compare("1", "1")  # imports
    print(json.dumps(["ready", ""]), file=replies, flush=True)
    for line in sys.stdin:
        answer, gold, limit = json.loads(line)
        signal.alarm(int(limit) + ORPHAN_SECONDS)  # ends this process where the one that should kill it is gone
        print(json.dumps(_status(answer, gold)), file=replies, flush=True)
        signal.alarm(0)


def _status(answer: str, gold: str) -> tuple[str, str]:
    try:
        return ("right" if _compare(answer, gold) else "wrong"), ""
    except Exception as error:  # sympy raises nearly anything
        return "error", f"{type(error).__name__}: {str(error)[:200]}"


def _compare(answer: str, gold: str) -> bool:
    """math-verify's verdict. Its own time limits are signals, which do not stop C code: they are off."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    options = {"parsing_timeout": None, "raise_on_error": True}
    parsed_answer, parsed_gold = (parse(f"\\boxed{{{text}}}", config, **options) for text in (answer, gold))
    return verify(parsed_gold, parsed_answer, timeout_seconds=None, raise_on_error=True)


if __name__ == "__main__":
    main()
