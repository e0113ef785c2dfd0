"""What one optimisation step promises, whatever the objective."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ling_jax import spec
from ling_jax.model.loss import head_logits
from ling_jax.model.recorded_experts import empty_experts, pack_experts
from ling_jax.model.transformer import hidden_states, make_token_info
from ling_jax.objectives import calibrate_phi, kpop_loss, reference_kl
from ling_jax.rl.batch import Layout, pack, unpack
from ling_jax.rl.config import ObjectiveConfig, ObjectiveOptions
from ling_jax.rl.loss import make_loss
from ling_jax.rl.step import make_rl_step, make_scorer
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_batch import ALONE, CONFIG, LENGTH, OPTIMIZER, logps_of, padded, random_answers, state
from tests.helpers.slow import slow_but

# Six answers in rows of their own, in microbatches smaller than a group, and several in a row.
LAYOUTS = {"alone": ALONE, "microbatches": Layout(6, 1, LENGTH), "packed": Layout(3, 2, 2 * LENGTH)}
OBJECTIVES = ("grpo", "gspo", "lpo", "icepop", "kpop", "tis")


@functools.cache
def loss_of(name="kpop", **objective):
    return make_loss(ObjectiveConfig(**({"name": name} | objective)), group_size=2)


@functools.cache
def step(name="kpop", **objective):
    return quick_jit(make_rl_step(CONFIG, OPTIMIZER, loss_of(name, **objective)))


def packed(answers, layout=ALONE, name="kpop", floats=(), **objective):
    loss = loss_of(name, **objective)
    return pack(answers, layout, loss.normaliser, loss.reference_normaliser, floats)


def assert_same(found, wanted, *, tolerance=0.0):
    for (name, leaf), other in zip(spec.named_leaves(found).items(), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=tolerance, err_msg=name)


def test_the_loss_is_the_objective_of_a_plain_forward_pass():
    answers = random_answers()
    mask = padded(answers, "mask")[:, 1:]
    logps, entropies = logps_of()(state().params, padded(answers, "tokens"))
    advantages = np.array([answer.advantage for answer in answers], np.float32)
    wanted, named = kpop_loss(logps, logps, padded(answers, "behaviour_logps")[:, 1:], advantages, mask)
    _, metrics = step()(state(), packed(answers))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)  # float32, in another order
    np.testing.assert_allclose(metrics["mismatch/mean"], named["mismatch/mean"], rtol=1e-4)
    np.testing.assert_allclose(metrics["masked_fraction"], named["masked_fraction"])
    assert 0 < metrics["masked_fraction"] < 1
    np.testing.assert_allclose(metrics["entropy"], np.asarray(entropies)[mask].mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    slow_but(itertools.product(OBJECTIVES, ("microbatches", "packed")), ("lpo", "microbatches"), ("kpop", "packed")),
)
def test_a_batch_is_the_same_in_every_layout(name, layout):
    """With answers of unequal lengths, a group with one answer, and old log-probs that make ratios and clips act: a
    wrong denominator, or an answer that sees its neighbour, would show."""
    answers = random_answers(old=True)[:3] + random_answers(old=True)[4:]
    (whole, metrics), (parts, others) = (
        step(name)(state(), packed(answers, LAYOUTS[key], name, ("old_logps",))) for key in ("alone", layout)
    )
    assert metrics.keys() == others.keys()
    for metric in metrics:
        np.testing.assert_allclose(metrics[metric], others[metric], rtol=2e-4, atol=2e-6, err_msg=metric)
    assert_same(whole.opt_state, parts.opt_state, tolerance=1e-6)


def with_experts(answers):
    """Random records of all tokens but the last one, or the last few: these choose by themselves."""
    rng, empty = np.random.default_rng(1), empty_experts(1, LENGTH, CONFIG)[0]
    recorded = []
    for i, answer in enumerate(answers):
        count = len(answer) - 1 - i % 3
        chosen = np.argsort(rng.random((*empty.shape[:2], CONFIG.num_experts)), axis=-1)[..., : CONFIG.top_k]
        recorded.append(dataclasses.replace(answer, experts=chosen[:count].astype(empty.dtype)))
    return recorded


def test_recorded_experts_are_of_their_own_answers_in_packed_rows():
    """Each token goes where its record says, as in a row of its own; one answer has no records."""
    answers, layout = random_answers(), LAYOUTS["packed"]
    recorded = [*with_experts(answers)[:5], answers[5]]
    batch = pack(recorded, layout, replays=CONFIG)
    scores = quick_jit(make_scorer(CONFIG))(state().params, batch)
    records = [batch.experts[0, 0, :0] if answer.experts is None else answer.experts for answer in recorded]
    tokens = padded(answers, "tokens")
    wanted = logps_with_experts(state().params, tokens, pack_experts(records, CONFIG, LENGTH))
    plain = logps_of()(state().params, tokens)[0]
    for i, found in enumerate(unpack(np.asarray(scores), recorded, layout)):
        mask = answers[i].mask[1:]
        np.testing.assert_allclose(found[1:][mask], wanted[i, : len(mask)][mask], atol=5e-6)  # float32 on a CPU
        difference = np.abs(found[1:] - plain[i, : len(mask)])[mask].max()
        assert difference > 1e-3 if recorded[i].experts is not None else difference < 1e-5


@quick_jit
def logps_with_experts(params, tokens, experts):
    """[B, T - 1]: log-probs of the tokens from the second on, one answer a row, which goes to these experts."""
    config = dataclasses.replace(CONFIG, mtp_depth=0)
    hidden, _, _ = hidden_states(params, tokens, make_token_info(tokens, config), config, experts=experts)
    every = jax.nn.log_softmax(head_logits(params["head"], hidden)[:, :-1], axis=-1)
    return jnp.take_along_axis(every, tokens[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.slow
def test_a_step_with_recorded_experts_is_the_same_in_every_layout():
    answers = with_experts(random_answers(old=True))
    results = []
    for layout in LAYOUTS.values():
        batch = pack(answers, layout, loss_of().normaliser, None, ("old_logps",), CONFIG)
        results.append(step()(state(), batch))
    for after, metrics in results[1:]:
        for metric, value in results[0][1].items():
            np.testing.assert_allclose(metrics[metric], value, rtol=2e-4, atol=2e-6, err_msg=metric)
        assert_same(after.opt_state, results[0][0].opt_state, tolerance=1e-6)
    _, plain = step()(state(), packed(random_answers(old=True), floats=("old_logps",)))
    assert abs(plain["loss"] - results[0][1]["loss"]) > 1e-4


def test_microbatches_without_answers_are_not_computed_and_change_nothing():
    answers = random_answers()
    few, many = packed(answers, Layout(2, 3, LENGTH)), packed(answers, Layout(4, 3, LENGTH))
    assert few.count == many.count == 2
    poisoned = many.replace(tokens=many.tokens.copy(), weights=many.weights.copy())
    poisoned.weights[2:] = np.nan
    (state_few, metrics), (state_many, others) = step()(state(), few), step()(state(), poisoned)
    assert metrics["loss"] == others["loss"] and metrics["grad_norm"] == others["grad_norm"]
    assert_same(state_few.params, state_many.params)


def test_what_is_fresh_is_measured_alone():
    answers = random_answers()
    logps = np.asarray(logps_of()(state().params, padded(answers, "tokens"))[0])
    fresh = padded(answers, "mask")[:, 1:] & (padded(answers, "ages")[:, 1:] == 0)
    _, metrics = step()(state(), packed(answers))
    differences = np.abs(logps - padded(answers, "behaviour_logps")[:, 1:])[fresh]
    np.testing.assert_allclose(metrics["mismatch_same_version/max"], differences.max(), rtol=1e-4)
    assert metrics["mismatch_same_version/far"] == (differences > 1e-4).sum() > 0
    assert metrics["mismatch_same_version/tokens"] == fresh.sum() and metrics["staleness/max"] == 2
    assert metrics["loss_tokens"] == padded(answers, "mask").sum()
    assert metrics["tokens"] == sum(map(len, answers))


def test_only_what_gradients_train_moves():
    """The router's bias and the MTP heads stay; what is frozen has no state in the optimizer."""
    after, _ = step()(state(), packed(random_answers()))
    moved = {
        name
        for (name, leaf), old in zip(
            spec.named_leaves(after.params).items(), jax.tree.leaves(state().params), strict=True
        )
        if not np.array_equal(leaf, old)
    }
    still = spec.named_leaves(after.params).keys() - moved
    assert still == {name for name in still if name.startswith("mtp/") or name.endswith("expert_bias")}
    assert moved and any(name.endswith("expert_bias") for name in still)
    kept = spec.named_leaves(after.opt_state)
    assert not any("mtp" in name or "expert_bias" in name for name in kept)


def test_padding_and_masked_positions_do_not_matter():
    batch, poisoned = packed(random_answers()), packed(random_answers())
    dead = batch.segment_ids == 0
    poisoned.tokens[dead] = 7
    for array in (poisoned.behaviour_logps, poisoned.ages, poisoned.sentence_ids):
        array[~batch.mask] = -77
    for array in (poisoned.behaviour_logps, poisoned.weights, poisoned.advantages):
        array[dead] = np.nan
    (after, metrics), (other, others) = step()(state(), batch), step()(state(), poisoned)
    assert metrics["loss"] == others["loss"] and metrics["entropy"] == others["entropy"]
    assert_same(after.params, other.params, tolerance=1e-6)  # experts share their tiles with padding


@pytest.mark.parametrize(
    ("field", "value"), [("advantage", np.nan), ("advantage", np.inf), ("mask", np.zeros), ("none", None)], ids=str
)
def test_a_bad_step_changes_nothing_and_is_counted(field, value):
    """Numbers that are not finite, and a batch without loss tokens: with it, AdamW would still decay the weights."""
    answers = random_answers()
    if field == "mask":
        answers = [dataclasses.replace(a, mask=np.zeros(len(a), bool)) for a in answers]
    else:
        answers = [dataclasses.replace(a, advantage=value) for a in answers] if field == "advantage" else []
    after, metrics = step()(state(), packed(answers))
    assert metrics["nonfinite"] and after.skipped_steps == 1 and after.step == 1
    assert_same((after.params, after.opt_state), (state().params, state().opt_state))


@pytest.mark.parametrize("layout", slow_but(LAYOUTS, "packed"))
def test_old_and_reference_log_probs_and_phi_are_those_of_the_whole_batch(layout):
    """In microbatches, and packed: ratio and clip are to the weights before the first step on the batch, phi drops a
    share of all tokens, and the penalty is a mean over the answers."""
    answers = random_answers(old=True, reference=True)[:5]
    logps = logps_of()(state().params, padded(answers, "tokens"))[0]
    old, reference, behaviour = (padded(answers, f"{name}_logps")[:, 1:] for name in ("old", "reference", "behaviour"))
    mask = padded(answers, "mask")[:, 1:]
    phi = calibrate_phi(old, behaviour, mask, 0.3)
    advantages = np.array([answer.advantage for answer in answers], np.float32)
    loss, named = kpop_loss(logps, old, behaviour, advantages, mask, phi=phi)
    penalty, of_reference = reference_kl(logps, reference, mask, coefficient=0.3)
    floats = ("old_logps", "reference_logps", "reference_weights")
    batch = packed(answers, LAYOUTS[layout], "kpop", floats, calibrate_phi=0.3, reference_kl=0.3)
    _, metrics = step("kpop", calibrate_phi=0.3, reference_kl=0.3)(state(), batch)
    np.testing.assert_allclose(metrics["loss"], loss + penalty, rtol=1e-4)
    for name, value in (named | of_reference | {"phi": phi}).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0 < metrics["clip_fraction"] < 1 and penalty > 0.01
    assert abs(metrics["masked_fraction"] - 0.3) * mask.sum() <= 1
    fresh = mask & (padded(answers, "ages")[:, 1:] == 0)  # what is fresh is measured with the old log-probs
    mismatch = np.abs(old - behaviour)[fresh].max()
    np.testing.assert_allclose(metrics["mismatch_same_version/max"], mismatch, rtol=1e-6)


def test_options_of_the_objective_reach_the_loss():
    answers = random_answers(old=True)
    losses = [
        step("kpop", options=ObjectiveOptions(clip=clip))(state(), packed(answers, floats=("old_logps",)))[1]["loss"]
        for clip in (0.2, 0.01)
    ]
    assert losses[0] != losses[1]
