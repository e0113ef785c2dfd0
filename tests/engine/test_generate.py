import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.data import train_bpe
from ling_jax.engine import Request
from ling_jax.engine.generate import engine_for, events_of, generate
from ling_jax.engine.text import complete, stream
from tests.helpers.engine_requests import CONFIG, PARAMS, PROMPTS, requests
from tests.helpers.golden_numbers import quick_jit

TOKENIZER = train_bpe([], 263)


@pytest.fixture(scope="module")
def engine():
    return engine_for(PARAMS, CONFIG, PROMPTS, max_new_tokens=33, slots=2)


def test_greedy_tokens_are_the_likeliest_of_the_forward_pass(engine):
    forward = quick_jit(model.forward, static_argnums=2)
    for prompt, answer in zip(PROMPTS, generate(engine, requests(temperature=0.0)), strict=True):
        whole = [*prompt, *answer.tokens]
        logps = jax.nn.log_softmax(forward(PARAMS, np.array([whole + [0] * (40 - len(whole))]), CONFIG).logits[0])
        at = np.arange(len(prompt) - 1, len(whole) - 1)
        np.testing.assert_allclose(logps[at].max(axis=-1), answer.logps, atol=1e-5)
        np.testing.assert_allclose(logps[at, answer.tokens], answer.logps, atol=1e-5)
        assert answer.finish_reason == "length" and len(answer.tokens) == 33


def test_any_number_of_requests_is_answered_in_their_order(engine):
    asked = requests(PROMPTS * 7, 5)
    answers = list(generate(engine, iter(asked)))
    assert len(answers) == 21 and not engine.busy and not engine.ids
    alone = [next(generate(engine, [request])) for request in asked[:3]]
    assert [answer.tokens for answer in answers[:3]] == [answer.tokens for answer in alone]


def test_a_request_that_its_caller_releases_ends(engine):
    lengths = {}
    for number, event in events_of(engine, requests(count=33)):
        lengths[number] = lengths.get(number, 0) + len(event.tokens)
        if number == 1:
            engine.release(1)
    assert lengths[1] < 33 == lengths[0] == lengths[2] and not engine.ids


def test_texts_come_whole_in_order_or_piece_by_piece(engine):
    whole = list(complete(engine, TOKENIZER, requests(temperature=1.0)))
    assert [answer.ended for answer in whole] == ["length"] * 3
    *pieces, last = [text.text for text in stream(engine, TOKENIZER, requests(temperature=1.0)[0])]
    assert last == whole[0].text and len(pieces) >= 2 and all(last.startswith(piece) for piece in pieces)
    stop = whole[0].text[5:7]
    cut, *others = complete(engine, TOKENIZER, requests(temperature=1.0), [stop])
    assert cut.ended == "stop" and cut.text == whole[0].text.partition(stop)[0] and len(others) == 2
    assert not engine.ids


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 3, "0 prompts"),
        ([[1], []], 3, "prompt 1: there are no tokens"),
        ([[1, 400]], 3, "prompt 0: token 400 is not in the vocabulary of 263"),
        ([[5, -1]], 3, "prompt 0: token -1 is not in the vocabulary"),
        ([[1] * 500], 13, "prompt 0: 500 tokens and 13 new ones pass the model's context of 512"),
        ([[1]], 0, "max_new_tokens 0"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        engine_for(PARAMS, CONFIG, prompts, max_new_tokens=new)


def test_a_request_that_cannot_be_served_is_an_error_that_names_it(engine):
    with pytest.raises(ValueError, match="request 'long': 600 tokens of context"):
        list(generate(engine, [Request("long", [1] * 600, 3, seed=0)]))
