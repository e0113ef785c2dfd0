"""Final answers of searches: normalised text, compared with the answer and its other names."""

import re
import unicodedata
from collections.abc import Iterable

from ling_jax.envs.reasoning.answers import ANSWER

THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def normalise(text: str) -> str:
    """The text without case, marks around it, doubled blanks, a leading "the" and commas within a number."""
    text = THOUSANDS.sub("", unicodedata.normalize("NFKC", text)).casefold()
    text = " ".join(text.split()).strip("*_`\"'“”‘’.,;:!?()[] ")
    return text.removeprefix("the ")


def is_answer(text: str, accepted: Iterable[str]) -> bool:
    """Whether all that follows the last `A:` of a turn is one of the accepted answers, once both are normalised."""
    _, found, said = text.rpartition(ANSWER)
    return bool(found) and normalise(said) in {normalise(answer) for answer in accepted}


def stands_in(text: str, accepted: Iterable[str]) -> bool:
    """Whether one of the answers stands in a text, as whole words."""
    text = normalise(text)
    return any(re.search(rf"(?<!\w){re.escape(normalise(answer))}(?!\w)", text) for answer in accepted)
