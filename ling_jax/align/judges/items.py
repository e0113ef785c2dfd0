"""Item rules: the demands of an instruction, one by one, and rules that check those that can be counted.

The report (Ling 2.6, §3.1.3) splits multi-part instructions into explicit item rules. The rules here are our choice.
"""

import json
import re
from collections.abc import Callable, Sequence

from ling_jax.rewards import cut_sentences

Check = Callable[[str], bool]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER = rf"(\d+|{'|'.join(WORDS)})"
BOUNDS = {
    "exactly": lambda n, limit: n == limit,
    "at least": lambda n, limit: n >= limit,
    "no fewer than": lambda n, limit: n >= limit,
    "more than": lambda n, limit: n > limit,
    "at most": lambda n, limit: n <= limit,
    "up to": lambda n, limit: n <= limit,
    "no more than": lambda n, limit: n <= limit,
    "fewer than": lambda n, limit: n < limit,
    "less than": lambda n, limit: n < limit,
}
UNITS: dict[str, Callable[[str], int]] = {
    "word": lambda text: len(text.split()),
    "sentence": lambda text: sum(bool(re.search(r"\w", piece)) for piece in cut_sentences(text)),
    "line": lambda text: sum(bool(line.strip()) for line in text.splitlines()),
    "paragraph": lambda text: len([part for part in re.split(r"\n\s*\n", text) if part.strip()]),
    "bullet point": lambda text: len(re.findall(r"^[ \t]*[-*•] +\S", text, re.MULTILINE)),
    "bullet": lambda text: UNITS["bullet point"](text),
}
# Longer names first: "no more than" has "more than" in it.
COUNT = re.compile(
    rf"\b({'|'.join(sorted(BOUNDS, key=len, reverse=True))})\s+{NUMBER}\s+({'|'.join(UNITS)})s?\b", re.IGNORECASE
)
QUOTED = r"(?:the\s+(?:words?|phrase|name)\s+)?(?:\"([^\"]+)\"|“([^”]+)”|'([^']+)'|(\w+))"
ENDS = re.compile(rf"\b(begin|start|end|finish)\s+(?:it\s+|your\s+answer\s+)?with\s+{QUOTED}", re.IGNORECASE)
MENTION = re.compile(
    rf"\b(not\s+|n't\s+|never\s+|without\s+|avoid\s+)?(mention|mentioning|include|including|use|using)\s+{QUOTED}"
    rf"(?=\s*(?:$|[.,;!?]|and\b|or\b|once\b|in\s+(?:it|your)\b))",
    re.IGNORECASE,
)
CASE = re.compile(r"\b(?:in|all|only)\s+(lower|upper)[\s-]?case\b", re.IGNORECASE)
JSON_FORM = re.compile(r"\b(?:as|in|valid)\s+json\b", re.IGNORECASE)


def split_items(instruction: str) -> list[str]:
    """The demands that rules can check, as they stand in the instruction, then its sentences without any of them."""
    found: list[str] = []
    for sentence in cut_sentences(instruction):
        matches = [
            match[0] for pattern in (COUNT, ENDS, MENTION, CASE, JSON_FORM) for match in pattern.finditer(sentence)
        ]
        found += matches or ([sentence.strip()] if re.search(r"\w", sentence) else [])
    return sorted(dict.fromkeys(found), key=lambda item: check_of(item) is None)


def check_of(item: str) -> Check | None:
    """The rule that checks an item, a function of an answer's text; None where no single rule does."""
    if match := COUNT.search(item):
        bound, unit, limit = BOUNDS[match[1].lower()], UNITS[match[3].lower()], _number(match[2])
        return lambda text: bound(unit(text), limit)
    if match := ENDS.search(item):
        wanted = _word(match.groups()[1:])
        if match[1].lower() in ("begin", "start"):
            return lambda text: text.strip().casefold().startswith(wanted)
        return lambda text: text.strip().casefold().rstrip(".!?").endswith(wanted.rstrip(".!?"))
    if match := MENTION.search(item):
        wanted, present = re.escape(_word(match.groups()[2:])), not match[1]
        return lambda text: bool(re.search(rf"(?<!\w){wanted}(?!\w)", text.casefold())) == present
    if match := CASE.search(item):
        change = str.lower if match[1].lower() == "lower" else str.upper
        return lambda text: text == change(text)
    if JSON_FORM.search(item):
        return _is_json
    return None


def _number(text: str) -> int:
    return WORDS.index(text.lower()) if text.lower() in WORDS else int(text)


def _word(groups: Sequence[str | None]) -> str:
    return next(group for group in groups if group).casefold()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
