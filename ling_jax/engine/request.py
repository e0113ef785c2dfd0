"""What goes into the engine and comes out of it: plain frozen values (docs/engine.md)."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np

MAX_STOP_IDS = 64  # our choice: chat models have one to three
MOST_TOKENS = 2**30  # sums of two are int32
LARGEST = float(np.finfo(np.float32).max)

IN_FLIGHT = ("recompute", "keep", "drain")

Id = int | str


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how it goes on.

    Its tokens depend on the weights, the context and the seed alone: token i has the Gumbel noise of
    fold_in(key(seed), i). Log-probs are the model's own: temperature 1, nothing cut off, no penalty or bias.
    """

    id: Id
    tokens: Sequence[int]
    max_new_tokens: int
    _: dataclasses.KW_ONLY
    seed: int
    min_new_tokens: int = 0  # before them no stop token is drawn
    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # of tokens in the context: a positive logit is divided by it, others multiplied
    logit_bias: Mapping[int, float] | None = None  # added to the logits of these tokens
    # The tokens of the turn so far to [W] bool, or [ceil(W / 32)] uint32 with the first token in the lowest bit: which
    # may come next. Asked before every token.
    allowed: Callable[[Sequence[int]], np.ndarray] | None = None
    stop_ids: Sequence[int] = ()  # tokens that end the turn; they belong to it
    top_logprobs: int = 0  # the likeliest tokens that each event lists beside the drawn ones
    prompt_logprobs: bool = False  # the log-probs of the prompt's own tokens, too
    record_experts: bool = False
    priority: int = 0  # lower goes first; of equal ones the oldest

    @property
    def adjusted(self) -> bool:
        """Whether the host looks at the logits before each token; such a request draws one token a step."""
        return bool(self.repetition_penalty != 1 or self.logit_bias or self.allowed or self.top_logprobs)


@dataclasses.dataclass(frozen=True)
class Event:
    """What a step gave a request."""

    id: Id
    first: int  # number of its first token here, of all that the request drew
    tokens: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()  # float32 values
    version: int = -1  # of the weights
    finish_reason: str | None = None  # None: it goes on; "stop", "length", "cancelled" or "error"
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()  # for each token ((token, log-prob), …)
    prompt_logps: tuple[float, ...] = ()  # of the prompt's tokens from the second on, in the first event
    cached_tokens: int = 0  # of a turn's context that did not have to be read, in the turn's first event
    experts: np.ndarray | None = None  # [n, L, k] uint16 of the next n tokens of the context, which the step read
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A request that left the engine between two steps. `resume` reads its context again and goes on.

    With `row_tile` its tokens and log-probs are those of a request that never left.
    """

    request: Request
    tokens: tuple[int, ...]  # the whole context
    turn: int  # tokens that were drawn before this turn
    drawn: int  # tokens that were drawn
    limit: int  # tokens that may have been drawn at the end of this turn
    recorded: int  # tokens whose experts were given out
    prompt_logps: tuple[float, ...]  # all, where they were given out; else none
    finish_reason: str | None
    fingerprint: str  # of the engine


def request_error(request: Request, vocab_size: int, max_tokens: int) -> str:
    """Why a request cannot be served; "" where it can. `max_tokens` is the longest context."""
    try:
        return _problem(request, vocab_size, max_tokens)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"a value has another type than expected: {error}"


def _problem(r: Request, vocab_size: int, max_tokens: int) -> str:
    if problem := context_error(r.tokens, r.max_new_tokens, 0, vocab_size, max_tokens):
        return problem
    if r.max_new_tokens == 0 and not r.prompt_logprobs:
        return "max_new_tokens is 0 and prompt_logprobs is False: there is nothing to do"
    for name in ("seed", "top_k", "top_logprobs", "min_new_tokens", "priority"):
        operator.index(getattr(r, name))
    ranges: dict[str, tuple[float, float]] = {
        "seed": (0, 2**32 - 1),
        "temperature": (0, LARGEST),
        "repetition_penalty": (1 / LARGEST, LARGEST),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "top_k": (0, MOST_TOKENS),
        "top_logprobs": (0, vocab_size),
        "min_new_tokens": (0, MOST_TOKENS),
    }
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(r, name)) <= high:
            return f"{name} is {value}; expected {low:.9g} to {high:.9g}"
    if len(r.stop_ids) > MAX_STOP_IDS:
        return f"{len(r.stop_ids)} stop_ids; expected at most {MAX_STOP_IDS}"
    for name, tokens in (("stop_ids", r.stop_ids), ("logit_bias", r.logit_bias or ())):
        if strange := [token for token in tokens if not 0 <= operator.index(token) < vocab_size]:
            return f"{name} has token {strange[0]}; the vocabulary has {vocab_size}"
    if r.logit_bias and not all(abs(bias) <= LARGEST for bias in r.logit_bias.values()):
        return "logit_bias has a value that is not a finite float32; `allowed` forbids tokens"
    if r.allowed is not None and not callable(r.allowed):
        return f"allowed is {r.allowed!r}; expected a function of the turn's tokens"
    return ""


def context_error(tokens: Sequence[int], max_new_tokens: int, length: int, vocab_size: int, max_tokens: int) -> str:
    """Why `tokens` and `max_new_tokens` new ones cannot follow `length` tokens of context; "" where they can."""
    try:
        new, count = np.asarray(tokens), operator.index(max_new_tokens)
    except (TypeError, ValueError) as error:
        return f"a value has another type than expected: {error}"
    if not new.size:
        return "there are no tokens; give at least one"
    if new.ndim != 1 or new.dtype.kind not in "iu":
        return f"tokens are {new.dtype} {new.shape}; expected a list of integers"
    worst = low if (low := new.min()) < 0 else new.max()
    if not 0 <= worst < vocab_size:
        return f"token {worst} is not in the vocabulary of {vocab_size}"
    if count < 0:
        return f"max_new_tokens is {count}; expected 0 or more"
    if length + new.size + count > max_tokens:
        return (
            f"{length + new.size} tokens of context and {count} new ones; the engine has room for "
            f"{max_tokens}: shorten the prompt, lower max_new_tokens or give the engine more memory_bytes"
        )
    return ""


def check_in_flight(in_flight: str) -> None:
    """Raises ValueError on what is none of `IN_FLIGHT`."""
    if in_flight not in IN_FLIGHT:
        raise ValueError(f"in_flight is {in_flight!r}; expected one of {', '.join(IN_FLIGHT)}")
