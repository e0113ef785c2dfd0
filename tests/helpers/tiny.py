"""Tiny random models of all three families."""

import jax
import numpy as np

from ling_jax import model, spec
from ling_jax.config import ModelConfig, model_config

SIZES = dict(
    vocab_size=40, hidden_size=16, num_heads=2, head_dim=8, num_norm_groups=2, rotary_dim=4, q_lora_rank=12,
    kv_lora_rank=8, nope_dim=8, rope_dim=4, v_dim=6, ffn_size=24, num_experts=8, top_k=2, num_expert_groups=4,
    top_groups=2, expert_ffn_size=8, shared_ffn_size=8, lightning_chunk=8, loss_chunk=8, max_length=512,
    rope_theta=1e4, mtp_depth=0,
)  # fmt: skip
FAMILIES = {
    "2.6": dict(full_attention="mla", layer_group_size=2, num_layers=4),
    "2.6 without q_lora": dict(full_attention="mla", layer_group_size=2, num_layers=4, q_lora_rank=None),
    "linear-2.0": dict(full_attention="gqa", layer_group_size=2, num_layers=4, num_heads=4, num_kv_heads=2),
    "2.0": dict(full_attention="gqa", layer_group_size=1, num_layers=3, num_heads=4, num_kv_heads=2, num_norm_groups=1),
}


def tiny_config(family: str = "2.6", **fields) -> ModelConfig:
    fields = SIZES | FAMILIES[family] | fields
    if fields["full_attention"] == "gqa":
        fields |= dict(q_lora_rank=None, kv_lora_rank=0, nope_dim=0, rope_dim=0, v_dim=0)
    return model_config("tiny-2.6", **fields)


def random_params(config: ModelConfig, seed: int = 0, dtype="float64", std: float = 0.3):
    """Weights of which none is 0 or 1, so that a part left out or taken twice shows."""
    rng = np.random.default_rng(seed)

    def leaf(declared):
        if declared.init is spec.ones:
            return rng.uniform(0.5, 1.5, declared.shape).astype(dtype)
        return rng.normal(0, 0.1 if declared.init is spec.zeros else std, declared.shape).astype(dtype)

    return spec.tree_map(leaf, model.model_spec(config))


def assert_trees_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for (name, leaf), wanted in zip(spec.named_leaves(tree).items(), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == wanted.dtype and leaf.shape == wanted.shape, name
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted), err_msg=name)
