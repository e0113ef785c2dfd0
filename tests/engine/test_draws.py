"""Which token comes next, and what is recorded of it."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax import model
from ling_jax.engine import Engine, Request, memory_for
from ling_jax.engine.draw import COLD, Sampling, draw, keep_likely
from tests.helpers.engines import FIELDS, finish, model_of, prompt_of, release_all, results, run_all, small_engine
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

GOOD = Request("good", prompt_of(1, 5), 12, seed=3)
forward, drawn = quick_jit(model.forward, static_argnums=2), quick_jit(draw)
W = 40


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sampling(rows, **fields):
    default = dict(seed=0, number=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, stop=-1, stop_from=0)
    dtypes = dict(seed=np.uint32, temperature=np.float32, top_p=np.float32, min_p=np.float32)
    made = {
        name: np.broadcast_to(np.asarray(value, dtypes.get(name, np.int32)), rows)
        for name, value in (default | fields).items()
    }
    return Sampling(**made | {"stop": np.repeat(made["stop"][:, None], 8, axis=1)})


def simply_kept(logits_W, top_k, top_p, min_p):
    """[W] bool in float64: the likeliest tokens until a rule says stop."""
    order = np.argsort(-logits_W, kind="stable")[: top_k or len(logits_W)]
    share = np.exp(logits_W[order].astype(float) - logits_W.max())
    share /= share.sum()
    kept = [order[i] for i in range(len(order)) if i == 0 or (share[:i].sum() < top_p and share[i] >= min_p * share[0])]
    return np.isin(np.arange(len(logits_W)), kept)


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.sampled_from([0, 1, 3, 17, 99]),
            st.sampled_from([0.0, 0.31, 0.77, 1.0]), st.sampled_from([0.0, 0.013, 0.21, 1.0]), st.integers(0, 2),
        ), min_size=8, max_size=8,
    ),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=25)
def test_draws_are_those_of_a_simple_form(rows, seed):
    temperature, top_k, top_p, min_p, number = (np.asarray(x) for x in zip(*rows, strict=True))
    logits = 2 * normal(seed, 8, W)
    fields = dict(seed=seed, number=number, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = drawn(logits, sampling(8, **fields))
    for row in range(8):
        noise = jax.random.gumbel(jax.random.fold_in(jax.random.key(np.uint32(seed)), number[row]), (W,))
        heat = temperature[row] or 1.0
        kept = simply_kept(logits[row] / np.float32(heat), top_k[row], top_p[row], min_p[row])
        wanted = np.where(kept, logits[row] / heat + noise, -np.inf)
        assert found[row] == np.argmax(wanted if temperature[row] else logits[row])


def test_tokens_come_as_often_as_their_probabilities_say():
    rows, logits = 8192, normal(0, 5)
    found = drawn(np.repeat(logits[None], rows, axis=0), sampling(rows, number=np.arange(rows), temperature=0.7))
    wanted = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    share = np.bincount(found, minlength=5) / rows
    np.testing.assert_array_less(np.abs(share - wanted), 4 * np.sqrt(wanted / rows))  # four standard deviations


def test_a_row_without_filters_keeps_every_token_beside_one_with():
    """Rounded sums of probabilities reach 1 before the last of many tokens."""
    kept = keep_likely(6 * normal(1, 64, 5000), sampling(64, top_p=np.where(np.arange(64) % 2, 1.0, 0.5)))
    assert np.isfinite(kept[1::2]).all() and not np.isfinite(kept[::2]).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, COLD / 2, 1e-18])
def test_next_to_no_temperature_takes_the_likeliest(temperature):
    logits = 3 * normal(2, 64, W)
    np.testing.assert_array_equal(drawn(logits, sampling(64, temperature=temperature)), logits.argmax(axis=1))


def test_stop_tokens_are_not_drawn_too_early():
    logits = np.zeros((20, W), np.float32)
    logits[:, 5] = 50
    found = drawn(logits, sampling(20, stop=5, stop_from=10, number=np.arange(20)))
    np.testing.assert_array_equal(np.asarray(found) == 5, np.arange(20) >= 10)


# ---------------------------------------------------------------- in the engine

OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 0.4, "top_k": 5},
    {"top_p": 0.6, "min_p": 0.05},
    {"top_logprobs": 3},
    {"logit_bias": {7: 4.0, 8: -9.0}, "temperature": 1.5},
    {"repetition_penalty": 1.7, "temperature": 0.0},
    {"allowed": lambda tokens: np.arange(W) % 2 == len(tokens) % 2},
]


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def all_logits(params, tokens):
    """[T, W] of a forward pass, in rows of one length."""
    row = np.zeros((1, 64), int)
    row[0, : len(tokens)] = tokens
    return np.asarray(forward(params, row, model_of()[0]).logits[0, : len(tokens)])


def test_recorded_log_probs_are_the_models_own(engine):
    """The bits of a later scoring, and next to those of a forward pass; neighbours do not notice."""
    alone = run_all(small_engine(), GOOD)["good"]
    requests = [Request(i, prompt_of(i, 4 + i), 10, seed=i, **options) for i, options in enumerate(OPTIONS)]
    found = run_all(engine, requests[0], GOOD, *requests[1:])
    release_all(engine)
    assert found["good"] == alone
    _, params, _ = model_of()
    for request in requests:
        tokens, logps = found[request.id]
        whole = [*request.tokens, *tokens]
        engine.submit(Request("again", whole, 0, seed=0, prompt_logprobs=True))
        (event,) = finish(engine)
        release_all(engine)
        assert list(event.prompt_logps[-len(tokens) :]) == logps
        wanted = jax.nn.log_softmax(all_logits(params, whole)[len(request.tokens) - 1 : -1])
        np.testing.assert_allclose(logps, wanted[np.arange(len(tokens)), tokens], rtol=0, atol=1e-5)


def penalised(logits, context, number):
    return np.where(np.isin(np.arange(W), context), np.where(logits > 0, logits / 1.7, logits * 1.7), logits)


def biased(logits, context, number):
    return logits + 1.5 * np.eye(W)[3] - 3 * np.eye(W)[9]


def only_allowed(logits, context, number):
    return np.where(np.arange(W) % 2 == number % 2, logits, -np.inf)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"repetition_penalty": 1.7}, penalised),
        ({"logit_bias": {3: 1.5, 9: -3}}, biased),
        ({"allowed": OPTIONS[-1]["allowed"]}, only_allowed),
    ],
    ids=["repetition_penalty", "logit_bias", "allowed"],
)
def test_changed_logits_are_those_of_a_simple_form(options, change, engine):
    """Greedily, in two turns: `allowed` sees the tokens of the turn alone."""
    _, params, _ = model_of()
    context = prompt_of(5, 6)
    engine.submit(Request("r", context, 6, seed=0, temperature=0.0, **options))
    for turn in range(2):
        for number, token in enumerate(token for event in finish(engine) for token in event.tokens):
            assert token == np.argmax(change(all_logits(params, context)[-1], context, number)), (turn, number)
            context = [*context, token]
        if turn == 0:
            engine.extend("r", [11, 12], 6)
            context = [*context, 11, 12]
    release_all(engine)
    assert len(context) == 6 + 6 + 2 + 6


def test_top_log_probs_list_the_likeliest_and_change_nothing(engine):
    _, params, _ = model_of()
    alone = run_all(engine, GOOD)["good"]
    release_all(engine)
    engine.submit(dataclasses.replace(GOOD, top_logprobs=4))
    events = finish(engine)
    release_all(engine)
    assert results(events)["good"] == alone
    logps = jax.nn.log_softmax(all_logits(params, [*GOOD.tokens, *alone[0]]))[len(GOOD.tokens) - 1 : -1]
    listed = [dict(top) for event in events for top in event.top_logprobs]
    for top, wanted, token, logp in zip(listed, np.asarray(logps), *alone, strict=True):
        assert list(top) == np.argsort(-wanted)[:4].tolist()
        np.testing.assert_allclose(list(top.values()), np.sort(wanted)[::-1][:4], rtol=0, atol=1e-5)
        assert top.get(token, logp) == logp


def test_bits_allow_the_same_tokens_as_booleans(engine):
    mask = np.random.default_rng(0).random(W) < 0.3
    bits = np.packbits(np.pad(mask, (0, 24)), bitorder="little").view(np.uint32)
    found = run_all(
        engine,
        dataclasses.replace(GOOD, id="bool", allowed=lambda tokens: mask),
        dataclasses.replace(GOOD, id="bits", allowed=lambda tokens: bits),
    )
    release_all(engine)
    assert found["bool"] == found["bits"] and mask[found["bool"][0]].all()


@pytest.mark.parametrize("changed", [{}, {"top_logprobs": 1}], ids=["on the device", "on the host"])
def test_min_new_tokens_count_in_every_turn(changed, engine):
    stops = range(4, 12)
    engine.submit(Request("r", prompt_of(2, 5), 12, seed=1, stop_ids=stops, min_new_tokens=5, **changed))
    for turn in range(3):
        tokens = [token for event in finish(engine) for token in event.tokens]
        assert len(tokens) >= 5 and not set(tokens[:5]) & set(stops)
        assert len(tokens) == 12 or tokens[-1] in stops
        engine.extend("r", prompt_of(turn, 3), 12)
    release_all(engine)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_pause_changes_neither_rules_nor_what_they_see(steps, engine):
    seen: list[list[int]] = []

    def allowed(tokens):
        seen.append(list(tokens))
        return np.arange(W) % 3 != len(tokens) % 3

    request = dataclasses.replace(GOOD, stop_ids=range(1, 9), min_new_tokens=6, allowed=allowed, prompt_logprobs=True)
    wanted = run_all(engine, request)["good"]
    release_all(engine)
    seen.clear()
    engine.submit(request)
    events = [event for _ in range(steps) for event in engine.step()]
    engine.resume(engine.pause("good"))
    events += finish(engine)
    release_all(engine)
    assert results(events)["good"] == wanted
    assert seen == [wanted[0][:i] for i in range(len(wanted[0]))]
    assert sum(bool(event.prompt_logps) for event in events) == 1


@pytest.mark.slow
def test_float64_log_probs_are_those_of_a_forward_pass(x64):
    config = tiny_config(**FIELDS | {"compute_dtype": "float64"})
    params, request = random_params(config, std=0.2), Request("r", prompt_of(1, 40), 20, seed=0, prompt_logprobs=True)
    engine = Engine(config, slots=2, memory_bytes=memory_for(config, slots=2, max_tokens=64), row_tile=64)
    engine.load(params, 0)
    engine.submit(request)
    events = finish(engine)
    (tokens, logps), given = results(events)["r"], [logp for event in events for logp in event.prompt_logps]
    whole = [*request.tokens, *tokens]
    wanted = np.asarray(jax.nn.log_softmax(forward(params, np.array([whole]), config).logits[0]))
    np.testing.assert_allclose([*given, *logps], wanted[np.arange(len(whole) - 1), whole[1:]], rtol=0, atol=1e-12)
