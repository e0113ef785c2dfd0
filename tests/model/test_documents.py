"""Documents do not see each other, the future, or padding: one compiled program, many contents."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax import model
from ling_jax.model.transformer import loss_sums
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

ROWS, LENGTH = 4, 20
CONFIG = tiny_config(mtp_depth=2, compute_dtype="float64")
SAME = 1e-10  # float64, values up to ~10, sums in another order

# float64 is switched on for a whole test, which is what the health check would warn of.
many = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def program():
    def run(params, tokens, segment_ids):
        sums, _ = loss_sums(params, tokens, tokens, CONFIG, segment_ids=segment_ids)
        return model.forward(params, tokens, CONFIG, segment_ids=segment_ids), sums

    return quick_jit(run)


@functools.cache
def random_weights():
    return random_params(CONFIG)


def run(tokens, segment_ids, params=None):
    params = random_weights() if params is None else params
    return jax.device_get(program()(params, tokens, segment_ids))


def random_tokens(seed):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (ROWS, LENGTH)).astype(np.int32)


def every_head(out):
    return [out.logits, *out.mtp_logits]


@st.composite
def documents(draw):
    """One to ROWS documents of a row, as (first token, length): padding before, between and after, or none."""
    row, end = [], 0
    for _ in range(draw(st.integers(1, ROWS))):
        first, length = end + draw(st.integers(0, 2)), draw(st.integers(1, 9))
        end = first + length
        if end <= LENGTH:
            row.append((first, length))
    return row


@st.composite
def segment_rows(draw):
    """Ids in any order, repeated ones, padding anywhere."""
    rng = np.random.default_rng(draw(seeds))
    rows = [np.repeat(rng.integers(0, 4, LENGTH), rng.integers(1, 9, LENGTH))[:LENGTH] for _ in range(ROWS)]
    return np.stack(rows).astype(np.int32)


@given(row=documents(), ids=st.permutations([1, 2, 3, 9]), seed=seeds)
@many
def test_packed_equals_alone(x64, row, ids, seed):
    tokens = random_tokens(seed)
    packed, packed_ids = random_tokens(seed + 1), np.zeros((ROWS, LENGTH), np.int32)
    alone_ids = np.zeros((ROWS, LENGTH), np.int32)
    for number, (first, length) in enumerate(row):
        packed[0, first : first + length] = tokens[number, :length]
        packed_ids[0, first : first + length] = ids[number]
        alone_ids[number, :length] = 1
    (together, packed_sums), (apart, sums) = run(packed, packed_ids), run(tokens, alone_ids)
    for number, (first, length) in enumerate(row):
        for head, (logits, wanted) in enumerate(zip(every_head(together), every_head(apart), strict=True)):
            np.testing.assert_allclose(
                logits[0, first : first + length],
                wanted[number, :length],
                rtol=0,
                atol=SAME,
                err_msg=f"head {head}, document {number}",
            )
    for name, found, wanted in zip(sums._fields, packed_sums, sums, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=SAME, err_msg=name)
    np.testing.assert_array_equal(together.router.loads, apart.router.loads)


@given(segment_ids=segment_rows(), seed=seeds, place=st.integers(0, LENGTH - 1))
@many
def test_no_token_attends_to_later_tokens(x64, segment_ids, seed, place):
    tokens = random_tokens(seed)
    changed = tokens.copy()
    changed[:, place] = (tokens[:, place] + 1) % CONFIG.vocab_size
    (before, _), (after, _) = run(tokens, segment_ids), run(changed, segment_ids)
    live = segment_ids > 0
    for ahead, (logits, wanted) in enumerate(zip(every_head(after), every_head(before), strict=True)):
        past = live & (np.arange(LENGTH) + ahead < place)  # an MTP head of depth d has read the token t + d
        np.testing.assert_allclose(logits[past], wanted[past], rtol=0, atol=SAME, err_msg=f"head {ahead}")
    here = live[:, place]
    assert (np.abs(after.logits - before.logits)[here, place].max(axis=-1) > 1e-6).all()


@given(segment_ids=segment_rows(), seed=seeds)
@many
def test_padding_tokens_do_not_change_the_result(x64, segment_ids, seed):
    tokens, live = random_tokens(seed), segment_ids > 0
    other = np.where(live, tokens, random_tokens(seed + 1))
    (before, sums), (after, other_sums) = run(tokens, segment_ids), run(other, segment_ids)
    for logits, wanted in zip(every_head(after), every_head(before), strict=True):
        np.testing.assert_allclose(logits[live], wanted[live], rtol=0, atol=SAME)
    for name, found, wanted in zip(sums._fields, other_sums, sums, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(after.router.loads, before.router.loads)


def biased_params(kind, seed):
    """Routers of all layers: even, drawn to one expert, or with logits so large that scores are 0 or 1."""
    rng = np.random.default_rng(seed)
    bias = np.zeros(CONFIG.num_experts)
    bias[rng.integers(CONFIG.num_experts)] = 100.0 if kind == "one expert" else 0.0
    scale = {"uniform": 0.0, "one expert": 1.0, "saturated": 1e3}[kind]

    def leaf(path, value):
        name = path[-1].key
        return bias + 0 * value if name == "expert_bias" else value * scale if name == "router" else value

    return jax.tree_util.tree_map_with_path(leaf, random_weights())


@given(segment_ids=segment_rows(), seed=seeds, kind=st.sampled_from(["uniform", "one expert", "saturated"]))
@many
def test_no_token_is_dropped_and_loads_count_live_tokens(x64, segment_ids, seed, kind):
    out, sums = run(random_tokens(seed), segment_ids, biased_params(kind, seed))
    live = segment_ids > 0
    assert not out.router.drops.any()
    assert (out.router.loads.sum(axis=-1) == live.sum() * CONFIG.top_k).all()
    assert sums.live_count == live.sum()
    for loads, index in zip(out.router.loads, out.router.expert_index, strict=True):
        np.testing.assert_array_equal(loads, np.bincount(index[live].reshape(-1), minlength=CONFIG.num_experts))
        assert (np.diff(np.sort(index, axis=-1), axis=-1) > 0).all()  # no expert twice
    if kind == "one expert":
        assert (out.router.loads.max(axis=-1) == live.sum()).all()
    assert all(np.isfinite(logits[live]).all() for logits in every_head(out))


def test_without_segment_ids_every_row_is_one_document(x64):
    tokens = random_tokens(0)
    wanted, _ = run(tokens, np.ones_like(tokens))
    found = quick_jit(model.forward, static_argnums=2)(random_weights(), tokens, CONFIG)
    for depth, (logits, expected) in enumerate(zip(every_head(found), every_head(wanted), strict=True)):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=SAME, err_msg=f"head {depth}")


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ((2, 5), dict(positions=(2, 6)), r"positions is \(2, 6\); expected \(2, 5\)"),
        ((2, 5), dict(segment_ids=(5,)), r"segment_ids is \(5,\); expected \(2, 5\)"),
        ((5,), {}, r"tokens are \(5,\); expected \[B, T\]"),
        ((1, CONFIG.max_length + 1), {}, "at most max_length 512"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(tokens, options, message):
    arrays = {name: np.zeros(shape, np.int32) for name, shape in options.items()}
    with pytest.raises(ValueError, match=message):
        model.forward({}, np.zeros(tokens, np.int32), CONFIG, **arrays)
