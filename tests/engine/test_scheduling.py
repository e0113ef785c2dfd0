"""Who goes first, and what becomes of turns that wait."""

import numpy as np
import pytest

from ling_jax.engine import Engine, Request, memory_for
from ling_jax.engine.memory import plan_memory
from ling_jax.model.token_info import PAGE_SIZE
from tests.helpers.engine_oracle import Oracle
from tests.helpers.engines import (
    FIELDS,
    PAGES,
    SLOTS,
    check_places,
    finish,
    model_of,
    prompt_of,
    release_all,
    results,
    run_all,
    small_engine,
    withhold,
)
from tests.helpers.tiny import FAMILIES, random_params, tiny_config


def first_steps(engine, requests, steps=2000) -> dict:
    """{id: number of the step that gave its first token}."""
    for request in requests:
        engine.submit(request)
    found = {}
    for step in range(1, steps):
        for event in engine.step() if engine.busy else []:
            if event.tokens:
                found.setdefault(event.id, step)
        check_places(engine)
    return found


def test_a_long_prompt_delays_no_one():
    """Short prompts behind one of 240 tokens, of which a step reads at most 60, draw in their first step."""
    found = first_steps(small_engine(), [Request("long", prompt_of(0, 240), 2, seed=0), *shorts(3)], steps=30)
    assert all(found[i] == 1 for i in range(3))
    assert found["long"] <= 240 // (60 - 3 * 5) + 1


def shorts(count, length=5):
    return [Request(i, prompt_of(i, length), 4, seed=i) for i in range(count)]


def test_short_prompts_do_not_starve_a_long_one():
    """It gets a quarter of each step's budget, however many short ones there are."""
    engine = small_engine(prefill_tokens=20)
    engine.submit(Request("long", prompt_of(0, 100), 2, seed=0))
    for step in range(21):
        for i in range(5):
            engine.submit(Request((step, i), prompt_of(i, 19), 1, seed=i))
        if any(event.id == "long" for event in engine.step()):
            break
    assert step <= 100 // 5


@pytest.mark.slow
def test_a_prompt_of_30k_tokens_delays_no_one():
    config = tiny_config(**FIELDS | {"max_length": 32768})
    engine = Engine(
        config, slots=4, memory_bytes=memory_for(config, slots=4, max_tokens=32768), row_tile=64, prefill_tokens=256
    )
    engine.load(random_params(config, dtype="float32", std=0.2), version=0)
    engine.submit(Request("long", prompt_of(0, 30000), 2, seed=0))
    engine.step()
    for i in range(20):
        found = first_steps(engine, [Request(i, prompt_of(i, 50), 4, seed=i)], steps=4)
        assert found[i] == 1 and "long" not in found
        engine.release(i)
    assert len(results(finish(engine))["long"][0]) == 2


def test_priority_goes_first_then_the_oldest():
    priorities = [2, 0, 1, 0, 2, 1, 0, 2, 1, 0]
    requests = [
        Request(i, prompt_of(i, 6), 8, seed=i, temperature=0.0, priority=priority)
        for i, priority in enumerate(priorities)
    ]
    found = first_steps(small_engine(), requests, steps=40)
    order = sorted(found, key=lambda id: (found[id], id))
    wanted = sorted(range(10), key=lambda i: (priorities[i], i))
    assert [sorted(order[i : i + SLOTS]) for i in (0, 4, 8)] == [sorted(wanted[i : i + SLOTS]) for i in (0, 4, 8)]


def test_turns_stay_parked_until_their_memory_is_needed():
    engine = small_engine()
    run_all(engine, *[Request(i, prompt_of(i, 14), 10, seed=i) for i in range(6)])
    for i in range(6):
        engine.extend(i, [5, 6, 7], 4)
    cached = {event.id: event.cached_tokens for event in finish(engine) if event.tokens}
    assert cached == dict.fromkeys(range(6), 23)  # all but the last token, which was not read


def test_the_turn_that_ended_first_is_forgotten_first_and_read_again_exactly():
    engine = small_engine()
    withhold(engine, pages=15)  # 8 are left, of 16 tokens
    ended = run_all(engine, *[Request(i, prompt_of(i, 20), 8 + 9 * i, seed=i) for i in range(3)])
    assert [len(engine._sequences[i].pages) for i in range(3)] == [2, 3, 3]
    run_all(engine, Request("new", prompt_of(7, 20), 3, seed=0))
    assert [len(engine._sequences[i].pages) for i in range(3)] == [0, 3, 3]
    config, params, _ = model_of()
    for i in (2, 0):
        engine.extend(i, [9, 9], 6)
        events = finish(engine)
        assert sum(event.cached_tokens for event in events) == {2: 45, 0: 0}[i]
        request, number = Request(i, prompt_of(i, 20), 0, seed=i), 8 + 9 * i
        context = [*request.tokens, *ended[i][0], 9, 9]
        tokens, logps, _ = Oracle(params, config).go_on(request, context, number, 6, number)
        assert [t for e in events for t in e.tokens] == tokens and [p for e in events for p in e.logps] == logps


def test_a_long_extension_reports_what_was_cached():
    """In the first event that has a token, though several steps read before it."""
    engine = small_engine(prefill_tokens=8)
    run_all(engine, Request("r", prompt_of(1, 20), 4, seed=0))
    engine.extend("r", prompt_of(2, 50), 12)
    events = finish(engine)
    assert [event.cached_tokens for event in events if event.tokens] == [23, 0]


@pytest.mark.parametrize("in_tiles", [True, False])
@pytest.mark.parametrize("length", [1, 9, 60, 61, 130])
def test_a_turn_without_draws_reads_all(in_tiles, length):
    engine = small_engine(row_tile=64 if in_tiles else None)
    run_all(engine, Request("r", prompt_of(1, 20), 4, seed=0))
    engine.extend("r", prompt_of(2, length), 0)
    (event,) = finish(engine)
    assert event.finish_reason == "length" and not event.tokens
    engine.extend("r", [3], 2)
    (event,) = finish(engine)
    assert event.cached_tokens == 24 + length and len(event.tokens) == 2


def test_every_request_ends_when_pages_are_few():
    """Each needs more than a third of them; the most urgent always goes on."""
    engine = small_engine()
    withhold(engine, pages=PAGES - 1 - 5)
    found = run_all(engine, *[Request(i, prompt_of(i, 20), 40, seed=i, priority=i % 2) for i in range(9)])
    assert all(len(tokens) == 40 for tokens, _ in found.values())
    release_all(engine)


def test_scored_requests_are_not_starved_where_prompts_are_read_in_chunks():
    engine = small_engine(row_tile=None)
    engine.submit(Request("scored", prompt_of(0, 150), 2, seed=0, prompt_logprobs=True))
    for step in range(20):
        engine.submit(Request(step, prompt_of(1, 200), 1, seed=0))
        if any(event.id == "scored" for event in engine.step()):
            break
    assert step < 8


def test_chunks_and_wide_tiles_give_the_same_numbers_but_for_rounding():
    engine = small_engine(row_tile=None, prefill_tokens=300)
    requests = [Request(i, prompt_of(i, 3 + 33 * i), 6, seed=i, temperature=0.0) for i in range(6)]
    exact, found = run_all(small_engine(), *requests), run_all(engine, *requests)
    for request in requests:
        assert found[request.id][0] == exact[request.id][0]
        np.testing.assert_allclose(found[request.id][1], exact[request.id][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parked", [0, 1, 3])
@pytest.mark.parametrize("max_tokens", [16, 100, 512])
@pytest.mark.parametrize("slots", [1, 3, 64])
def test_memory_is_enough_for_what_was_asked(family, parked, max_tokens, slots):
    config = tiny_config(family)
    plan = plan_memory(config, slots, budget := memory_for(config, slots=slots, max_tokens=max_tokens, parked=parked))
    running = min(slots + parked, plan.states)
    assert running >= slots + min(parked, slots)
    assert plan.pages - 1 >= running * -(-max_tokens // PAGE_SIZE) or running > slots + parked
    assert plan.pages - 1 >= slots * -(-max_tokens // PAGE_SIZE)
    assert plan.max_tokens >= max_tokens and plan.total_bytes <= budget


@pytest.mark.slow
def test_many_requests_leave_nothing_behind(slots=32, count=2000):
    """Lognormal lengths of mean 64; slots are busy while someone waits, and memory stays as it was."""
    import resource

    config, params, _ = model_of()
    engine = Engine(
        config, slots=slots, memory_bytes=memory_for(config, slots=slots, max_tokens=256), row_tile=64,
        prefill_tokens=256,
    )  # fmt: skip
    engine.load(params, version=0)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(64) - 0.32, 0.8, count).astype(int), 1, 200)
    arrivals, done, busy, memory = 0, 0, [], []
    while done < count:
        while arrivals < count and arrivals < done + 2 * slots:
            engine.submit(
                Request(arrivals, prompt_of(arrivals, 1 + arrivals % 40), int(lengths[arrivals]), seed=arrivals)
            )
            arrivals += 1
        for event in engine.step():
            if event.finish_reason:
                assert event.finish_reason == "length"
                engine.release(event.id)
                done += 1
        if engine._waiting:
            busy.append(sum(s is not None for s in engine._slots) / slots)
        if done > count // 4:
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    check_places(engine)
    (part,) = engine._parts
    assert len(part.pages) == engine.plan.pages - 1 and len(part.states) == engine.plan.states
    assert not engine._sequences and not engine.busy
    assert np.mean(busy) >= 0.85
    assert memory[-1] - memory[0] < 20_000  # kB; allocators keep some


def test_the_least_urgent_gives_up_its_pages():
    """Four requests outgrow the pages: the first ones go on, the last one waits and still gets its own tokens."""
    engine = small_engine()
    withhold(engine, pages=PAGES - 1 - 8)  # 8 pages of 16 tokens are left
    requests = [Request(i, prompt_of(i, 20), 40, seed=i) for i in range(4)]
    for request in requests:
        engine.submit(request)
    ended, events = [], []
    while engine.busy:
        step = engine.step()
        ended += [event.id for event in step if event.finish_reason]
        events += step
        for id in ended:
            if id in engine.ids:
                engine.release(id)
    assert ended == [0, 1, 2, 3]
    found = results(events)
    for request in requests:
        assert found[request.id] == run_all(small_engine(), request)[request.id]


def test_a_prompt_that_is_scored_anew_has_its_log_probs_once():
    """New weights come when half of it is read."""
    others = model_of()[2]
    engine = small_engine()
    engine.submit(Request("scored", prompt_of(0, 150), 0, seed=0, prompt_logprobs=True))
    engine.step()
    engine.load(others, version=1)
    (event,) = finish(engine)
    fresh = small_engine(load=False)
    fresh.load(others, version=1)
    fresh.submit(Request("scored", prompt_of(0, 150), 0, seed=0, prompt_logprobs=True))
    (wanted,) = finish(fresh)
    assert event.prompt_logps == wanted.prompt_logps and len(wanted.prompt_logps) == 149
