"""Functions to write, from a description and examples; hidden calls decide.

Difficulty 1 is short enough for a million parameters that read bytes: `times 3, plus 2; f(4)=14` ->
`def f(x): return x*3+2`. Then come steps on numbers (2), on lists (3), on text and words (4), on all of these (5), and
an algorithm among other steps (6).
"""

import hashlib
import json
import random
import re
import textwrap
from typing import Any

from ling_jax.envs.base import Action, InfraError, StepResult, Task, draw_task
from ling_jax.envs.coding import integrity, pieces
from ling_jax.envs.coding.boxes import Boxes
from ling_jax.envs.coding.check import check_function_task
from ling_jax.envs.coding.hard_pieces import ALGORITHMS
from ling_jax.envs.coding.memory import Memory
from ling_jax.envs.coding.mutations import mutations
from ling_jax.envs.coding.pieces import Piece
from ling_jax.envs.coding.verdict import CALL_LIMITS, Case, Verdict, judge_function
from ling_jax.sandbox import SandboxError

NAME = "functions"
SANDBOXED = True
DIFFICULTIES = range(1, 7)
MAX_TOKENS = {1: 64, 2: 192, 3: 256, 4: 384, 5: 512, 6: 1024}  # our choice: in bytes some two or three references
EXAMPLES, HIDDEN = 3, 10  # our choice: calls that the prompt shows, and calls that decide
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
SHORT = (  # words and Python of difficulty 1
    ("times {a}, plus {b}", "x*{a}+{b}"),
    ("times {a}, minus {b}", "x*{a}-{b}"),
    ("plus {b}, times {a}", "(x+{b})*{a}"),
    ("minus {b}, times {a}", "(x-{b})*{a}"),
    ("times {a}, from {b}", "{b}-x*{a}"),
)
SHORT_A, SHORT_B = (2, 25), (1, 99)  # our choice: some 12,000 functions, so that held-out ones fill an evaluation
STEPS = {  # by difficulty: how many, of which
    2: (3, pieces.NUMBERS),
    3: (4, (*pieces.LISTS, *pieces.FOLDS, *pieces.NUMBERS)),
    4: (4, (*pieces.TEXTS, *pieces.WORDS, *pieces.CHANGES[:4])),
    5: (6, (*pieces.TEXTS, *pieces.WORDS, *pieces.CHANGES, *pieces.LISTS, *pieces.FOLDS, *pieces.NUMBERS)),
}
STARTS = {2: ("int",), 3: ("ints",), 4: ("text", "words"), 5: ("text", "words")}
COMMON = (*pieces.NUMBERS, *pieces.LISTS, *pieces.FOLDS, *pieces.TEXTS, *pieces.WORDS, *pieces.CHANGES)
Step = tuple[str, str]  # words, code
JUDGED = Memory(8_192)  # by the digest of source, name and calls; our choice


def make_task(seed: int, difficulty: int) -> Task:
    """A function f of one argument."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def session() -> "FunctionSession":
    """An episode of one turn."""
    return FunctionSession()


def solution(task: Task, *, error_rate: float = 0.0, seed: int = 0) -> tuple[str]:
    """The reference; each line of it has a mistake with probability `error_rate`."""
    rng, source = random.Random(f"{task.id}/{seed}"), task.hidden["solution"]
    return (_with_mistakes(rng, source, error_rate) if error_rate else source,)


def null_solution(task: Task) -> tuple[str]:
    """No word."""
    del task
    return ("",)


def copy_solution(task: Task) -> tuple[str]:
    """The prompt."""
    return (task.prompt,)


class FunctionSession:
    """A session of one turn, whose reply is the function: between ``` marks, or alone.

    Rewards: "outcome" (1 where all hidden calls return what they should), "tests" (the share of them) and "suspicious"
    (how many kinds of suspicious acts the program speaks of, `integrity`).
    """

    replayable = True

    def __init__(self):
        self._boxes, self._task, self._ended = Boxes(), None, False

    async def open(self, task: Task, seed: int) -> None:
        """Raises ValueError on a task that is none."""
        del seed
        check_function_task(task)
        self._task = task

    async def step(self, action: Action) -> StepResult:
        """Judges the function; what was judged before does not run again. Raises InfraError where the sandbox fails."""
        if self._ended:
            raise ValueError(f"task {self._task.id}: the episode has ended")
        self._ended = True
        source, hidden = source_of(action.content), self._task.hidden
        if not source.strip():
            return _result((0.0, 0.0, 0.0), "no function")
        key = hashlib.blake2b(json.dumps([source, hidden["name"], hidden["cases"]]).encode()).digest()
        verdict = JUDGED.verdict(key, lambda: self._judge(source))
        suspicious = float(len(integrity.flags_of_text(source) | set(verdict.flags)))
        return _result((verdict.outcome, verdict.share, suspicious), verdict.detail or None)

    def _judge(self, source: str) -> Verdict:
        hidden = self._task.hidden
        cases = [Case(case["arguments"], case["expected"]) for case in hidden["cases"]]
        box = self._boxes.open({}, CALL_LIMITS)
        try:
            return judge_function(box, source, hidden["name"], cases)
        except SandboxError as error:
            raise InfraError(f"the function was not judged: {error}") from error
        finally:
            self._boxes.discard(box)

    async def close(self) -> None:
        """Ends what runs."""
        self._boxes.close()


def source_of(content: str) -> str:
    """The program in a reply: the last part between ``` marks, or all of it."""
    blocks = FENCE.findall(content)
    return blocks[-1] if blocks else content


def _result(rewards: tuple[float, float, float], error: str | None) -> StepResult:
    return StepResult((), dict(zip(("outcome", "tests", "suspicious"), rewards, strict=True)), True, False, error)


def _draw(rng: random.Random, difficulty: int) -> dict[str, Any]:
    while True:
        kind, words, source = _draw_short(rng) if difficulty == 1 else _draw_steps(rng, difficulty)
        calls = _calls(random.Random(words), kind, source)
        if calls:
            break
    shown, hidden = calls[:EXAMPLES], calls[EXAMPLES:]
    if difficulty == 1:
        prompt = f"{words}; f({shown[0][0]})={shown[0][1]}"
    else:
        examples = "\n".join(f"f({given!r}) == {expected!r}" for given, expected in shown)
        prompt = f"Write a Python function f(x): {words}.\n{examples}"
    return {
        "messages": [{"role": "user", "content": prompt}],
        "hidden": {
            "name": "f",
            "cases": [{"arguments": [given], "expected": expected} for given, expected in hidden],
            "solution": source,
        },
        "max_tokens": MAX_TOKENS[difficulty],
        "max_turns": 1,
    }


def _draw_short(rng: random.Random) -> tuple[str, str, str]:
    """(kind of x, words, source) of difficulty 1."""
    words, code = rng.choice(SHORT)
    numbers = {"a": rng.randint(*SHORT_A), "b": rng.randint(*SHORT_B)}
    return "int", words.format(**numbers), f"def f(x): return {code.format(**numbers)}"


def _draw_steps(rng: random.Random, difficulty: int) -> tuple[str, str, str]:
    if difficulty == 6:
        algorithm = rng.choice(ALGORITHMS)
        steps = [pieces.drawn(rng, algorithm), *_chain(rng, COMMON, algorithm.gives, rng.randint(1, 3))]
        kind = algorithm.takes
        if any(piece.gives == kind for piece in COMMON) and rng.random() < 0.6:
            steps.insert(0, pieces.drawn(rng, rng.choice([p for p in COMMON if p.takes == p.gives == kind])))
    else:
        count, known = STEPS[difficulty]
        kind = rng.choice(STARTS[difficulty])
        steps = _chain(rng, known, kind, count)
    return kind, "; ".join(words for words, _ in steps), _source(steps)


def _chain(rng: random.Random, known: tuple[Piece, ...], kind: str, count: int) -> list[Step]:
    steps, last = [], None
    for _ in range(count):
        last = rng.choice([piece for piece in known if piece.takes == kind and piece is not last])
        steps.append(pieces.drawn(rng, last))
        kind = last.gives
    return steps


def _source(steps: list[Step]) -> str:
    lines = [textwrap.dedent(code).strip("\n") if "\n" in code else f"x = {code}" for _, code in steps]
    return "def f(x):\n" + textwrap.indent("\n".join([*lines, "return x"]), "    ") + "\n"


def _calls(rng: random.Random, kind: str, source: str) -> list[tuple[Any, Any]]:
    """Arguments, each once, with what our own reference returns; [] where the function is too plain to be a task."""
    given = (pieces.value(rng, kind) for _ in range(60))
    distinct = list({repr(value): value for value in given}.values())[: EXAMPLES + HIDDEN]
    space: dict[str, Any] = {}
    exec(source, space)  # our own text, of our own pieces
    calls = [(value, space["f"](value)) for value in distinct]
    values = [repr(result) for _, result in calls]
    plain = max(map(values.count, values)) > len(values) // 2 or all(a == b for a, b in calls)
    return [] if plain or len(calls) < EXAMPLES + HIDDEN // 2 else calls


def _with_mistakes(rng: random.Random, source: str, error_rate: float) -> str:
    """The source with a mistake in each line, with this probability, where a mistake is known for it."""
    by_line: dict[int, list] = {}
    for mutation in mutations(source):
        if "\n" not in source[mutation.start : mutation.stop]:
            by_line.setdefault(source.count("\n", 0, mutation.start), []).append(mutation)
    for line in sorted(by_line, reverse=True):
        if rng.random() < error_rate:
            source = rng.choice(by_line[line]).applied(source)
    return source
