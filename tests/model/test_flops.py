"""Model FLOPs."""

import jax
import pytest

from ling_jax import spec
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.model.flops import flops_per_token, frozen_flops_per_token, matmul_parameters, read_flops_per_row


@pytest.mark.parametrize(
    ("name", "active_billions"),
    # Published active counts hold both embedding matrices; a lookup multiplies nothing.
    [("ling-2.6-1t", 63.58 - 157184 * 8192 / 1e9), ("ling-2.6-flash", 7.449 - 157184 * 4096 / 1e9)],
)
def test_matmul_parameters_are_the_published_active_ones(name, active_billions):
    assert matmul_parameters(model_config(name, mtp_depth=0)) / 1e9 == pytest.approx(active_billions, rel=1e-3)


def test_flops_by_hand():
    """1T at 4096 tokens: 6 a weight, ten MLA layers of 64 heads x (192 + 128), seventy of 64 states of 128 x 128."""
    config = model_config("ling-2.6-1t", mtp_depth=0)
    attention = 10 * 3 * 4097 * 64 * 320 + 70 * 12 * 64 * 128 * 128
    assert flops_per_token(config, 4096) == 6 * matmul_parameters(config) + attention


@pytest.mark.parametrize(("tokens", "keys"), [(4096, 4097 / 2), (1, 4096)], ids=["prefill", "a token"])
def test_flops_of_reading_by_hand(tokens, keys):
    """Logits of the last token alone, keys of all tokens before, and no MTP."""
    config = model_config("ling-2.6-1t")
    head = 8192 * 157184
    weights = matmul_parameters(model_config("ling-2.6-1t", mtp_depth=0)) - head
    attention = 10 * 2 * keys * 64 * 320 + 70 * 4 * 64 * 128 * 128
    found = read_flops_per_row(config, tokens, 4096)
    assert found == pytest.approx(tokens * (2 * weights + attention) + 2 * head, rel=1e-12)


def test_what_is_frozen_has_no_weight_gradient():
    config = model_config("tiny-2.6")
    declared = model_spec(config)
    structure, names = jax.tree.structure(spec.abstract(declared)), spec.named_leaves(declared)

    def mask(keep):
        return jax.tree.unflatten(structure, map(keep, names))

    assert frozen_flops_per_token(config, mask(lambda name: True)) == 0
    assert frozen_flops_per_token(config, mask(lambda name: False)) == 2 * matmul_parameters(config)
    head = frozen_flops_per_token(config, mask(lambda name: name != "head"))
    assert head == 2 * 2 * config.hidden_size * config.vocab_size  # for the trunk, and for one MTP depth


def test_mtp_without_a_weight_costs_nothing():
    """It is not computed, so its parameters count neither among the FLOPs nor among what freezing saves."""
    config, without = model_config("tiny-2.6", mtp_loss_weight=0.0), model_config("tiny-2.6", mtp_depth=0)
    assert flops_per_token(config, 256) == flops_per_token(without, 256)

    def nothing(config):
        return spec.tree_map(lambda _: False, model_spec(config))

    assert frozen_flops_per_token(config, nothing(config)) == frozen_flops_per_token(without, nothing(without))
