"""The experts that the engine records are the choices of the router in a forward pass."""

import numpy as np
import pytest

from ling_jax import model
from ling_jax.engine import Request
from tests.helpers.engines import finish, model_of, prompt_of, release_all, small_engine, withhold
from tests.helpers.golden_numbers import quick_jit

forward = quick_jit(model.forward, static_argnums=2)


@pytest.fixture(scope="module")
def engine():
    return small_engine(prefill_tokens=16)


def recorded(events, id):
    return np.concatenate([event.experts for event in events if event.id == id and event.experts is not None])


def check(experts, context):
    """[n, L, k] of all tokens but the last, which was not read. Near ties may go either way."""
    config, params, _ = model_of()
    assert experts.dtype == np.uint16 and len(experts) == len(context) - 1
    row = np.zeros((1, 96), int)
    row[0, : len(context)] = context
    index_LTk = np.asarray(forward(params, row, config).router.expert_index[:, 0, : len(experts)])
    wanted, found = (np.sort(x, axis=-1) for x in (np.moveaxis(index_LTk, 0, 1), experts))
    assert found.shape == wanted.shape and (found == wanted).all(axis=-1).mean() > 0.99


def test_recorded_experts_are_the_routers_choices(engine):
    """Of every read token once, in both turns; neighbours do not ask for theirs."""
    engine.submit(Request("a", prompt_of(0, 30), 11, seed=0, record_experts=True))
    engine.submit(Request("b", prompt_of(1, 30), 11, seed=0))
    events = finish(engine)
    engine.extend("a", [4, 5, 6], 7)
    events += finish(engine)
    assert all(event.experts is None for event in events if event.id == "b")
    check(recorded(events, "a"), engine._sequences["a"].tokens)
    release_all(engine)


def test_tokens_that_are_read_again_are_recorded_once(engine):
    """After a pause, after new weights, and where pages run short."""
    small = small_engine(prefill_tokens=16)
    withhold(small, pages=15)
    _, params, _ = model_of()
    for i in range(4):
        small.submit(Request(i, prompt_of(i, 30), 20, seed=i, record_experts=True))
    events = [event for _ in range(4) for event in small.step()]
    small.resume(small.pause(1))
    small.load(params, 1)
    events += finish(small)
    for i in range(4):
        check(recorded(events, i), small._sequences[i].tokens)


def test_adjusted_requests_record_experts_too(engine):
    engine.submit(Request("a", prompt_of(0, 20), 6, seed=0, record_experts=True, top_logprobs=2))
    events = finish(engine)
    check(recorded(events, "a"), engine._sequences["a"].tokens)
    release_all(engine)


def test_a_model_without_experts_records_none():
    engine = small_engine("2.0 without experts")
    engine.submit(Request("a", prompt_of(0, 20), 6, seed=0, record_experts=True))
    assert all(event.experts is None for event in finish(engine))
