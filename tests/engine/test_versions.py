"""New weights while requests are under way."""

import jax
import jax.monitoring
import numpy as np
import pytest

from ling_jax.engine import EXACT_TILE, Request, score
from ling_jax.engine.adjusted import _draw_one
from tests.helpers.engine_oracle import Oracle
from tests.helpers.engines import (
    check_places,
    finish,
    model_of,
    programs,
    prompt_of,
    release_all,
    results,
    run_all,
    small_engine,
    withhold,
)

REQUESTS = [Request(i, prompt_of(i, 3 + 9 * i), 20 + i, seed=i) for i in range(6)]  # more than slots


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def under_way(engine, steps):
    """Events of some steps of all requests, by the first weights."""
    release_all(engine)
    engine.load(model_of()[1], 0)
    for request in REQUESTS:
        engine.submit(request)
    return [event for _ in range(steps) for event in engine.step()]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_token_has_the_version_of_its_weights(steps, engine):
    """Under recompute the next token is that of the new weights for the whole context."""
    config, params, other = model_of()
    events = under_way(engine, steps)
    engine.load(other, 1)
    events += finish(engine)
    oracles = Oracle(params, config), Oracle(other, config)
    for request in REQUESTS[::3]:
        context, number = list(request.tokens), 0
        runs = {version: [e for e in events if e.id == request.id and e.version == version] for version in (0, 1)}
        for version, run in runs.items():
            found = [t for e in run for t in e.tokens], [p for e in run for p in e.logps]
            if found[0]:
                assert oracles[version].go_on(request, context, number, len(found[0]))[:2] == found
            context, number = context + found[0], number + len(found[0])
        assert number == request.max_new_tokens


def test_kept_states_go_on(engine):
    """No context is read again: the next step draws, by the new weights from old states."""
    *_, other = model_of()
    events = under_way(engine, 2)
    read = {s.id: s.read for s in engine._slots}
    engine.load(other, 1, "keep")
    after = engine.step()
    assert {event.version for event in after if event.tokens} == {1}
    assert all(s.read >= read[s.id] > 0 for s in engine._slots if s is not None and s.id in read)
    events += after + finish(engine)
    recomputed = under_way(engine, 2)
    engine.load(other, 1)
    assert results(recomputed + finish(engine))[1] != results(events)[1]


def test_drained_turns_end_by_the_old_weights(engine):
    *_, other = model_of()
    alone = results(under_way(engine, 0) + finish(engine))
    events = under_way(engine, 1)
    seated = {s.id for s in engine._slots if s is not None}
    engine.load(other, 1, "drain")
    events += finish(engine)
    versions = {id: {event.version for event in events if event.id == id and event.tokens} for id in range(6)}
    assert {id for id, of_id in versions.items() if of_id == {0}} == seated
    assert all(of_id == {1} for id, of_id in versions.items() if id not in seated)
    assert all(results(events)[id] == alone[id] for id in seated)
    assert engine.version == 1


def test_weights_that_wait_give_way_to_newer_ones(engine):
    _, params, other = model_of()
    under_way(engine, 1)
    engine.load(other, 1, "drain")
    engine.load(params, 2)
    assert {event.version for event in finish(engine)} == {2}


def test_parked_turns_are_read_again_by_new_weights(engine):
    config, _, other = model_of()
    events = under_way(engine, 0) + finish(engine)
    engine.load(other, 1)
    engine.extend(2, [7, 8], 5)
    (event,) = finish(engine)
    context = [*REQUESTS[2].tokens, *results(events)[2][0], 7, 8]
    wanted = Oracle(other, config).go_on(
        REQUESTS[2], context, REQUESTS[2].max_new_tokens, 5, REQUESTS[2].max_new_tokens
    )
    assert (list(event.tokens), list(event.logps)) == wanted[:2] and event.cached_tokens == 0 and event.version == 1


def with_nan(params):
    params["segments"]["0"]["1_mla_moe"]["mixer"]["kv_b"][0, 0, 0, 0, 0] = np.nan
    return params


def with_infinity(params):
    params["head"][3, 3] = np.inf
    return params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, "0.1_mla_moe.*kv_b has a value that is not finite"),
        (with_infinity, "head has a value that is not finite"),
        (lambda params: params | {"head": params["head"].T}, r"head has shape \(40, 16\); the model's is \(16, 40\)"),
        (lambda params: params | {"foot": params["head"]}, "foot is in one of them only"),
        (lambda params: {name: leaf for name, leaf in params.items() if name != "head"}, "head is in one of them only"),
    ],
)  # fmt: skip
def test_bad_weights_are_refused_and_the_old_ones_serve_on(change, message, engine):
    alone = results(under_way(engine, 0) + finish(engine))
    events = under_way(engine, 2)
    with pytest.raises(ValueError, match=message):
        engine.load(change(jax.tree.map(np.array, model_of()[1])), 1)
    events += finish(engine)
    assert results(events) == alone and {event.version for event in events} == {0}


def test_an_unknown_way_to_swap_is_refused(engine):
    with pytest.raises(ValueError, match="in_flight is 'wait'; expected one of recompute, keep, drain"):
        engine.load(model_of()[1], 1, "wait")


def test_weights_are_a_copy(engine):
    """The trainer goes on to change or give away its own."""
    alone = results(under_way(engine, 0) + finish(engine))
    release_all(engine)
    params = jax.tree.map(np.array, model_of()[1])
    engine.load(params, 3)
    for leaf in jax.tree.leaves(params):
        leaf[:] = 0
    for request in REQUESTS:
        engine.submit(request)
    assert results(finish(engine)) == alone


def test_recorded_log_probs_can_be_scored_again(engine):
    """By another engine, of other sizes: the bits are those of the tile."""
    config, params, _ = model_of()
    found = results(under_way(engine, 0) + finish(engine))
    whole = [[*request.tokens, *found[request.id][0]] for request in REQUESTS]
    for request, logps in zip(REQUESTS, score(params, whole, config), strict=True):
        assert logps.dtype == np.float32 and logps[len(request.tokens) - 1 :].tolist() == found[request.id][1]


class Compilations:
    def __enter__(self):
        self.names = []
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def listen(self, name, *_, **__):
        if name.endswith("backend_compile_duration"):
            self.names.append(name)

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.listen)


@pytest.mark.parametrize("swaps", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_compiled_after_warm_up(swaps):
    """Whatever arrives and whatever the weights were: numpy, committed to a device, or in another dtype."""
    _, params, other = model_of()
    kinds = [
        params,
        jax.device_put(other, jax.devices()[0]),
        jax.tree.map(lambda leaf: jax.numpy.asarray(leaf), params),
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree))(other),
    ]
    engine = small_engine()
    engine.submit(Request("warm", prompt_of(0, 20), 10, seed=0, top_logprobs=1))
    engine.submit(Request("up", prompt_of(0, 20), 10, seed=0, record_experts=True))
    for version, kind in enumerate(kinds):
        engine.load(kind, version)
    finish(engine)
    release_all(engine)
    before, version = programs(), len(kinds)
    with Compilations() as compilations:
        for swap in range(swaps):
            options = [{"temperature": 0.0}, {"top_k": 3, "stop_ids": (1, 2)}, {"logit_bias": {3: 1.0}}, {"top_p": 0.5}]
            engine.submit(
                Request(swap, prompt_of(swap, 1 + 7 * swap % 90), 1 + swap % 30, seed=swap, **options[swap % 4])
            )
            engine.step()
            version += 1
            engine.load(kinds[swap % 4], version, ("recompute", "keep", "drain")[swap % 3])
            check_places(engine)
        finish(engine)
        assert engine.version == version
    assert programs() == before and not compilations.names


def test_drained_turns_that_gave_up_their_pages_end_by_the_old_weights():
    engine = small_engine()
    withhold(engine, pages=18)  # 5 are left: two such requests do not fit
    for i in range(3):
        engine.submit(Request(i, prompt_of(i, 20), 40, seed=i))
    events = engine.step()
    assert sum(bool(event.tokens) for event in events) == 2
    engine.load(model_of()[2], 1, "drain")
    events += finish(engine)
    versions = {id: {event.version for event in events if event.id == id and event.tokens} for id in range(3)}
    assert versions == {0: {0}, 1: {0}, 2: {1}}


@pytest.mark.parametrize("row_tile", [EXACT_TILE, None])
def test_nothing_is_compiled_behind_the_warm_up(row_tile):
    engine = small_engine(row_tile=row_tile)
    engine.warm_up()
    compiled, adjusted = programs(), _draw_one._cache_size()
    plain = run_all(engine, *REQUESTS)
    finish(engine)
    engine.submit(Request("top", prompt_of(0, 9), 3, seed=0, top_logprobs=2))
    engine.submit(Request("scored", prompt_of(0, 70), 3, seed=0, prompt_logprobs=True, top_k=3))
    finish(engine)
    assert (programs(), _draw_one._cache_size()) == (compiled, adjusted) and len(plain) == len(REQUESTS)


def test_a_warm_up_needs_weights():
    with pytest.raises(RuntimeError, match="no weights"):
        small_engine(load=False).warm_up()
