"""The peers that the engine is timed against do the same work, and its counters count."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.bare_loop import draw_piece, plain_sampling
from benchmarks.report import Claim, Figure, finish
from benchmarks.rollout_soak import count_compilations, lognormal_requests
from benchmarks.rollout_speed import context_seconds, engine_of, torch_ratio
from ling_jax import model
from ling_jax.config import model_config
from ling_jax.engine import Request

TINY = model_config("tiny-2.6", num_layers=2, layer_group_size=2, mtp_depth=0, max_length=256)


@pytest.fixture(scope="module")
def params():
    return jax.jit(model.init, static_argnums=1)(jax.random.key(0), TINY)


def test_the_bare_loop_draws_the_tokens_of_the_engine(params):
    """Same forward pass, same draw: otherwise the ratio of their speeds says nothing."""
    engine = engine_of(params, TINY, 2, 8)
    for number in range(2):
        engine.submit(Request(number, [0], 8, seed=number))
    events = {event.id: event for event in engine.step()}
    cache = model.init_cache(TINY, 2, 8).replace(empty=False)
    _, token_PB, logp_PB = draw_piece(params, cache, np.zeros(2, np.int32), plain_sampling(2, 0), TINY)
    for number in range(2):
        assert events[number].tokens == tuple(np.asarray(token_PB)[:, number])
        np.testing.assert_allclose(events[number].logps, np.asarray(logp_PB)[:, number], atol=1e-5)


def test_the_torch_decoder_has_the_logits_of_the_model(params):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_decode import Decoder, from_jax

    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 20))
    expected = jax.jit(model.forward, static_argnums=2)(params, tokens, TINY).logits
    with torch.inference_mode():
        decoder = Decoder(from_jax(jax.device_get(params), TINY), TINY, 2, 20)
        found = [decoder.logits(torch.tensor(tokens[:, i]), i).numpy() for i in range(20)]
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=5e-5)  # float32 sums in another order


def test_compilations_are_counted():
    with count_compilations() as found:
        jax.jit(lambda x: x * 3 + 1)(np.float32(1))
    assert len(found) == 1
    jax.jit(lambda x: x * 5 + 1)(np.float32(1))
    assert len(found) == 1, "counting ended with the block"


def test_slots_behind_a_context_go_on_from_it(params):
    """The time of a long context is that of its attention: the engine must not read the context first."""
    engine = engine_of(params, TINY, 2, 128 + 24)
    seconds = context_seconds({"tiny": engine}, (16, 128), times=1)
    assert set(seconds["tiny"]) == {16, 128} and engine.steps == 6 and not engine.busy


def test_lengths_of_the_soak_are_those_that_it_states():
    lengths = [request.max_new_tokens for request in lognormal_requests(TINY, 2000)]
    assert 58 < np.mean(lengths) < 66 and max(lengths) == 512 and min(lengths) >= 1


def test_without_torch_the_ratio_is_not_measured(params, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ratio, words = torch_ratio(params, TINY, 1, times=1)
    claim = Claim("speedup_over_torch", ratio, "x", ">=", 3, words)
    assert finish([claim], "python -m benchmarks.rollout", None, figures=[Figure("load", 0.1, "s", "a copy")]) == 1
    printed = capsys.readouterr().out
    assert "not measured" in printed and "holds" not in printed and "load" in printed
    assert not dataclasses.replace(claim, sense="<=").holds
