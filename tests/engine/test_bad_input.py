"""What cannot be served fails alone, with a reason; what an engine has goes on."""

import numpy as np
import pytest

from ling_jax.engine import Engine, Event, Request, score
from tests.helpers.engines import END, SLOTS, finish, memory_bytes, model_of, prompt_of, results, run_all, small_engine

GOOD = Request("good", prompt_of(1, 5), 12, seed=3)


def bad(tokens=(1, 2), max_new_tokens=4, **options) -> Request:
    return Request("bad", tokens, max_new_tokens, **({"seed": 0} | options))


BAD = [
    (bad([]), "there are no tokens"),
    (bad([3, 40]), "token 40 is not in the vocabulary of 40"),
    (bad([-1, 3]), "token -1 is not in the vocabulary"),
    (bad([2**70]), "expected a list of integers"),
    (bad([1.5, 2.0]), "expected a list of integers"),
    (bad([[1, 2]]), "expected a list of integers"),
    (bad([[1, 2], [3]]), "another type"),
    (bad("text"), "expected a list of integers"),
    (bad(None), "expected a list of integers"),
    (bad(7), "expected a list of integers"),
    (bad([1] * 253), "253 tokens of context and 4 new ones; the engine has room for 256"),
    (bad(max_new_tokens=10**9), "room for 256"),
    (bad(max_new_tokens=-1), "max_new_tokens is -1"),
    (bad(max_new_tokens=0), "there is nothing to do"),
    (bad(max_new_tokens=2.5), "another type"),
    (bad(max_new_tokens="4"), "another type"),
    (bad(temperature=-0.1), "temperature is -0.1"),
    (bad(temperature=float("nan")), "temperature is nan"),
    (bad(temperature=float("inf")), "temperature is inf"),
    (bad(temperature="hot"), "another type"),
    (bad(top_p=2), "top_p is 2; expected 0 to 1"),
    (bad(min_p=-0.5), "min_p is -0.5"),
    (bad(top_k=-1), "top_k is -1"),
    (bad(top_k=2**40), "top_k is 1099511627776"),
    (bad(top_k=1.5), "another type"),
    (bad(min_new_tokens=2**31), "min_new_tokens is 2147483648"),
    (bad(repetition_penalty=0), "repetition_penalty is 0"),
    (bad(repetition_penalty=float("nan")), "repetition_penalty is nan"),
    (bad(seed=-1), "seed is -1"),
    (bad(seed=2**32), "seed is 4294967296"),
    (bad(seed=None), "another type"),
    (bad(stop_ids=[1] * 65), "65 stop_ids; expected at most 64"),
    (bad(stop_ids=[40]), "stop_ids has token 40"),
    (bad(stop_ids=[1.5]), "another type"),
    (bad(stop_ids=None), "another type"),
    (bad(logit_bias={40: 1.0}), "logit_bias has token 40"),
    (bad(logit_bias={1: float("nan")}), "logit_bias has a value that is not a finite float32"),
    (bad(logit_bias={1: -1e39}), "logit_bias has a value that is not a finite float32"),
    (bad(logit_bias=[(1, 2.0)]), "another type"),
    (bad(top_logprobs=41), "top_logprobs is 41"),
    (bad(allowed=[True] * 40), "expected a function"),
    (bad(priority="high"), "another type"),
    (bad(priority=float("nan")), "another type"),
]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_request_fails_alone(request_, message, alone, engine):
    engine.submit(GOOD)
    first = engine.step()
    engine.submit(request_)
    events = first + finish(engine)
    (failed,) = (event for event in events if event.id == "bad")
    assert failed.finish_reason == "error" and message in failed.error and not failed.tokens
    assert results(events)["good"] == alone
    engine.release("good")
    with pytest.raises(ValueError, match="no request 'bad'"):
        engine.release("bad")


@pytest.fixture(scope="module")
def engine():
    return small_engine()


@pytest.fixture(scope="module")
def alone():
    return run_all(small_engine(), GOOD)["good"]


def raising(tokens):
    raise KeyError("no such rule")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed": raising}, "`allowed` raised KeyError: 'no such rule'"),
        ({"allowed": lambda tokens: np.zeros(40, bool)}, "leave no token"),
        ({"allowed": lambda tokens: np.ones(39, bool)}, "`allowed` raised ValueError: a mask of bool (39,)"),
        ({"allowed": lambda tokens: None}, "`allowed` raised ValueError: a mask"),
        ({"allowed": lambda tokens: np.arange(40) == 7, "stop_ids": [7], "min_new_tokens": 1}, "leave no token"),
    ],
)
def test_a_request_whose_rules_fail_ends_alone(options, message, alone, engine):
    found = run_bad(engine, options)
    assert message in found["bad"].error and found["bad"].finish_reason == "error"
    assert found["good"] == alone


def run_bad(engine, options):
    engine.submit(GOOD)
    engine.submit(bad(**options))
    events = finish(engine)
    engine.release("good")
    return {"bad": next(event for event in events if event.error), "good": results(events)["good"]}


def test_allowed_that_fails_later_keeps_what_was_drawn(engine):
    engine.submit(bad(allowed=lambda tokens: np.ones(40, bool) if len(tokens) < 3 else raising(tokens)))
    events = finish(engine)
    assert [len(event.tokens) for event in events] == [1, 1, 1, 0] and "KeyError" in events[-1].error


def test_an_unknown_request_is_refused(engine):
    for action in (engine.cancel, engine.release, engine.pause):
        with pytest.raises(ValueError, match="the engine has no request 'who'"):
            action("who")
    with pytest.raises(ValueError, match="the engine has no request 'who'"):
        engine.extend("who", [1], 2)


def test_an_id_is_used_once(engine):
    engine.submit(GOOD)
    with pytest.raises(ValueError, match="'good' is in the engine"):
        engine.submit(GOOD)
    snapshot = engine.pause("good")
    engine.submit(GOOD)
    with pytest.raises(ValueError, match="'good' is in the engine"):
        engine.resume(snapshot)
    engine.cancel("good")
    (event,) = engine.step()
    assert event.finish_reason == "cancelled"


def test_a_turn_is_extended_when_it_has_ended(engine):
    engine.submit(GOOD)
    for _ in range(2):
        with pytest.raises(ValueError, match="'good' is still drawing"):
            engine.extend("good", [1], 2)
        engine.step()
    finish(engine)
    engine.extend("good", [1], 2)
    engine.cancel("good")
    engine.step()


@pytest.mark.parametrize(
    ("tokens", "count", "message"),
    [([], 1, "no tokens"), ([40], 1, "token 40"), ([1] * 200, 100, "room for 256"), ("a", 1, "integers"),
     ([1], None, "another type"), ([1], -1, "max_new_tokens is -1")],
)  # fmt: skip
def test_a_bad_extension_fails_and_the_turn_can_be_extended_again(tokens, count, message, engine):
    engine.submit(GOOD)
    finish(engine)
    engine.extend("good", tokens, count)
    (event,) = finish(engine)
    assert event.finish_reason == "error" and message in event.error
    engine.extend("good", [1, 2], 3)
    assert sum(len(event.tokens) for event in finish(engine)) == 3
    engine.release("good")


def test_nothing_is_served_before_weights_are_loaded():
    engine = small_engine(load=False)
    engine.submit(GOOD)
    with pytest.raises(RuntimeError, match="the engine has no weights"):
        engine.step()
    _, params, _ = model_of()
    engine.load(params, 4)
    assert {event.version for event in finish(engine)} == {4}


def test_a_snapshot_of_another_engine_is_refused(engine):
    other = small_engine(row_tile=32)
    other.submit(GOOD)
    with pytest.raises(ValueError, match="another model, machine, JAX version or row_tile"):
        engine.resume(other.pause("good"))
    assert not engine.busy


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"slots": 0}, "slots 0"), ({"memory_bytes": 1000}, "memory_bytes is 1000"), ({"row_tile": 0}, "row_tile 0"),
     ({"prefill_tokens": 0}, "prefill_tokens is 0")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    config, *_ = model_of()
    with pytest.raises(ValueError, match=message):
        Engine(config, **({"slots": SLOTS, "memory_bytes": memory_bytes("2.6")} | sizes))


def test_bad_sequences_are_not_scored():
    config, params, _ = model_of()
    assert score(params, [], config) == []
    with pytest.raises(ValueError, match="sequence 1: token 40"):
        score(params, [[1, 2], [40, 1]], config)


def test_events_of_refused_requests_wait_for_a_step(engine):
    engine.submit(bad([]))
    assert engine.busy
    assert engine.step() == [
        Event("bad", 0, version=0, finish_reason="error", error="there are no tokens; give at least one")
    ]
    assert not engine.busy


def test_a_stop_token_ends_a_turn_and_belongs_to_it(engine):
    stop = run_all(engine, GOOD)["good"][0][4]
    engine.release("good")
    engine.submit(Request("stops", GOOD.tokens, 12, seed=3, stop_ids=(stop, END)))
    events = finish(engine)
    tokens = [token for event in events for token in event.tokens]
    assert tokens[-1] in (stop, END) and not {stop, END} & set(tokens[:-1]) and events[-1].finish_reason == "stop"
    engine.release("stops")


def test_a_prompt_that_its_owner_goes_on_with_is_what_was_submitted(engine):
    context = prompt_of(4, 20)
    request = Request("r", context, 4, seed=0, prompt_logprobs=True)
    wanted = run_all(engine, request)["r"]
    engine.release("r")
    engine.submit(request)
    context += [1, 2, 3]
    events = finish(engine)
    assert results(events)["r"] == wanted and len(events[-1].prompt_logps) == 19
    engine.release("r")
