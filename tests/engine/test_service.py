"""The service's promises, on a real engine in its thread."""

import asyncio

import pytest

from ling_jax.engine import Engine, Request, memory_for
from ling_jax.engine.generate import generate
from ling_jax.engine.service import EngineService
from tests.helpers.engine_requests import CONFIG, PARAMS, PROMPTS, requests


def new_engine(**sizes):
    engine = Engine(CONFIG, slots=2, memory_bytes=memory_for(CONFIG, slots=2, max_tokens=64), **sizes)
    engine.load(PARAMS, 3)
    return engine


async def tokens_of(service, request):
    return [token async for event in service.generate(request) for token in event.tokens]


def test_callers_get_what_the_engine_gives(deadline=60):
    wanted = [answer.tokens for answer in generate(new_engine(), requests())]

    async def run():
        async with EngineService(new_engine()) as service:
            return await asyncio.gather(*(tokens_of(service, request) for request in requests()))

    assert asyncio.run(asyncio.wait_for(run(), deadline)) == wanted


def test_callers_wait_while_the_engine_is_full_and_one_that_goes_away_makes_room(deadline=60):
    async def run():
        engine = new_engine()
        async with EngineService(engine, max_pending=1) as service:
            first = service.generate(Request("long", [1], 60, seed=0))
            event = await anext(first)
            second = asyncio.ensure_future(tokens_of(service, Request("short", [2], 3, seed=0)))
            await asyncio.sleep(0.1)
            assert not second.done() and engine.ids == {"long"}
            await first.aclose()
            assert len(await second) == 3
        assert event.version == 3 and "long" not in engine.ids

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_errors_reach_the_caller_and_no_other(deadline=60):
    async def run():
        async with EngineService(new_engine()) as service:
            with pytest.raises(ValueError, match="shape"):
                await service.load({**PARAMS, "head": PARAMS["head"][:, 1:]}, 4)
            bad = [event async for event in service.generate(Request("bad", [], 3, seed=0))]
            assert bad[0].finish_reason == "error" and "no tokens" in bad[0].error
            assert len(await tokens_of(service, Request("good", PROMPTS[0], 3, seed=0))) == 3
            await service.load(PARAMS, 4)

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_nobody_waits_for_an_engine_that_has_ended(deadline=60):
    async def run():
        engine = new_engine()
        service = EngineService(engine)
        engine.step = lambda: 1 / 0
        with pytest.raises(RuntimeError, match="the engine has ended: ZeroDivisionError"):
            await tokens_of(service, Request("a", [1], 3, seed=0))
        with pytest.raises(RuntimeError, match="the engine has ended"):
            await tokens_of(service, Request("b", [1], 3, seed=0))
        await service.close()

    asyncio.run(asyncio.wait_for(run(), deadline))
