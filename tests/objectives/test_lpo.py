import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import lpo_loss
from ling_jax.objectives.segments import segment_ratio
from ling_jax.objectives.tokens import loss_tokens, surrogate
from tests.helpers.objective_numbers import BOTH, close, evaluate, load, objective


def arrays_of(numbers):
    return numbers["logp"], numbers["logp_old"], None, numbers["adv"], numbers["loss_mask"]


@BOTH
def test_value_and_gradient_are_the_expected(golden, dtype):
    numbers = load(golden, "lpo")
    options = dict(sentence_ids=numbers["sentence_id"], clip=float(numbers["eps"]), group_size=4)
    value, grad, _ = objective(lpo_loss, dtype, *arrays_of(numbers), **options)
    close(value, numbers["J"], dtype)
    close(grad, numbers["grad"], dtype)
    np.testing.assert_array_equal(grad == 0, numbers["grad"] == 0)
    for group, wanted in enumerate(numbers["J_group"]):
        rows = slice(4 * group, 4 * group + 4)
        alone = [None if x is None else x[rows] for x in arrays_of(numbers)]
        options["sentence_ids"] = numbers["sentence_id"][rows]
        close(objective(lpo_loss, dtype, *alone, **options)[0], wanted, dtype)


@BOTH
def test_ratios_and_terms_of_sentences_are_the_expected(golden, dtype):
    numbers = load(golden, "lpo")

    def ratios_and_terms(policy, old, advantages, mask, sentence_ids):
        tokens = loss_tokens("lpo", policy, old, None, advantages, mask)
        ratio = segment_ratio(tokens, sentence_ids)
        return ratio, surrogate(ratio, tokens.advantages, 0.03, 0.03)[0]

    policy, old, _, advantages, mask = arrays_of(numbers)
    ratio, terms = evaluate(ratios_and_terms, dtype, policy, old, advantages, mask, numbers["sentence_id"])
    close(ratio[mask], numbers["ratio_token"][mask], dtype)
    close(terms, numbers["per_token"], dtype)


@given(seed=st.integers(0, 2**32 - 1))
def test_sentence_ids_are_arbitrary_labels(seed):
    """Any other numbers, in any order, far above T or under 0, and any at tokens without loss."""
    rng = np.random.default_rng(seed)
    policy, old = -rng.exponential(1.0, (2, 4, 6)).astype(np.float32)
    mask, ids = rng.random((4, 6)) < 0.7, rng.integers(0, 4, (4, 6))
    names = rng.permutation(np.array([-7, 5, 2**31 - 1, 3, 0, 10**6]))[:4]
    renamed = np.where(mask, names[ids], rng.integers(-3, 9, ids.shape))
    arrays = (policy, old, None, rng.normal(size=4), mask)
    first = objective(lpo_loss, "float32", *arrays, sentence_ids=ids.astype(np.int32), group_size=2)
    second = objective(lpo_loss, "float32", *arrays, sentence_ids=renamed.astype(np.int32), group_size=2)
    for a, b in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # sums in another order


@pytest.mark.parametrize(
    ("ids", "group_size", "message"),
    [
        (None, 2, "lpo: sentence_ids is missing"),
        (np.zeros((2, 4), int), 2, r"lpo: sentence_ids has shape \(2, 4\)"),
        (np.zeros((2, 3)), 2, "lpo: sentence_ids is of float32; expected integers"),
        (np.zeros((2, 3), int), 3, "lpo: 2 rows make no whole groups of group_size 3"),
        (np.zeros((2, 3), int), 0, "group_size 0"),
    ],
)
def test_bad_input_is_named(ids, group_size, message):
    x = np.zeros((2, 3), np.float32)
    ids = ids.astype(np.float32) if ids is not None and ids.dtype.kind == "f" else ids
    with pytest.raises(ValueError, match=message):
        lpo_loss(x, x, None, np.zeros(2), x, sentence_ids=ids, group_size=group_size)
