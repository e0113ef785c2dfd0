"""Texts instead of tokens: stop strings, and what may be shown while it is being written."""

import dataclasses
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from ling_jax.rollout.generate import Generator, Sampled


@dataclasses.dataclass(frozen=True)
class Completion:
    text: str  # without end token and stop string; other special tokens are their names
    tokens: list[int]
    logps: list[float]
    ended: str  # "": not yet; "end" token, "stop" string or "length"


def complete(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    **sampling,
) -> Iterator[list[Completion]]:
    """`Generator.__call__` as texts that only grow: half a character and what may become a stop string wait."""
    cut = lambda tokens: _first_stop(_text(tokenizer, tokens), stop)  # noqa: E731
    stopped = lambda row, tokens: cut(tokens) is not None  # noqa: E731
    pieces = generator(prompts, max_new_tokens=max_new_tokens, stopped=stopped if stop else _never, **sampling)
    for results in pieces:
        yield [_completion(result, tokenizer, generator.end_ids, stop) for result in results]


def complete_all(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    batch_size: int,
    **sampling,
) -> Iterator[list[Completion]]:
    """Batches of whole answers to the prompts, in order."""
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        *_, done = complete(generator, tokenizer, prompts[part], seeds=seeds[part], **sampling)
        yield done


def _never(row: int, tokens: list[int]) -> bool:
    del row, tokens
    return False


def _completion(result: Sampled, tokenizer: Tokenizer, end_ids, stop: Sequence[str]) -> Completion:
    ends = bool(result.tokens) and result.tokens[-1] in end_ids
    text = _text(tokenizer, result.tokens[: -1 if ends else None])
    at = _first_stop(text, stop)
    if at is not None:
        text = text[:at]
    elif not result.done:
        text = _settled(text, stop)
    ended = "" if not result.done else "stop" if at is not None else "end" if ends else "length"
    return Completion(text, result.tokens, result.logps, ended)


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """As it was written: a special token in it, such as <think>, is its name."""
    return tokenizer.decode(tokens, skip_special_tokens=False)


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found, default=None)


def _settled(text: str, stop: Sequence[str]) -> str:
    """The text without a last character that is still incomplete, and without an end that may begin a stop string."""
    text = text.rstrip("\ufffd")
    longest = max((size for s in stop for size in range(1, len(s)) if text.endswith(s[:size])), default=0)
    return text[: len(text) - longest]
