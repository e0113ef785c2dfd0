"""Questions to a judge model, and the forms of its replies.

A form parses a reply strictly: what is not in the form is an error, never a guess. `following` lists what may come
next as texts of which none begins another, so that an engine can be held to the form.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from ling_jax.rl.judge_config import Rubric

TOP_SCORE = 9  # our choice: scores of one digit, which is one token
MAX_ITEMS = 20  # our choice: of an instruction


class Form(Protocol):
    def following(self, pieces: Sequence[str]) -> tuple[str, ...] | None:
        """What may come after these pieces; () where the reply is whole, None where any text may come."""

    def parse(self, reply: str) -> Any:
        """What the reply says. Raises ValueError where it is not in the form."""


class Question(NamedTuple):
    text: str
    form: Form


class Scores(NamedTuple):
    """A line `name: merit 7 / defect 1` for each rubric, in any order. Parsed: [(merit, defect), …] in [0, 1]."""

    names: tuple[str, ...]

    def following(self, pieces: Sequence[str]) -> tuple[str, ...]:
        line, part = divmod(len(pieces), 4)
        if line == len(self.names):
            return ()
        start = "\n" if line else ""
        digits = tuple(map(str, range(TOP_SCORE + 1)))
        return ((f"{start}{self.names[line]}: merit ",), digits, (" / defect ",), digits)[part]

    def parse(self, reply: str) -> list[tuple[float, float]]:
        found = {}
        for line in filter(None, map(str.strip, reply.splitlines())):
            match = re.fullmatch(r"(\w+): merit ([0-9]) / defect ([0-9])", line)
            if not match or match[1] not in self.names or match[1] in found:
                raise ValueError(f"the line {line[:80]!r}; expected once for each rubric: name: merit 0-9 / defect 0-9")
            found[match[1]] = int(match[2]) / TOP_SCORE, int(match[3]) / TOP_SCORE
        if missing := [name for name in self.names if name not in found]:
            raise ValueError(f"no line of rubric {missing[0]!r}")
        return [found[name] for name in self.names]


class Numbers(NamedTuple):
    """`redundant: 2, 5.` or `redundant: none`, rising numbers from 1 to `count`. Parsed: a list of flags."""

    count: int

    def following(self, pieces: Sequence[str]) -> tuple[str, ...]:
        if not pieces:
            return ("redundant: ",)
        last = 0 if len(pieces) == 1 else int(re.sub(r"\D", "", pieces[-1]) or self.count)
        if len(pieces) > 1 and not pieces[-1].endswith(", "):
            return ()
        none = ("none",) if len(pieces) == 1 else ()
        numbers = range(last + 1, self.count + 1)
        return none + tuple(f"{i}{end}" for i in numbers for end in (", ", ".") if end == "." or i < self.count)

    def parse(self, reply: str) -> list[bool]:
        match = re.fullmatch(r"redundant: (none|[1-9][0-9]*(?:, [1-9][0-9]*)*)\.?", reply.strip())
        numbers = [] if not match or match[1] == "none" else [int(number) for number in match[1].split(", ")]
        rising = all(a < b for a, b in zip([0, *numbers], [*numbers, self.count + 1], strict=True))
        if not match or not rising:
            raise ValueError(
                f"{reply.strip()[:80]!r}; expected 'redundant: none' or 'redundant: 2, 5', rising numbers up to "
                f"{self.count}"
            )
        return [i + 1 in numbers for i in range(self.count)]


class Lines(NamedTuple):
    """A line `- item` for each item, 1 to 20. Parsed: the items."""

    def following(self, pieces: Sequence[str]) -> None:
        return None

    def parse(self, reply: str) -> list[str]:
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        if not 0 < len(lines) <= MAX_ITEMS or not all(re.fullmatch(r"- \S.*", line) for line in lines):
            raise ValueError(f"{reply.strip()[:80]!r}; expected 1 to {MAX_ITEMS} lines, each '- item'")
        return [" ".join(line[2:].split()) for line in lines]


def ask_scores(rubrics: Sequence[Rubric], prompt: str, answer: str) -> Question:
    """Merit and defect of an answer by each rubric."""
    names = tuple(rubric.name for rubric in rubrics)
    lines = "\n".join(f"{rubric.name}: {rubric.question}" for rubric in rubrics)
    text = (
        f"Judge the answer to the prompt by each rubric. Its merit is 0 where it is absent and {TOP_SCORE} where "
        f"nothing could be better. Its defect is 0 where there is none and {TOP_SCORE} where it spoils the answer.\n\n"
        f"{_quoted('prompt', prompt)}\n{_quoted('answer', answer)}\nRubrics:\n{lines}\n\n"
        f"Reply with one line for each rubric and nothing else, in this form:\n{names[0]}: merit 7 / defect 1"
    )
    return Question(text, Scores(names))


def ask_redundant(prompt: str, sentences: Sequence[str]) -> Question:
    """Which sentences of an answer repeat what it has said, or go round in circles (Ling 2.6 report §3.1.2)."""
    numbered = "\n".join(f"[{i}] {' '.join(sentence.split())}" for i, sentence in enumerate(sentences, 1))
    text = (
        "Which sentences of the answer are redundant: they repeat what it has already said, or go round in circles?\n\n"
        f"{_quoted('prompt', prompt)}\n{_quoted('answer', numbered)}\n"
        "Reply with the numbers of these sentences and nothing else, in this form:\nredundant: 2, 5\n"
        "or, if there are none:\nredundant: none"
    )
    return Question(text, Numbers(len(sentences)))


def ask_items(instruction: str) -> Question:
    """The demands of an instruction, one by one (report §3.1.3: a verification agent splits it into item rules)."""
    text = (
        "Split the instruction into its separate demands on the answer, each of which can be checked by itself.\n\n"
        f"{_quoted('instruction', instruction)}\n"
        "Reply with one line for each demand and nothing else, in this form:\n- at most 50 words"
    )
    return Question(text, Lines())


def _quoted(name: str, text: str) -> str:
    """The text between tags with its hash, so that no text can close its own quotation."""
    mark = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"<{name} {mark}>\n{text}\n</{name} {mark}>\n"
