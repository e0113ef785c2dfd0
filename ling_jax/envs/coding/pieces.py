"""Steps that functions to write are composed of: what they do in words and as Python, and values to try them on.

A step turns x, of one kind, into x of another. Its Python is an expression, or lines that assign x at the end; {a} and
{b} are numbers that are drawn for it.
"""

import random
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A kind of step."""

    takes: str  # "int", "ints", "text", "words", "counts" or "nested"
    gives: str
    words: str
    code: str
    a: tuple[int, int] = (1, 1)  # least and most
    b: tuple[int, int] = (1, 1)


NUMBERS = (
    Piece("int", "int", "multiply by {a}", "x * {a}", (2, 9)),
    Piece("int", "int", "add {a}", "x + {a}", (1, 20)),
    Piece("int", "int", "subtract {a}", "x - {a}", (1, 20)),
    Piece("int", "int", "take the rest of the division by {a}", "x % {a}", (5, 30)),
    Piece("int", "int", "take the absolute value", "abs(x)"),
    Piece("int", "int", "square it", "x * x"),
    Piece("int", "int", "halve it if it is even, else add {a}", "x // 2 if x % 2 == 0 else x + {a}", (1, 9)),
    Piece("int", "int", "multiply by {a} if it is below {b}, else subtract {b}", "x * {a} if x < {b} else x - {b}",
          (2, 5), (3, 15)),
    Piece("int", "int", "make it at least {a}", "max(x, {a})", (-5, 9)),
    Piece("int", "int", "make it at most {a}", "min(x, {a})", (5, 40)),
    Piece("int", "int", "subtract it from {a}", "{a} - x", (0, 50)),
)  # fmt: skip
LISTS = (
    Piece("ints", "ints", "keep the even numbers", "[n for n in x if n % 2 == 0]"),
    Piece("ints", "ints", "keep the odd numbers", "[n for n in x if n % 2 == 1]"),
    Piece("ints", "ints", "keep the numbers above {a}", "[n for n in x if n > {a}]", (-3, 6)),
    Piece("ints", "ints", "drop the multiples of {a}", "[n for n in x if n % {a}]", (2, 5)),
    Piece("ints", "ints", "add {a} to each", "[n + {a} for n in x]", (1, 9)),
    Piece("ints", "ints", "multiply each by {a}", "[n * {a} for n in x]", (2, 6)),
    Piece("ints", "ints", "square each", "[n * n for n in x]"),
    Piece("ints", "ints", "sort them", "sorted(x)"),
    Piece("ints", "ints", "turn their order around", "x[::-1]"),
    Piece("ints", "ints", "drop the first {a}", "x[{a}:]", (1, 2)),
    Piece("ints", "ints", "keep the first {a}", "x[:{a}]", (2, 5)),
    Piece("ints", "ints", "keep every second, from the first on", "x[::2]"),
    Piece("ints", "ints", "keep the first of equal numbers", "list(dict.fromkeys(x))"),
    Piece("ints", "ints", "replace each by the sum up to and with it", "[sum(x[: i + 1]) for i in range(len(x))]"),
    Piece("ints", "ints", "replace them by the differences of neighbours, the later minus the earlier",
          "[b - a for a, b in zip(x, x[1:])]"),
    Piece("ints", "ints", "add to each its position, from 0", "[n + i for i, n in enumerate(x)]"),
)  # fmt: skip
FOLDS = (
    Piece("ints", "int", "sum them", "sum(x)"),
    Piece("ints", "int", "count them", "len(x)"),
    Piece("ints", "int", "take the largest, 0 if there is none", "max(x, default=0)"),
    Piece("ints", "int", "take the smallest, 0 if there is none", "min(x, default=0)"),
    Piece("ints", "int", "take the largest minus the smallest, 0 if there is none", "max(x) - min(x) if x else 0"),
    Piece("ints", "int", "count those above {a}", "sum(n > {a} for n in x)", (0, 6)),
)
TEXTS = (
    Piece("text", "text", "turn it around", "x[::-1]"),
    Piece("text", "text", "make it lower case", "x.lower()"),
    Piece("text", "text", "make it upper case", "x.upper()"),
    Piece("text", "text", "drop the vowels", "''.join(c for c in x if c not in 'aeiouAEIOU')"),
    Piece("text", "text", "drop the first {a} characters", "x[{a}:]", (1, 3)),
    Piece("text", "text", "keep every second character, from the first on", "x[::2]"),
    Piece("text", "text", "double each character", "''.join(c * 2 for c in x)"),
    Piece("text", "text", "swap upper and lower case", "x.swapcase()"),
)
WORDS = (
    Piece("words", "words", "keep the words of at least {a} letters", "[w for w in x if len(w) >= {a}]", (2, 4)),
    Piece("words", "words", "turn each word around", "[w[::-1] for w in x]"),
    Piece("words", "words", "sort the words", "sorted(x)"),
    Piece("words", "words", "sort the words by length, then alphabetically", "sorted(x, key=lambda w: (len(w), w))"),
    Piece("words", "words", "turn the order of the words around", "x[::-1]"),
    Piece("words", "words", "keep the first of equal words", "list(dict.fromkeys(x))"),
    Piece("words", "words", "make the first letter of each word upper case", "[w[:1].upper() + w[1:] for w in x]"),
    Piece("words", "words", "keep the first {a} letters of each word", "[w[:{a}] for w in x]", (1, 3)),
    Piece("words", "words", "put its length behind each word", "[w + str(len(w)) for w in x]"),
)
CHANGES = (
    Piece("text", "words", "split it into words", "x.split()"),
    Piece("words", "text", "join the words with '-'", "'-'.join(x)"),
    Piece("words", "text", "join the words with ', '", "', '.join(x)"),
    Piece("words", "text", "join the first letters of the words", "''.join(w[:1] for w in x)"),
    Piece("words", "ints", "take the lengths of the words", "[len(w) for w in x]"),
    Piece("words", "counts", "count how often each word occurs", "{w: x.count(w) for w in x}"),
    Piece("words", "counts", "count the words by their first letter",
          "{c: sum(w[:1] == c for w in x) for c in sorted({w[:1] for w in x})}"),
    Piece("text", "counts", "count how often each letter occurs, blanks aside",
          "{c: x.count(c) for c in sorted(set(x)) if c != ' '}"),
    Piece("counts", "words", "take the keys, the largest count first, of equal ones alphabetically",
          "sorted(x, key=lambda k: (-x[k], k))"),
    Piece("counts", "ints", "take the counts in the order of their keys", "[x[k] for k in sorted(x)]"),
    Piece("counts", "counts", "drop those that are counted once", "{k: n for k, n in x.items() if n > 1}"),
    Piece("counts", "counts", "multiply each count by {a}", "{k: n * {a} for k, n in x.items()}", (2, 5)),
)  # fmt: skip


def drawn(rng: random.Random, piece: Piece) -> tuple[str, str]:
    """(words, code) of a step with its numbers drawn."""
    a, b = rng.randint(*piece.a), rng.randint(*piece.b)
    return tuple(text.replace("{a}", str(a)).replace("{b}", str(b)) for text in (piece.words, piece.code))


def value(rng: random.Random, kind: str) -> Any:
    """A value of a kind to try a function on: short, and sometimes empty."""
    if kind == "int":
        return rng.randint(-20, 60)
    if kind == "ints":
        return [rng.randint(-6, 15) for _ in range(rng.randint(0, 8))]
    if kind == "text":
        return " ".join(value(rng, "words"))
    if kind == "words":
        known = [_word(rng) for _ in range(4)]
        return [rng.choice(known) if rng.random() < 0.5 else _word(rng) for _ in range(rng.randint(0, 7))]
    if kind == "nested":
        return [rng.randint(-5, 9) if rng.random() < 0.6 else value(rng, "nested") for _ in range(rng.randint(0, 3))]
    if kind == "sum":
        terms = (f"{rng.randint(0, 12)}{rng.choice('+*-')}" for _ in range(rng.randint(0, 4)))
        return "".join(terms) + str(rng.randint(1, 9))
    if kind == "runs":
        return "".join(f"{rng.choice('abcd')}{rng.randint(1, 12)}" for _ in range(rng.randint(0, 5)))
    if kind == "brackets":
        return "".join(rng.choice("()[]") if rng.random() < 0.3 else rng.choice(["()", "[]", "([])"]) for _ in range(4))
    if kind == "settings":
        return ";".join(f"{rng.choice('abcxy')}={rng.randint(-9, 20)}" for _ in range(rng.randint(0, 6)))
    assert kind == "coins", kind
    return sorted(rng.sample(range(2, 12), rng.randint(1, 4)))


def _word(rng: random.Random) -> str:
    word = "".join(rng.choice("abdeiorst") for _ in range(rng.randint(1, 6)))
    return word.capitalize() if rng.random() < 0.25 else word
