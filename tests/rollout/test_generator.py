import dataclasses
import functools

import jax
import numpy as np
import pytest

from ling_jax import model
from ling_jax.rollout import Generator
from tests.helpers.golden_numbers import QUICK, quick_jit
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(compute_dtype="float32", remat="none")
PARAMS = random_params(CONFIG, dtype="float32", std=0.2)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]


def quick_generator(end_ids):
    """The real programs, compiled without LLVM's optimiser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        return Generator(PARAMS, CONFIG, end_ids)


@pytest.fixture(scope="module")
def generator():
    return quick_generator(end_ids={0})


def last(pieces):
    *_, results = pieces
    return results


def test_greedy_tokens_are_the_likeliest_of_the_forward_pass(generator):
    forward = quick_jit(model.forward, static_argnums=2)
    for prompt, result in zip(PROMPTS, last(generator(PROMPTS, max_new_tokens=33, temperature=0.0)), strict=True):
        whole = [*prompt, *result.tokens]
        logps = jax.nn.log_softmax(forward(PARAMS, np.array([whole + [0] * (40 - len(whole))]), CONFIG).logits[0])
        at = np.arange(len(prompt) - 1, len(whole) - 1)
        np.testing.assert_allclose(logps[at].max(axis=-1), result.logps, atol=1e-5)
        np.testing.assert_allclose(logps[at, result.tokens], result.logps, atol=1e-5)
        assert result.done and (len(result.tokens) == 33 or result.tokens[-1] == 0)


def test_a_row_draws_the_same_whatever_else_is_in_the_batch(generator):
    together = last(generator(PROMPTS, max_new_tokens=33, seeds=[7, 8, 9]))
    for prompt, seed, result in zip(PROMPTS, [7, 8, 9], together, strict=True):
        (alone,) = last(generator([prompt], max_new_tokens=33, seeds=[seed]))
        assert alone.tokens == result.tokens
    assert last(generator(PROMPTS, max_new_tokens=33, seeds=[17, 18, 19]))[0].tokens != together[0].tokens


def test_results_grow_by_pieces_and_end_where_asked(generator):
    pieces = list(generator([[1, 2]], max_new_tokens=33, temperature=0.0))
    assert [len(piece[0].tokens) for piece in pieces] == [16, 32, 33]
    tokens = pieces[-1][0].tokens
    assert all(tokens[: len(piece[0].tokens)] == piece[0].tokens for piece in pieces)
    stop = lambda row, so_far: len(so_far) == 5  # noqa: E731
    assert last(generator([[1, 2]], max_new_tokens=33, temperature=0.0, stopped=stop))[0].tokens == tokens[:5]
    first = tokens.index(tokens[3])
    ending = quick_generator(end_ids={tokens[3]})
    assert last(ending([[1, 2]], max_new_tokens=33, temperature=0.0))[0].tokens == tokens[: first + 1]


def test_no_program_is_compiled_twice_for_prompts_of_one_bucket():
    generator = quick_generator(end_ids={0})
    last(generator([[1, 2, 3]] * 3, max_new_tokens=40))
    compiled = generator.programs()
    for length in (1, 7, 16):
        for temperature, top_p in ((0.0, 1.0), (0.7, 0.9), (1.3, 1.0)):
            last(generator([[1] * length] * 4, max_new_tokens=40, temperature=temperature, top_p=top_p, seeds=[3] * 4))
    assert generator.programs() == compiled == 2


def test_a_prompt_may_fill_a_context_that_is_no_power_of_two():
    config = dataclasses.replace(CONFIG, max_length=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
        generator = Generator(PARAMS, config, {0})
    assert len(last(generator([[1] * 92], max_new_tokens=8, temperature=0.0))[0].tokens) <= 8


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 3, "0 prompts"),
        ([[1], []], 3, "prompt 1 has no tokens"),
        ([[1, 40]], 3, "prompt 0 has token 40; the vocabulary has 40"),
        ([[5, -1]], 3, "prompt 0 has token -1; the vocabulary has 40"),
        ([[1] * 500], 13, "500 tokens and 13 new ones pass the model's context of 512"),
        ([[1]], 0, "max_new_tokens 0"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(generator, prompts, new, message):
    with pytest.raises(ValueError, match=message):
        next(generator(prompts, max_new_tokens=new))


def test_a_row_may_fill_the_whole_context(generator):
    (result,) = last(generator([[1] * 490], max_new_tokens=22, temperature=0.0))
    assert result.done and len(result.tokens) <= 22
