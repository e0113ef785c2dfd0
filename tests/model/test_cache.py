"""Reading a prefix into a cache and going on from it gives what one forward pass gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax import model
from ling_jax.config import model_config
from ling_jax.model.layers import layer_numbers
from tests.helpers.golden_numbers import LOGITS, golden_models, load_fixture, quick_jit
from tests.helpers.slow import slow_but
from tests.helpers.tiny import FAMILIES, random_params, tiny_config

forward = quick_jit(model.forward, static_argnums=2)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", golden_models(having="decode.npz"))
def test_official_decoding(golden, x64, name, dtype):
    params, config, _, _ = load_fixture(golden / name, dtype)
    decode = dict(np.load(golden / name / "decode.npz"))
    tokens, prefix = decode["input_ids"], int(decode["prefill_len"])
    out = forward(params, tokens[:, :prefix], config, cache=model.init_cache(config, *tokens.shape))
    states = states_of(out.cache, config)
    for key in decode:
        if key.startswith("prefill_state."):
            state = states[int(key.split(".")[1])]  # the official one is stored in float32
            np.testing.assert_allclose(
                state, decode[key], rtol=1e-4 if dtype == "float32" else 1e-6, atol=1e-3 if dtype == "float32" else 1e-5
            )
    logits = [out.logits]
    for t in range(prefix, tokens.shape[1]):
        out = forward(params, tokens[:, t : t + 1], config, cache=out.cache)
        logits.append(out.logits)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), decode["logits"], rtol=0, atol=LOGITS[dtype])


def states_of(cache, config):
    """{layer: Lightning state [B, H, K, V]}."""
    return {
        int(number): np.asarray(cache.layers[segment][run]["state"][place])
        for (segment, run), numbers in layer_numbers(config).items()
        if "state" in cache.layers[segment][run]
        for place, number in np.ndenumerate(numbers)
    }


@functools.cache
def family(name, dtype="float32", chunk=8):
    config = tiny_config(name, compute_dtype=dtype, remat="none", lightning_chunk=chunk)
    return random_params(config, dtype=dtype), config


@functools.cache
def named(name, chunk):
    """Eight heads share a norm group, as in the released 2.6 models. With one head a group the norm of a first token
    divides by q·k, which may be as good as 0: float32 itself is then 1e-4 off."""
    heads = dict(num_heads=8, head_dim=16, rotary_dim=8, num_norm_groups=1)
    config = model_config(name, mtp_depth=0, lightning_chunk=chunk, **heads)
    return model.init(jax.random.key(0), config), config


def pieces_of(split):
    """Rows of different lengths, padded to either side at first, then read on in pieces of any size."""
    return given(
        seed=st.integers(0, 99),
        splits=st.lists(st.sampled_from([1, 3, 8]), min_size=1, max_size=4),
        left=st.booleans(),
        chunk=st.sampled_from([4, 8]),
    )(settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])(split))


@pytest.mark.parametrize("name", slow_but(FAMILIES, "2.6"))
@pieces_of
def test_decode_equals_forward(x64, name, seed, splits, left, chunk):
    """In float64, where only a wrong sum shows."""
    compare_with_forward(*family(name, "float64", chunk), seed, splits, left, tolerance=1e-10)


@pytest.mark.parametrize("name", slow_but(["tiny-2.6", "tiny-linear-2.0", "tiny-2.0"], None))
@pieces_of
def test_decode_equals_forward_in_float32(name, seed, splits, left, chunk):
    compare_with_forward(*named(name, chunk), seed, splits, left, tolerance=1e-5)


def compare_with_forward(params, config, seed, splits, left, tolerance):
    rng = np.random.default_rng(seed)
    first, rest = 8, sum(splits)
    tokens = rng.integers(0, config.vocab_size, (3, first + rest))
    lengths = rng.integers(1, first + 1, 3)
    segment_ids = (np.arange(first) >= first - lengths[:, None]) if left else (np.arange(first) < lengths[:, None])
    cache = model.init_cache(config, 3, first + 32)
    out = forward(params, tokens[:, :first], config, segment_ids=segment_ids.astype(np.int32), cache=cache)
    pieces, at = [out.logits], first
    for size in splits:
        out = forward(params, tokens[:, at : at + size], config, cache=out.cache)
        pieces.append(out.logits)
        at += size
    logps = jax.nn.log_softmax(jnp.concatenate(pieces, axis=1))
    live = np.concatenate([segment_ids, np.ones((3, rest), bool)], axis=1)
    np.testing.assert_array_equal(out.cache.length, live.sum(axis=1))
    alone = np.zeros((3, first + 33), int)  # always so long: one program
    for row in range(3):
        alone[row, : live[row].sum()] = tokens[row, live[row]]
    wanted = jax.nn.log_softmax(forward(params, alone, config).logits)
    for row in range(3):
        found = logps[row, live[row]]
        np.testing.assert_allclose(found, wanted[row, : len(found)], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", slow_but(FAMILIES, "2.6"))
def test_an_idle_row_stays_as_it_is(name):
    params, config = family(name)
    tokens = np.arange(12).reshape(2, 6)
    cache = forward(params, tokens, config, cache=model.init_cache(config, 2, 16)).cache
    after = forward(params, tokens, config, segment_ids=np.array([[1] * 6, [0] * 6]), cache=cache).cache
    assert after.length.tolist() == [12, 6]
    for old, new in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(after.layers), strict=True):
        np.testing.assert_array_equal(old[:, :, 1], new[:, :, 1])


def test_the_cache_of_the_flash_model_is_small():
    """28 Lightning states in float32 and 4 latents of 576 numbers a token, in bfloat16."""
    config = model_config("ling-2.6-flash")
    cache = jax.eval_shape(lambda: model.init_cache(config, 1, 4096))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers)]
    assert sum(sizes) == 28 * 32 * 128 * 128 * 4 + 4 * 4096 * 576 * 2


@pytest.mark.parametrize(("max_length", "length", "message"), [(999, 1, "context is 512"), (4, 5, "room for 4 tokens")])
def test_too_many_tokens_are_refused(max_length, length, message):
    params, config = family("2.6")
    with pytest.raises(ValueError, match=message):
        model.forward(params, np.zeros((1, length), int), config, cache=model.init_cache(config, 1, max_length))
