"""The calls of a session as a tree, and what may be learnt from its branches (docs/serving.md).

A call is the child of one that had ended before it was asked if its prompt begins with that one's prompt and answer,
token for token:

    user ─ call 0 ─ tool ─ call 1 ─ tool ─ call 3      call 2 asks again what call 1 was asked: its sibling
                       └── call 2                      call 4 goes on from no earlier call: another root
    user ─ call 4

Calls stand in the order in which they ended, so that a parent comes before its children.
"""

import bisect
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ling_jax.rl.trajectory import Trajectory

CUT = "abort"  # how an answer ended that its client, or an update of the weights, has cut off
TAIL = 8  # last tokens of a context by which calls are looked up, before all its tokens are hashed


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
    size: int = 0  # bytes that it keeps, about

    @property
    def context(self) -> np.ndarray:
        """Prompt and answer."""
        return np.concatenate([self.prompt, self.drawn])


def parents(calls: Sequence[Call]) -> list[int | None]:
    """The number of each call's parent, None of a root: of all calls that had ended when it was asked, and that its
    prompt goes on from, that with the longest context, and of these the last."""
    found: list[int | None] = []
    lengths: list[int] = []  # of contexts, each once, in order
    ends: dict[tuple[int, bytes], dict[bytes, list[int]]] = {}  # length, last tokens -> digest of all -> calls
    for number, call in enumerate(calls):
        shorter = lengths[: bisect.bisect_right(lengths, len(call.prompt))]
        alike = ((length, ends.get((length, _tail(call.prompt, length)))) for length in reversed(shorter))
        same = (calls_.get(_digest(call.prompt[:length]), ()) for length, calls_ in alike if calls_)
        found.append(next((other for others in same for other in reversed(others) if other < call.known), None))
        context = call.context
        length = len(context)
        if (place := bisect.bisect_left(lengths, length)) == len(lengths) or lengths[place] != length:
            lengths.insert(place, length)
        ends.setdefault((length, _tail(context, length)), {}).setdefault(_digest(context), []).append(number)
    return found


def _tail(tokens: np.ndarray, length: int) -> bytes:
    return tokens[max(0, length - TAIL) : length].tobytes()


def _digest(tokens: np.ndarray) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


def branch_count(calls: Sequence[Call]) -> int:
    """Calls without a child."""
    return len(calls) - len(set(parents(calls)) - {None})


def chains(calls: Sequence[Call]) -> list[list[int]]:
    """The way from a root to each call without a child, in the order of these calls."""
    above = parents(calls)
    inner = set(above)
    return [_chain(above, number) for number in range(len(calls)) if number not in inner]


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
