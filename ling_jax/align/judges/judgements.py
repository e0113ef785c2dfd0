"""Questions that are asked once: replies by the hash of what was asked, in a file of the run, within a budget."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from ling_jax.align.judges.forms import Question
from ling_jax.data.json_lines import read_objects
from ling_jax.partials import write_errors
from ling_jax.paths import append, as_path

FILE_NAME = "judgements.jsonl"
MAX_LOST = 3  # our choice: a run ends when the judge answers nothing so many times in a row


class Reply(NamedTuple):
    text: str
    error: str = ""  # why there is no text


Ask = Callable[[Sequence[Question]], list[Reply]]


class Verdict(NamedTuple):
    """The parsed reply to a question, or why there is none."""

    value: Any  # as its form parses it; None with an error
    error: str = ""


class Judgements:
    """The judge model of a run and all that it said; `ask` may be called again and again.

    A question that was asked has its reply for good, a failure too, so that verdicts are a function of the question
    and a replay of the run has the same ones. `record` is the file of this run, which goes on growing, or None.
    """

    def __init__(
        self,
        ask: Ask | None,
        *,
        model: str,
        budget: int,
        record: epath.PathLike | None = None,
        known: dict[str, Reply] | None = None,
    ):
        """With `ask` None nothing is asked: `known` replies are all there are."""
        self._ask, self._model, self._budget = ask, model, budget
        self._record, self._known = record, known or {}
        self._replies: dict[str, Reply] | None = None  # of this run; read when first needed
        self._asked = self._lost = 0

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        """Verdicts in the order of the questions.

        Raises OSError where nothing was answered three times in a row: without a judge nothing is learnt.
        """
        if not questions:
            return []
        if self._replies is None:
            self._read()
        keys = [self._key(question) for question in questions]
        self._reply_to({key: q for key, q in zip(keys, questions, strict=True) if key not in self._replies})
        verdicts = [_parsed(q, self._replies[key]) for key, q in zip(keys, questions, strict=True)]
        self._lost = self._lost + 1 if all(verdict.error for verdict in verdicts) else 0
        if self._lost == MAX_LOST:
            raise OSError(
                f"the judge {self._model!r} answered none of its last questions, {MAX_LOST} times in a row; the last "
                f"error: {verdicts[-1].error}"
            )
        return verdicts

    def _reply_to(self, new: dict[str, Question]) -> None:
        replies = {key: self._known[key] for key in new if key in self._known}
        asked = [key for key in new if key not in replies]
        if self._ask is None:
            replies |= dict.fromkeys(asked, Reply("", "the judgements that are replayed do not have it"))
            asked = []
        within = asked[: max(0, self._budget - self._asked)]
        if within:
            replies |= zip(within, self._ask([new[key] for key in within]), strict=True)
        refused = f"the budget of {self._budget} questions is used up (judge.budget)"
        replies |= dict.fromkeys(asked[len(within) :], Reply("", refused))
        self._asked += len(within)
        self._replies |= {key: replies[key] for key in new}
        self._write({key: replies[key] for key in new}, within)

    def _write(self, replies: dict[str, Reply], asked: Sequence[str]) -> None:
        if self._record is None or not replies:
            return
        lines = [{"key": key, **reply._asdict(), "asked": key in asked} for key, reply in replies.items()]
        with write_errors(self._record):
            append(self._record, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _read(self) -> None:
        self._replies = {}
        if self._record is None or not as_path(self._record).exists():
            return
        _drop_half_line(self._record)
        for _, line in read_objects(self._record):
            self._replies[line["key"]] = Reply(line["text"], line["error"])
            self._asked += line["asked"]

    def _key(self, question: Question) -> str:
        asked = json.dumps([self._model, question.text])
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def read_judgements(path: str, *, failures: bool) -> dict[str, Reply]:
    """The replies of a run's file; without `failures` those that have a text.

    Raises FileNotFoundError, and ValueError with the line that is no judgement.
    """
    if not as_path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name the {FILE_NAME} of a run that had a judge model")
    found = {}
    for where, line in read_objects(path, "a judgement"):
        if not all(isinstance(line.get(name), str) for name in ("key", "text", "error")):
            raise ValueError(f"{where} is no judgement; expected an object with key, text, error and asked")
        if failures or not line["error"]:
            found[line["key"]] = Reply(line["text"], line["error"])
    return found


def _parsed(question: Question, reply: Reply) -> Verdict:
    if reply.error:
        return Verdict(None, reply.error)
    try:
        return Verdict(question.form.parse(reply.text))
    except ValueError as error:
        return Verdict(None, f"the judge's reply has {error}")


def _drop_half_line(path: epath.PathLike) -> None:
    """Of a run that was killed while it wrote."""
    path = as_path(path)
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
