"""The calls of a session as a tree, and what may be learnt from its branches (docs/serving.md).

A call is the child of one that had ended before it was asked if its prompt begins with that one's prompt and answer,
token for token:

    user ─ call 0 ─ tool ─ call 1 ─ tool ─ call 3      call 2 asks again what call 1 was asked: its sibling
                       └── call 2                      call 4 begins with no earlier call: another root
    user ─ call 4

Calls stand in the order in which they ended, so that a parent comes before its children.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ling_jax.rl.trajectory import Trajectory

CUT = "abort"  # how an answer ended that its client, or an update of the weights, has cut off
TAIL = 8  # last tokens of a context by which calls are looked up, before all its tokens are compared


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A prompt and the answer to it, as the engine drew it; at least one token."""

    prompt: np.ndarray  # [p] int32
    drawn: np.ndarray  # [n] int32
    logps: np.ndarray  # [n] float32
    runs: Sequence[tuple[int, int]]  # (weight version, tokens) of the answer
    finish_reason: str
    known: int  # calls of its session that had ended when it was asked
    messages: Sequence[dict[str, Any]] = ()  # of a chat, the answer at the end
    chat: Any = None  # what later calls of the conversation go on from

    @property
    def context(self) -> np.ndarray:
        """Prompt and answer."""
        return np.concatenate([self.prompt, self.drawn])

    @property
    def size(self) -> int:
        """Bytes that it keeps, roughly: token ids, log-probs and texts."""
        return 4 * len(self.prompt) + 16 * len(self.drawn) + (0 if self.chat is None else self.chat.size)


def parents(calls: Sequence[Call]) -> list[int | None]:
    """The number of each call's parent, None of a root: of all calls that it knew, and that its prompt goes on from,
    that with the longest context, and of these the last."""
    found: list[int | None] = []
    ends: dict[int, dict[bytes, list[int]]] = {}  # length of a context -> its last tokens -> calls
    for number, call in enumerate(calls):
        lengths = sorted((length for length in ends if length <= len(call.prompt)), reverse=True)
        tails = ((length, call.prompt[max(0, length - TAIL) : length].tobytes()) for length in lengths)
        alike = (other for length, tail in tails for other in reversed(ends[length].get(tail, ())))
        found.append(next((other for other in alike if other < call.known and _goes_on(call, calls[other])), None))
        context = call.context
        ends.setdefault(len(context), {}).setdefault(context[-TAIL:].tobytes(), []).append(number)
    return found


def _goes_on(call: Call, other: Call) -> bool:
    """Whether the prompt of a call begins with the prompt and the answer of another."""
    return np.array_equal(call.prompt[: len(other.prompt) + len(other.drawn)], other.context)


def chains(calls: Sequence[Call]) -> list[list[int]]:
    """The way from a root to each call without a child, in the order of these calls."""
    above = parents(calls)
    return [_chain(above, number) for number in range(len(calls)) if number not in above]


def main_chain(calls: Sequence[Call]) -> list[int]:
    """The way from a root to the last answer that was not cut off; [] where there is none."""
    whole = [number for number, call in enumerate(calls) if call.finish_reason != CUT]
    return _chain(parents(calls), whole[-1]) if whole else []


def chosen(calls: Sequence[Call], samples: str, branches: str) -> list[list[int]]:
    """The calls of each sample: "concat" makes one of each chain, "individual" one of each call; of the "main" chain
    alone, or of "all"."""
    if samples == "individual":
        return [[number] for number in (main_chain(calls) if branches == "main" else range(len(calls)))]
    return [chain for chain in ([main_chain(calls)] if branches == "main" else chains(calls)) if chain]


def sample(calls: Sequence[Call], chain: Sequence[int], name: str) -> Trajectory:
    """The calls of a chain as one trajectory: what was drawn are its turns, what was read between them is masked.

    Where tokens were read between two answers, their version is that of the later one's first token. Raises ValueError
    where versions fall from one call to the next.
    """
    first = calls[chain[0]]
    trajectory = Trajectory(name, first.prompt.tolist())
    for number in chain:
        call = calls[number]
        read = call.prompt[len(trajectory.prompt_ids) + len(trajectory) :]
        trajectory.append_observation(read.tolist(), call.runs[0][0])
        start = 0
        for version, count in call.runs:
            stop = start + count
            trajectory.append_generation(call.drawn[start:stop].tolist(), call.logps[start:stop], version)
            start = stop
    return trajectory


def _chain(above: Sequence[int | None], number: int | None) -> list[int]:
    chain: list[int] = []
    while number is not None:
        chain.append(number)
        number = above[number]
    return chain[::-1]
