"""Questions that are asked once: replies by the hash of what was asked, in a file of the run, within a budget."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from ling_jax.align.judges.forms import Question
from ling_jax.data.text_files import open_decompressed
from ling_jax.files import parse_object
from ling_jax.partials import write_errors
from ling_jax.paths import append, as_path

FILE_NAME = "judgements.jsonl"
MAX_LOST = 3  # our choice: a run ends when the judge answers nothing so many times in a row


class Reply(NamedTuple):
    text: str
    error: str = ""  # why there is no text


Ask = Callable[[Sequence[Question]], list[Reply]]


class Judgement(NamedTuple):
    """A line of the file."""

    key: str  # the hash of model and question
    text: str
    error: str
    asked: bool  # whether the model was asked, at the cost of the budget
    step: int | None = None  # the checkpoint of a model that is a workdir

    @property
    def reply(self) -> Reply:
        return Reply(self.text, self.error)


class Verdict(NamedTuple):
    """The parsed reply to a question, or why there is none."""

    value: Any  # as its form parses it; None with an error
    error: str = ""


class Judgements:
    """The judge model of a run and all that it said; `ask` may be called again and again.

    A question that was asked has its reply for good, a failure too, so that verdicts are a function of the question
    and a replay of the run has the same ones. `record` is the file of this run, which goes on growing, or None. It
    gets a failure when `accept` says that it has entered a batch: a run that ends before asks that question again.
    """

    def __init__(
        self,
        ask: Ask | None,
        *,
        model: str,
        budget: int,
        step: int | None = None,
        record: epath.PathLike | None = None,
        known: Mapping[str, Judgement] | None = None,
    ):
        """With `ask` None nothing is asked: `known` replies are all there are. `step` as in `Judgement`."""
        self._ask, self._model, self._step, self._budget = ask, model, step, budget
        self._record, self._known = record, known or {}
        self._replies: dict[str, Reply] | None = None  # of this run; read when first needed
        self._failures: list[Judgement] = []  # since `accept` was called
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

    def accept(self) -> None:
        """Writes the failures since the last call: they are part of the run."""
        self._write(self._failures)
        self._failures = []

    def _reply_to(self, new: dict[str, Question]) -> None:
        replies = {key: self._known[key].reply for key in new if key in self._known}
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
        failed = {key for key, question in new.items() if _parsed(question, replies[key]).error}
        steps = {key: self._known[key].step if key in self._known else self._step for key in new}
        lines = [Judgement(key, *replies[key], key in within, steps[key]) for key in new]
        self._write([line for line in lines if line.key not in failed])
        self._failures += [line for line in lines if line.key in failed]

    def _write(self, lines: Sequence[Judgement]) -> None:
        if self._record is None or not lines:
            return
        with write_errors(self._record):
            append(self._record, "".join(json.dumps(line._asdict()) + "\n" for line in lines).encode())

    def _read(self) -> None:
        self._replies = {}
        if self._record is None or not as_path(self._record).exists():
            return
        _drop_half_line(self._record)
        lines = read_judgements(self._record)
        self._replies = {line.key: line.reply for line in lines}
        self._asked = sum(line.asked for line in lines)

    def _key(self, question: Question) -> str:
        asked = json.dumps([self._model, question.text])
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def read_judgements(path: epath.PathLike) -> list[Judgement]:
    """The lines of a run's file; a half last line, of a run that was killed while it wrote, is left out.

    Raises FileNotFoundError, and ValueError with the line that is no judgement.
    """
    if not as_path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; name the {FILE_NAME} of a run that had a judge model")
    with open_decompressed(as_path(path)) as file:
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(file, 1)]
    whole = [(where, line) for where, line in lines if line.endswith(b"\n") and line.strip()]
    return [_judgement(parse_object(line, where, "a judgement"), where) for where, line in whole]


def _judgement(record: dict[str, Any], where: str) -> Judgement:
    texts = all(isinstance(record.get(name), str) for name in ("key", "text", "error"))
    if not texts or not isinstance(record.get("asked"), bool):
        raise ValueError(f"{where} is no judgement; expected an object with key, text, error and asked")
    return Judgement(**{name: record[name] for name in Judgement._fields if name in record})


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
