"""A needle in a haystack: a fact, the code of a thing, in a long text, asked for at its end.

The text is sentences without numbers, drawn from 4,096, and the code of one other thing, so that neither a copy of the
text nor its only number is an answer. Source of the task: Kamradt 2023, "Needle in a Haystack"; keys with numbers as in
RULER (Hsieh et al. 2024).
"""

import functools
import itertools
import random
from typing import Any

from ling_jax.envs.base import Action, StepResult, Task, draw_task
from ling_jax.envs.pure import PureSession
from ling_jax.envs.reasoning.answers import NUMBER, is_code
from ling_jax.envs.reasoning.single_turn import State
from ling_jax.envs.reasoning.single_turn import reset as reset

NAME = "needle"
DIFFICULTIES = range(1, 4097)  # sentences around the two codes; our choice: some 32,000 tokens at most
ANY_LENGTH = range(1, 1 << 24)  # sentences of `needle_task`
MAX_TOKENS = 4096  # our choice: rollout.max_tokens sets less

_WHO = ("miller", "baker", "sailor", "tailor", "farmer", "weaver", "mason", "potter")
_WHO += ("painter", "gardener", "cooper", "smith", "singer", "hunter", "brewer", "clerk")
_DOES = ("mends", "paints", "sells", "moves", "finds", "draws", "cleans", "hides")
_DOES += ("shows", "counts", "lifts", "wants", "keeps", "sees", "brings", "leaves")
_WHAT = ("gate", "boat", "wheel", "basket", "ladder", "barrel", "window", "blanket")
_WHAT += ("hammer", "bottle", "kettle", "bench", "saddle", "rope", "candle", "mirror")
SENTENCES = tuple(f"The {who} {does} a {what}." for who, does, what in itertools.product(_WHO, _DOES, _WHAT))
_COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
_THINGS = ("lamp", "chest", "door", "drawer", "locker", "trunk", "vault", "cabinet")
NAMES = tuple(f"{colour} {thing}" for colour, thing in itertools.product(_COLOURS, _THINGS))
CODES = range(10_000, 100_000)


def make_task(seed: int, difficulty: int) -> Task:
    """`difficulty` sentences with the codes between any two of them, before the first or behind the last."""
    return draw_task(NAME, seed, difficulty, DIFFICULTIES, _draw)


def needle_task(seed: int, sentences: int, depth: float) -> Task:
    """A task of any length; the code that is asked for stands behind a share `depth`, from 0 to 1, of the sentences."""
    return draw_task(NAME, seed, sentences, ANY_LENGTH, functools.partial(_draw, depth=depth))


def step(state: State, action: Action) -> tuple[State, StepResult]:
    """Outcome 1 where the answer behind the reasoning has one number and that is the code."""
    if state.ended:
        raise ValueError(f"task {state.task.id}: the episode has ended; reset it")
    error = None if NUMBER.search(action.content) else "no answer: expected the code"
    rewards = {"outcome": float(is_code(action.content, state.task.hidden["answer"]))}
    return State(state.task, True), StepResult((), rewards, True, False, error)


def session() -> PureSession:
    """An episode of one turn."""
    return PureSession(reset, step)


def solution(task: Task) -> tuple[str]:
    """The code alone."""
    return (task.hidden["answer"],)


def _draw(rng: random.Random, difficulty: int, depth: float | None = None) -> dict[str, Any]:
    names, codes = rng.sample(NAMES, 2), rng.sample(CODES, 2)
    facts = [f"The code of the {name} is {code}." for name, code in zip(names, codes, strict=True)]
    place, other = (rng.randint(0, difficulty) for _ in range(2))
    place = place if depth is None else round(depth * difficulty)
    text = rng.choices(SENTENCES, k=difficulty)
    text.insert(place, facts[0])
    text.insert(other + (other >= place), facts[1])
    question = f"What is the code of the {names[0]}? Answer with the code alone."
    return {
        "messages": [{"role": "user", "content": f"{' '.join(text)}\n{question}"}],
        "hidden": {"answer": str(codes[0])},
        "max_tokens": MAX_TOKENS,
        "max_turns": 1,
    }
