"""The answers to a request, as they come from the engine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from ling_jax.engine.service import EngineService
from ling_jax.serve.choice import Choice, Delta
from ling_jax.serve.errors import ApiError


async def deltas_of(service: EngineService, choices: Sequence[Choice]) -> AsyncIterator[tuple[Choice, Delta]]:
    """What the engine adds to each choice until all have ended; where the caller stops, their requests are released.

    Raises ApiError where a choice fails, or the engine has ended.
    """
    if len(choices) == 1:
        async with contextlib.aclosing(_deltas(service, choices[0])) as deltas:
            async for delta in deltas:
                yield choices[0], delta
        return
    ready: asyncio.Queue[tuple[Choice, Delta] | Exception | None] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async with contextlib.aclosing(_deltas(service, choice)) as deltas:
                async for delta in deltas:
                    ready.put_nowait((choice, delta))
            ready.put_nowait(None)
        except Exception as error:
            ready.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        for _ in tasks:
            while (item := await ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _deltas(service: EngineService, choice: Choice) -> AsyncIterator[Delta]:
    try:
        async with contextlib.aclosing(service.generate(choice.request)) as events:
            async for event in events:
                delta = choice.add(event)
                if delta.finish == "error":
                    raise ApiError(400, delta.error, "response_format" if choice.request.allowed else None)
                yield delta
                if delta.finish:
                    return
    except RuntimeError as error:
        raise ApiError(503, str(error), code="engine_ended") from None
