"""Recorded experts take the place of the router's choice, and nothing else; records that cannot be are refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model.layers import experts_by_run, layer_numbers, num_moe_layers
from ling_jax.model.recorded_experts import check_experts, empty_experts, pack_experts
from ling_jax.model.transformer import chosen_experts, hidden_states, make_token_info, routers_in
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.programs import output_of
from tests.helpers.tiny import random_params, tiny_config

# A scan over three layers.
CONFIG = tiny_config("2.0", num_layers=3, first_dense_layers=0, compute_dtype="float32", remat="full")
ROWS, LENGTH = 2, 24
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, CONFIG.vocab_size, (ROWS, LENGTH))
SEGMENT_IDS = np.repeat([[1, 2, 0], [0, 3, 4]], 8, axis=1)  # packed rows with padding on either side
WEIGHT_BTD = RNG.normal(size=(ROWS, LENGTH, CONFIG.hidden_size))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, dtype="float32")


@quick_jit
def run(params, experts):
    """((a sum of the live hidden states, [chosen experts, loads, z-sums, drops]), gradients)."""

    def total(params):
        info = make_token_info(TOKENS, CONFIG, None, SEGMENT_IDS)
        hidden_BTD, _, routers = hidden_states(params, TOKENS, info, CONFIG, experts=experts)
        live_BT1 = (SEGMENT_IDS > 0)[..., None]
        value = jnp.sum(WEIGHT_BTD * jnp.where(live_BT1, hidden_BTD, 0))
        found = [(router.loads, router.z_sum, router.drops) for router in routers_in(routers)]
        return value + 1e-3 * sum(jnp.sum(z) for _, z, _ in found), (chosen_experts(routers, CONFIG), found)

    return jax.value_and_grad(total, has_aux=True)(params)


def assert_same(found, wanted, tolerance: float):
    """Values, counts and gradients; `tolerance` relative to each array's largest entry."""
    (value, (_, more)), grads = jax.device_get(found)
    (wanted_value, (_, wanted_more)), wanted_grads = jax.device_get(wanted)
    np.testing.assert_allclose(value, wanted_value, rtol=tolerance)
    for (loads, z_sum, drops), (wanted_loads, wanted_z, _) in zip(more, wanted_more, strict=True):
        np.testing.assert_array_equal(loads, wanted_loads)
        np.testing.assert_allclose(z_sum, wanted_z, rtol=tolerance)
        assert not drops.any()
    wanted_grads = spec.named_leaves(wanted_grads)
    for name, grad in spec.named_leaves(grads).items():
        atol = tolerance * np.abs(wanted_grads[name]).max()
        np.testing.assert_allclose(grad, wanted_grads[name], rtol=0, atol=atol, err_msg=name)


def test_a_replay_of_its_own_choices_is_the_same_forward_and_backward_pass(params):
    wanted = run(params, None)
    own_BTLk = np.asarray(wanted[0][1][0])
    found = run(params, own_BTLk.astype(np.int8))
    np.testing.assert_array_equal(found[0][1][0], own_BTLk)
    assert_same(found, wanted, 1e-6)  # two programs: float32 sums in another order


def test_a_replay_equals_a_router_whose_bias_forces_the_choice(params):
    """Every layer with experts of its own: their order, their weights and the router's gradients are right."""
    pairs = np.stack([RNG.permutation(CONFIG.num_experts)[: CONFIG.top_k] for _ in range(num_moe_layers(CONFIG))])
    forced = jax.tree.map(np.copy, params)
    for (segment, name), numbers in layer_numbers(CONFIG).items():
        ffn = forced["segments"][segment][name]["ffn"]
        if "expert_bias" in ffn:
            for place, number in np.ndenumerate(numbers):
                ffn["expert_bias"][place][pairs[number]] += 100
    experts_BTLk = pack_experts([np.tile(pairs, (LENGTH, 1, 1))] * ROWS, CONFIG)
    found, wanted = run(params, experts_BTLk), run(forced, None)
    np.testing.assert_array_equal(np.sort(found[0][1][0], axis=-1), np.sort(wanted[0][1][0], axis=-1))
    assert_same(found, wanted, 1e-5)  # float32: two experts' outputs are added in another order
    router_grads = [g for name, g in spec.named_leaves(found[1]).items() if name.endswith("router")]
    assert router_grads and all(np.abs(grad).max() > 0 for grad in router_grads)


def test_tokens_without_a_record_choose_by_themselves(params):
    own_BTLk = np.asarray(run(params, None)[0][1][0])
    experts_BTLk = (own_BTLk + 1) % CONFIG.num_experts
    experts_BTLk[:, ::2] = -1
    (_, (found_BTLk, _)), _ = run(params, experts_BTLk.astype(np.int8))
    np.testing.assert_array_equal(found_BTLk[:, 1::2], experts_BTLk[:, 1::2])
    np.testing.assert_array_equal(found_BTLk[:, ::2, 0], own_BTLk[:, ::2, 0])  # nothing is replayed before it
    assert_same(run(params, empty_experts(ROWS, LENGTH, CONFIG)), run(params, None), 1e-6)


@given(layers=st.integers(1, 20), group=st.integers(1, 6), dense=st.integers(0, 9))
@settings(max_examples=25)
def test_every_moe_layer_gets_its_own_experts(layers, group, dense):
    config = tiny_config(num_layers=layers, layer_group_size=group, first_dense_layers=dense)
    experts_BTLk = np.tile(np.arange(dense, layers)[:, None], (2, 3, 1, 2))
    by_run = experts_by_run(experts_BTLk, config)
    for (segment, name), numbers in layer_numbers(config).items():
        if name.endswith("moe"):
            wanted = np.broadcast_to(numbers[..., None, None, None], (*numbers.shape, 2, 3, 2))
            np.testing.assert_array_equal(by_run[segment][name], wanted)
        else:
            assert by_run[segment][name] is None
    assert not jax.tree.leaves(experts_by_run(None, config))


def test_experts_of_another_shape_are_refused(params):
    info = make_token_info(TOKENS, CONFIG)
    with pytest.raises(ValueError, match=re.escape("experts are (2, 24, 2, 2); expected (2, 24, 3, 2): rows, tokens")):
        hidden_states(params, TOKENS, info, CONFIG, experts=np.zeros((ROWS, LENGTH, 2, 2), int))


def test_records_are_packed_from_the_left_in_the_smallest_type():
    records = [RNG.permuted(np.tile(np.arange(4, dtype=np.uint16), (n, 3, 1)), axis=-1)[..., :2] for n in (3, 0, 5)]
    packed = pack_experts(records, CONFIG, 7)
    assert packed.shape == (3, 7, 3, 2) and packed.dtype == np.int8
    for row, record in zip(packed, records, strict=True):
        np.testing.assert_array_equal(row[: len(record)], record)
        assert (row[len(record) :] == -1).all()
    assert pack_experts(records, CONFIG).shape == (3, 5, 3, 2)
    with pytest.raises(ValueError, match="a record has 5 tokens; the rows have 4: make them longer, or cut"):
        pack_experts(records, CONFIG, 4)


def test_bytes_of_a_token_are_those_of_the_documentation():
    for name, expected in (("ling-2.6-1t", 1216), ("ling-2.6-flash", 496)):
        assert empty_experts(1, 1, model_config(name)).nbytes == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({(1, 2, 0): 8}, "token [1], MoE layer 2 has [8, 1]; experts are 0 to 7, or -1 in all layers of a token"),
        ({(2, 0, 1): -2}, "token [2], MoE layer 0 has [0, -2]; experts are 0 to 7"),
        ({(0, 2, 1): -1}, "token [0], MoE layer 2 has [0, -1]; experts are 0 to 7, or -1 in all layers"),
        ({(0, 1, 0): 1}, "token [0], MoE layer 1 has [1, 1]; the experts of a token are different ones"),
    ],
)
def test_a_record_that_no_router_made_is_refused(entries, message):
    experts = np.tile(np.arange(2), (3, 3, 1))
    check_experts(experts, CONFIG)
    for place, value in entries.items():
        experts[place] = value
    with pytest.raises(ValueError, match=re.escape(f"experts of row 1: {message}")):
        pack_experts([experts[:0], experts], CONFIG)


def test_a_record_of_more_groups_than_a_token_may_use_is_refused():
    config = tiny_config(top_k=3)  # two groups of two experts
    experts = np.tile(np.array([1, 6, 7]), (4, num_moe_layers(config), 1))
    check_experts(experts, config)
    experts[3, 0] = [1, 2, 7]
    with pytest.raises(ValueError, match=r"token \[3\], MoE layer 0 has \[1, 2, 7\]; .* at most 2 of 4 groups"):
        check_experts(experts, config)


@pytest.mark.parametrize("experts", [np.zeros((3, 3, 1), int), np.zeros((3, 3, 2)), np.zeros(2, int)])
def test_a_record_of_another_shape_or_type_is_refused(experts):
    with pytest.raises(ValueError, match=r"experts are \w+ \(.*\); expected integers \[\.\.\., 3, 2\]: MoE layers"):
        check_experts(experts, CONFIG)


@pytest.mark.slow
def test_every_mesh_replays_as_one_device_does():
    assert output_of("tests.helpers.replay_on_eight").count("equal") == 5
