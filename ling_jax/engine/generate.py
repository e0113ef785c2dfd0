"""Prompts to answers, for callers that want all of them and nothing else of the engine."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ling_jax.config import ModelConfig
from ling_jax.engine.engine import EXACT_TILE, Engine
from ling_jax.engine.memory import memory_for
from ling_jax.engine.request import Event, Id, Request, context_error

LEAST_LENGTH = 64  # tokens of the shortest context that an engine is made for, so that programs are shared; our choice


class Answer(NamedTuple):
    """What a request got."""

    tokens: list[int]  # without the prompt; the last may be a stop token
    logps: list[float]  # of each under the model
    finish_reason: str  # "stop" or "length"


def engine_for(
    params: Any, config: ModelConfig, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, slots: int | None = None
) -> Engine:
    """An engine with these weights (version 0) and room for these prompts and `max_new_tokens` more.

    `slots` of them at a time, by default all up to 64. With 64 slots or more it is exact: an answer depends neither on
    the others nor on their number. Raises ValueError that names the prompt before any work: an empty one, tokens out of
    the vocabulary, or more than the model's context.
    """
    check_prompts(config, prompts, max_new_tokens)
    slots = min(len(prompts), EXACT_TILE) if slots is None else slots
    longest = max(LEAST_LENGTH, max(map(len, prompts)) + max_new_tokens)
    room = min(1 << (longest - 1).bit_length(), config.max_length)  # powers of two: few programs for many calls
    engine = Engine(
        config,
        slots=slots,
        memory_bytes=memory_for(config, slots=slots, max_tokens=room),
        row_tile=EXACT_TILE if slots >= EXACT_TILE else None,
    )
    engine.load(params, version=0)
    return engine


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises ValueError where a prompt cannot be answered by a model of this config."""
    if not prompts or max_new_tokens < 1:
        raise ValueError(f"{len(prompts)} prompts and max_new_tokens {max_new_tokens}; at least 1 of both is needed")
    for number, prompt in enumerate(prompts):
        if len(prompt) + max_new_tokens > config.max_length:
            raise ValueError(
                f"prompt {number}: {len(prompt)} tokens and {max_new_tokens} new ones pass the model's context of "
                f"{config.max_length}"
            )
        if error := context_error(prompt, max_new_tokens, 0, config.vocab_size, config.max_length):
            raise ValueError(f"prompt {number}: {error}")


def generate(engine: Engine, requests: Iterable[Request]) -> Iterator[Answer]:
    """The whole answers, in the order of the requests. Raises ValueError where one cannot be served."""
    yield from in_order(_answers(engine, requests))


def _answers(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
    """(number of the request, its answer), in the order in which they end."""
    drawn: dict[int, tuple[list[int], list[float]]] = {}
    for number, event in events_of(engine, requests):
        tokens, logps = drawn.setdefault(number, ([], []))
        tokens += event.tokens
        logps += event.logps
        if event.finish_reason is not None:
            yield number, Answer(*drawn.pop(number), event.finish_reason)


def events_of(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Event]]:
    """(number of the request, event) until all have ended; a request is released before its last event is yielded.

    Requests are taken as slots come free, so that there may be any number. One that the caller releases ends at once,
    and all do where the caller stops. Raises ValueError where one cannot be served.
    """
    numbers: dict[Id, int] = {}
    try:
        yield from _events_of(engine, iter(requests), numbers)
    finally:
        for id in numbers.keys() & engine.ids:
            engine.release(id)


def _events_of(engine: Engine, requests: Iterator[Request], numbers: dict[Id, int]) -> Iterator[tuple[int, Event]]:
    count = 0
    while True:
        for gone in numbers.keys() - engine.ids:
            del numbers[gone]
        while len(numbers) < 2 * engine.plan.slots and (request := next(requests, None)) is not None:
            if error := engine.error_of(request):
                raise ValueError(f"request {request.id!r}: {error}")
            engine.submit(request)
            numbers[request.id] = count
            count += 1
        if not numbers:
            return
        for event in engine.step():
            if event.id in numbers and event.id in engine.ids:
                if event.finish_reason is not None:
                    engine.release(event.id)
                yield numbers[event.id], event


def in_order(results: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """The results (number, result) in the order of their numbers, from 0, each as soon as those before it are there."""
    ready, following = {}, 0
    for number, result in results:
        ready[number] = result
        while following in ready:
            yield ready.pop(following)
            following += 1
