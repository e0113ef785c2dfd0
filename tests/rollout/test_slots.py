import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ling_jax import model
from ling_jax.rollout import slots as slots_module
from ling_jax.rollout.slots import Drawn, Slots
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

# All heads share one norm group: alone, the norm of a first token divides by q·k, which may be as good as 0.
CONFIG = tiny_config(compute_dtype="float32", remat="none", num_heads=4, num_norm_groups=1, max_length=64)
PARAMS, OTHER = (random_params(CONFIG, seed=seed, dtype="float32", std=0.2) for seed in (0, 1))
END = 0
SIZES = dict(slots=3, max_length=64, end_ids={END})
forward = quick_jit(model.forward, static_argnums=2)


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
    """The real ones, compiled without LLVM's optimiser; two chunks and two joining slots, so that both go round."""
    with pytest.MonkeyPatch.context() as patch:
        decode, join = slots_module._decode, slots_module._join
        patch.setattr(slots_module, "_decode", quick_jit(decode.__wrapped__, static_argnums=(4, 5), donate_argnums=1))
        patch.setattr(slots_module, "_join", quick_jit(join.__wrapped__, static_argnums=6, donate_argnums=1))
        patch.setattr(slots_module, "CHUNK", 8)
        patch.setattr(slots_module, "JOINING", 2)
        yield


def engine(params=PARAMS, temperature=1.0, piece=5):
    slots = Slots(CONFIG, **SIZES, temperature=temperature, piece=piece)
    slots.load(params)
    return slots


def to_the_end(slots: Slots, slot: int):
    """(tokens, logps) of what the slot draws until it ends."""
    pieces = [slots.advance()[slot]]
    while not pieces[-1].ended:
        pieces.append(slots.advance()[slot])
    return joined(pieces)


def joined(pieces: list[Drawn]):
    return [token for piece in pieces for token in piece.tokens], [logp for piece in pieces for logp in piece.logps]


def alone(prompt, *, seed, limit, temperature=1.0):
    slots = engine(temperature=temperature)
    slots.put(0, prompt, seed=seed, limit=limit)
    return to_the_end(slots, 0)


def prompt_of(seed, length):
    return np.random.default_rng(seed).integers(1, CONFIG.vocab_size, length).tolist()


def forward_logps(tokens):
    """[T, W] log-probabilities of every next token, in one row of padding."""
    row = np.zeros((1, CONFIG.max_length), int)
    row[0, : len(tokens)] = tokens
    return np.asarray(jax.nn.log_softmax(forward(PARAMS, row, CONFIG).logits[0]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@given(
    slot=st.integers(0, 2),
    lengths=st.tuples(*[st.integers(1, 20)] * 3),
    joins=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pause=st.integers(0, 4),
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_depend_on_weights_and_seed_alone(temperature, slot, lengths, joins, pause):
    """Not on the slot, its earlier use, neighbours that join and leave, or a pause in which the same weights are loaded
    again. Without a pause the log-probabilities are the same to the last bit."""
    prompt, limit = prompt_of(9, lengths[0]), 25
    wanted, wanted_logps = alone(prompt, seed=7, limit=limit, temperature=temperature)
    slots = engine(temperature=temperature)
    slots.put(slot, prompt_of(8, 11), seed=3, limit=10)
    slots.advance()
    slots.drop(slot)
    slots.put(slot, prompt, seed=7, limit=limit)
    neighbours, pieces = [other for other in range(3) if other != slot], []
    while not pieces or not pieces[-1].ended:
        for neighbour, join, length in zip(neighbours, joins, lengths[1:], strict=True):
            if len(pieces) == join:
                slots.put(neighbour, prompt_of(neighbour, length), seed=neighbour, limit=3 + length)
        pieces.append(slots.advance()[slot])
        if len(pieces) == pause and not pieces[-1].ended:
            tokens, _ = joined(pieces)
            slots.load(PARAMS)
            slots.put(slot, prompt + tokens, seed=7, drawn=len(tokens), limit=limit - len(tokens))
    tokens, logps = joined(pieces)
    assert tokens == wanted and (len(tokens) == limit or tokens[-1] == END)
    np.testing.assert_allclose(logps, wanted_logps, rtol=0, atol=1e-5 if pause else 0)


def test_tokens_do_not_depend_on_the_piece():
    prompt = prompt_of(1, 6)
    slots = engine(piece=16)
    slots.put(1, prompt, seed=5, limit=33)
    assert to_the_end(slots, 1)[0] == alone(prompt, seed=5, limit=33)[0]


@given(turns=st.lists(st.tuples(st.integers(1, 10), st.integers(1, 6)), min_size=1, max_size=3))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_recorded_logps_are_those_of_a_forward_pass(turns):
    """Of every turn, in three slots whose turns differ in length; fed while others go on."""
    slots = engine()
    context, at, recorded, left = (
        [[], [], []],
        [[], [], []],
        [[], [], []],
        [iter(turns), iter(turns[::-1]), iter(turns)],
    )

    def next_turn(slot):
        if (turn := next(left[slot], None)) is None:
            return
        tokens = prompt_of(len(context[slot]), turn[0] + slot)
        if context[slot]:
            slots.feed(slot, tokens, limit=turn[1])
        else:
            slots.put(slot, tokens, seed=slot, limit=turn[1])
        context[slot] += tokens

    for slot in range(3):
        next_turn(slot)
    while pieces := slots.advance():
        for slot, piece in pieces.items():
            at[slot] += range(len(context[slot]), len(context[slot]) + len(piece.tokens))
            context[slot] += piece.tokens
            recorded[slot] += piece.logps
            if piece.ended:
                next_turn(slot)
    for slot in range(3):
        wanted = forward_logps(context[slot])[np.array(at[slot]) - 1, np.array(context[slot])[at[slot]]]
        np.testing.assert_allclose(recorded[slot], wanted, rtol=0, atol=1e-5)


def test_a_fed_slot_goes_on_as_if_all_had_been_put():
    """After a turn that ended by itself or by its limit, and in the middle of one; then under other weights."""
    prompt, observation = prompt_of(1, 10), prompt_of(2, 9)
    slots = engine()
    slots.put(2, prompt, seed=4, limit=7)
    first, _ = to_the_end(slots, 2)
    assert slots.advance() == {}
    slots.feed(2, observation, limit=5)
    middle = slots.advance()[2].tokens
    slots.feed(2, observation[:3], limit=15)
    last, logps = to_the_end(slots, 2)
    whole = prompt + first + observation + middle + observation[:3]
    drawn = len(first) + len(middle)
    slots.load(PARAMS)
    slots.put(0, whole, seed=4, drawn=drawn, limit=15)
    again, again_logps = to_the_end(slots, 0)
    assert again == last
    np.testing.assert_allclose(again_logps, logps, rtol=0, atol=1e-5)
    slots.load(OTHER)
    slots.put(0, whole, seed=4, drawn=drawn, limit=15)
    assert abs(to_the_end(slots, 0)[1][0] - logps[0]) > 1e-3


def test_a_limit_counts_from_where_it_is_given():
    slots = engine(temperature=0.0)
    slots.put(0, [1, 2], seed=3, limit=12)
    assert len(slots.advance()[0].tokens) == 5
    slots.feed(0, [5], limit=8)
    tokens, _ = to_the_end(slots, 0)
    assert len(tokens) == 8


def test_a_rollout_may_fill_its_slot():
    slots = engine(temperature=0.0)
    slots.put(0, prompt_of(3, 44), seed=0, limit=20)
    tokens, logps = to_the_end(slots, 0)
    assert len(tokens) == 20 or tokens[-1] == END
    assert np.isfinite(logps).all()


def test_nothing_is_compiled_after_the_first_round():
    slots = engine()
    slots.put(0, [1], seed=0, limit=5)
    slots.advance()
    programs = lambda: (slots_module._join._cache_size(), slots_module._decode._cache_size())  # noqa: E731
    before = programs()
    committed = jax.device_put(OTHER, jax.devices()[0])  # as a training step leaves them
    for params, temperature, length in ((OTHER, 0.0, 1), (committed, 0.7, 8), (PARAMS, 1.3, 20)):
        slots = engine(params, temperature)
        for slot in range(3):
            slots.put(slot, prompt_of(slot, length), seed=slot, limit=9 + slot)
        slots.advance()
        slots.feed(1, prompt_of(1, length), limit=4)
        slots.drop(2)
        slots.advance()
    assert programs() == before


@pytest.mark.parametrize(
    ("slot", "tokens", "options", "message"),
    [
        (1, [], {}, "slot 1: there are no tokens"),
        (1, [3, 40], {}, "token 40 is not in the vocabulary of 40"),
        (1, [-1, 3], {}, "token -1 is not in the vocabulary"),
        (1, [1] * 60, {}, "60 tokens of context and 5 new ones pass the slots' length of 64"),
        (1, [1], {"limit": 0}, "the limit is 0"),
        (1, [1], {"seed": -1}, "seed -1"),
        (1, [1], {"drawn": -1}, "drawn -1"),
        (0, [1], {}, "slot 0 is in use"),
        (3, [1], {}, "there is no slot 3"),
    ],
)
def test_bad_rollouts_are_refused_and_change_nothing(slot, tokens, options, message):
    slots = engine(temperature=0.0)
    slots.put(0, [1, 2], seed=0, limit=7)
    with pytest.raises(ValueError, match=message):
        slots.put(slot, tokens, **({"seed": 0, "limit": 5} | options))
    assert slots.advance().keys() == {0}


@pytest.mark.parametrize(
    ("slot", "tokens", "limit", "message"),
    [
        (1, [1], 1, "slot 1 is empty"),
        (0, [], 1, "there are no tokens"),
        (0, [40], 1, "token 40"),
        (0, [1], 0, "the limit is 0"),
        (0, [1] * 20, 40, "34 tokens of context and 40 new ones pass"),
    ],
)
def test_bad_feeding_is_refused_and_changes_nothing(slot, tokens, limit, message):
    slots = engine(temperature=0.0)
    slots.put(0, [1] * 10, seed=0, limit=4)
    assert len(slots.advance()[0].tokens) == 4
    with pytest.raises(ValueError, match=message):
        slots.feed(slot, tokens, limit=limit)
    assert slots.advance() == {}


def test_an_empty_slot_cannot_be_dropped():
    with pytest.raises(ValueError, match="slot 2 is empty"):
        engine().drop(2)


def test_bad_slots_are_refused():
    for sizes, message in (({"slots": 0}, "slots is 0"), ({"max_length": 65}, "the model's context is 64")):
        with pytest.raises(ValueError, match=message):
            Slots(CONFIG, **(SIZES | sizes))
    with pytest.raises(ValueError, match="load"):
        Slots(CONFIG, **SIZES).advance()
