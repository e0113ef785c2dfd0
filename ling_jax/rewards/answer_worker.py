"""The process of `AnswerChecker`: compares mathematical expressions exactly, one JSON line in, one out.

The file runs as a program and imports nothing from this package, so that it starts without JAX. latex2sympy parses an
expression completely or fails. Two expressions are the same if they are equal rationals, or if they agree at random
points to far more digits than the texts have characters. There is no tolerance and no simplification.
"""

import contextlib
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import time
from typing import Any

MEMORY_BYTES = 1 << 30  # our choice: a tower of powers must fail here instead of exhausting the machine
POINTS = ((0.1, 3.0), (0.1, 3.0), (-3.0, 3.0), (-3.0, 3.0), (-3.0, -0.1))  # ranges of the variables; our choice
MIN_POINTS = 2  # at which both expressions must have a value
MAX_SYMBOLS = 12
MAX_DIGITS = 1000  # precision of a comparison; our choice


class Unreadable(ValueError):
    """A text is no expression."""


def main() -> None:
    """Reads (answer, gold, limit) lines from standard input and writes (status, detail, seconds) lines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the checker handles interrupts from the terminal
    # Output of libraries must not mix with the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(ValueError, OSError):  # macOS may refuse
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    compare("x+1", "1+x")  # imports
    print(json.dumps(["ready", "", 0.0]), file=replies, flush=True)
    for line in sys.stdin:
        answer, gold, limit = json.loads(line)
        begun = time.process_time()
        # Processor time, not wall time: the system ends this process, even inside C code, if the expressions are too
        # expensive, but not if the machine is busy with other work.
        signal.setitimer(signal.ITIMER_PROF, limit)
        reply = verdict(answer, gold)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([*reply, time.process_time() - begun]), file=replies, flush=True)


def verdict(answer: str, gold: str) -> tuple[str, str]:
    """("right" or "wrong", the reason if the expressions could not be compared)."""
    try:
        return ("right" if compare(answer, gold) else "wrong"), ""
    except MemoryError:
        return "wrong", f"needs more than {MEMORY_BYTES >> 30} GiB"
    except Exception as error:  # sympy raises nearly anything
        return "wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def compare(answer: str, gold: str) -> bool:
    """Whether two expressions in normalised LaTeX are equal. Raises Unreadable."""
    digits = min(60 + 2 * (len(answer) + len(gold)), MAX_DIGITS)
    return same(read(answer), read(gold), digits, random.Random(f"{answer}\0{gold}"))


def read(text: str) -> Any:
    """The sympy object of a normalised LaTeX text. Raises Unreadable."""
    from latex2sympy2_extended import latex2sympy
    from sympy import I

    try:
        found = latex2sympy(explicit(text), is_real=True, convert_degrees=False, normalization_config=None)
        imaginary = [symbol for symbol in found.free_symbols if symbol.name == "i"]
        return found.subs(dict.fromkeys(imaginary, I)) if imaginary else found
    except Exception as error:
        raise Unreadable(f"{text[:80]!r} is not read as mathematics: {' '.join(str(error).split())[:120]}") from None


def explicit(text: str) -> str:
    """The text with fractions for decimals, and with explicit products where latex2sympy would read mixed numbers."""
    text = re.sub(r"\\(begin|end) \{", r"\\\1{", text).replace(r"\lg ", r"\log_{10} ")
    text = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\\frac{\1\\pi}{180})", text)
    text = re.sub(r"(?<![a-zA-Z\\])(pi|sin|cos|tan|ln|log|exp)(?![a-zA-Z])", r"\\\1 ", text)
    text = re.sub(r"(\d*)\.(\d+)", lambda m: f"\\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    text = re.sub(r"(\d)\s*\(", r"\1\\cdot (", text)
    text = re.sub(r"\)\s*([(\d])", r")\\cdot \1", text)
    return re.sub(r"((?:[\d)]|(?<![\\a-zA-Z])[a-zA-Z])\^\{[^{}]*\})\s*\(", r"\1\\cdot (", text)


def same(answer: Any, gold: Any, digits: int, rng: random.Random) -> bool:
    """Whether two sympy objects are equal: matrices entry by entry, equations by `same_equation`."""
    from sympy import Eq, Expr, MatrixBase, MatrixExpr

    answer, gold = (x.doit() if isinstance(x, MatrixExpr) else x for x in (answer, gold))  # 1/2 of a matrix
    if isinstance(answer, MatrixBase) and isinstance(gold, MatrixBase):
        pairs = zip(answer.flat(), gold.flat(), strict=False)
        return answer.shape == gold.shape and all(same(a, g, digits, rng) for a, g in pairs)
    if isinstance(answer, Eq) and isinstance(gold, Eq):
        return same_equation(answer.lhs - answer.rhs, gold.lhs - gold.rhs, digits, rng)
    if not (isinstance(answer, Expr) and isinstance(gold, Expr)):
        return bool(answer == gold)
    return same_expression(answer, gold, digits, rng)


def same_equation(answer: Any, gold: Any, digits: int, rng: random.Random) -> bool:
    """Whether one expression is a constant multiple of the other, so that both have the same zeros."""
    if not gold.free_symbols or answer.free_symbols != gold.free_symbols:
        return False
    ratios = [a / g for a, g in evaluations(answer, gold, digits, rng) if g]
    return len(ratios) >= MIN_POINTS and bool(ratios[0]) and all(agree(r, ratios[0], digits) for r in ratios)


def same_expression(answer: Any, gold: Any, digits: int, rng: random.Random) -> bool:
    """Whether two expressions are equal rationals or agree at random points."""
    answer, gold = answer.doit(), gold.doit()
    if answer == gold:
        return True
    if (answer.is_Rational and gold.is_Rational) or answer.is_infinite or gold.is_infinite:
        return False
    values = evaluations(answer, gold, digits, rng)
    if len(values) < (MIN_POINTS if answer.free_symbols | gold.free_symbols else 1):
        return False
    return all(agree(a, g, digits) or vanish(answer, gold, a, g, digits) for a, g in values)


def evaluations(answer: Any, gold: Any, digits: int, rng: random.Random) -> list[tuple]:
    """[(value of answer, value of gold), …] at the random points where both are finite numbers."""
    from sympy import Rational

    symbols = sorted(answer.free_symbols | gold.free_symbols, key=str)
    if len(symbols) > MAX_SYMBOLS:
        raise Unreadable(f"{len(symbols)} variables")
    values = []
    for low, high in POINTS if symbols else POINTS[:1]:
        point = {symbol: Rational(rng.randrange(int(low * 10007), int(high * 10007)), 10007) for symbol in symbols}
        pair = [expression.subs(point).evalf(digits, maxn=2 * digits) for expression in (answer, gold)]
        if all(value.is_number and value.is_finite for value in pair):
            values.append(tuple(pair))
    return values


def agree(a: Any, b: Any, digits: int) -> bool:
    """Whether two numbers agree in all but the last ten digits."""
    from sympy import Float, Integer

    return bool(abs(a - b) <= Float(10, digits) ** Integer(10 - digits) * max(abs(a), abs(b)))


def vanish(answer: Any, gold: Any, a: Any, b: Any, digits: int) -> bool:
    """Whether both values are numerically 0 and sympy simplifies the difference to 0."""
    from sympy import Float, Integer, simplify

    return bool(max(abs(a), abs(b)) < Float(10, digits) ** Integer(20 - digits)) and simplify(answer - gold) == 0


if __name__ == "__main__":
    main()
