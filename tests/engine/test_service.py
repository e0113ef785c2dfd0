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


async def started(service, count=3, tokens=60):
    """Streams of long requests, each after its first event: [(its events, that event)]."""
    streams = [service.generate(Request(f"long {i}", [1 + i], tokens, seed=i)) for i in range(count)]
    return [(stream, await anext(stream)) for stream in streams]


async def rest_of(stream, first):
    """(all tokens of the stream, its reason to end)."""
    tokens, reason = list(first.tokens), first.finish_reason
    async for event in stream:
        tokens += event.tokens
        reason = event.finish_reason
    return tokens, reason


def test_a_pause_keeps_turns_where_they_are(deadline=60):
    async def run():
        async with EngineService(new_engine()) as service:
            wanted = [await tokens_of(service, Request(f"long {i}", [1 + i], 60, seed=i)) for i in range(2)]
            streams = await started(service, 2)
            await service.pause("keep")
            steps = await service.read(lambda engine: engine.steps)
            late = asyncio.ensure_future(tokens_of(service, Request("late", [2], 3, seed=0)))
            await asyncio.sleep(0.1)
            assert await service.read(lambda engine: engine.steps) == steps and not late.done()
            with pytest.raises(ValueError, match="paused"):
                await service.pause("keep")
            await service.resume()
            assert [await rest_of(*stream) for stream in streams] == [(tokens, "length") for tokens in wanted]
            assert len(await late) == 3

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_a_pause_waits_for_turns_or_ends_them(deadline=60):
    async def run():
        engine = new_engine()
        async with EngineService(engine) as service:
            streams = await started(service)  # one of them has to wait for a slot
            await service.pause("wait")
            assert not engine.busy
            assert {reason for _, reason in [await rest_of(*stream) for stream in streams]} == {"length"}
            await service.resume()
            streams = await started(service, 2)
            await service.pause("abort")
            found = [await rest_of(*stream) for stream in streams]
            assert {reason for _, reason in found} == {"cancelled"} and all(len(tokens) < 60 for tokens, _ in found)
            assert not engine.ids
            await service.resume()
            assert len(await tokens_of(service, Request("after", [1], 3, seed=0))) == 3
            with pytest.raises(ValueError, match="expected one of abort, wait, keep"):
                await service.pause("stop")

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_a_wait_that_is_given_up_pauses_nothing(deadline=60):
    async def run():
        async with EngineService(new_engine()) as service:
            ((stream, first),) = await started(service, 1)
            waiting = asyncio.ensure_future(service.pause("wait"))
            await asyncio.sleep(0)
            waiting.cancel()
            assert (await rest_of(stream, first))[1] == "length"
            assert len(await tokens_of(service, Request("after", [1], 3, seed=0))) == 3

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_a_caller_that_goes_away_while_it_submits_leaves_nothing(deadline=60):
    async def run():
        engine = new_engine()
        async with EngineService(engine) as service:
            for seed in range(20):
                asking = asyncio.ensure_future(tokens_of(service, Request(f"gone {seed}", [1], 50, seed=seed)))
                for _ in range(seed % 4):
                    await asyncio.sleep(0)
                asking.cancel()
            while await service.read(lambda engine: engine.ids):
                await asyncio.sleep(0.01)
            with pytest.raises(ValueError, match="is in the engine"):
                first = service.generate(Request("twice", [1], 50, seed=0))
                await anext(first)
                await tokens_of(service, Request("twice", [1], 50, seed=0))
            assert (await rest_of(first, await anext(first)))[1] == "length"

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_a_call_that_breaks_the_engine_is_answered(deadline=60):
    async def run():
        service = EngineService(new_engine())
        with pytest.raises(RuntimeError, match="the engine has ended: ZeroDivisionError"):
            await service.read(lambda engine: 1 / 0)
        assert isinstance(await asyncio.wrap_future(service.ended), ZeroDivisionError)

    asyncio.run(asyncio.wait_for(run(), deadline))


def test_the_reason_of_an_end_is_a_result(deadline=60):
    async def run():
        engine = new_engine()
        service = EngineService(engine)
        await service.pause("keep")
        asyncio.get_running_loop().call_later(0.05, setattr, engine, "step", lambda: 1 / 0)
        waiting = asyncio.ensure_future(tokens_of(service, Request("a", [1], 3, seed=0)))
        await asyncio.sleep(0.1)
        await service.resume()
        with pytest.raises(RuntimeError, match="the engine has ended"):
            await waiting
        assert isinstance(await asyncio.wrap_future(service.ended), ZeroDivisionError)

    asyncio.run(asyncio.wait_for(run(), deadline))
