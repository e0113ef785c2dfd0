"""Model FLOPs: what the matmuls and the attention of a token cost (docs/architecture.md §13)."""

import dataclasses
import math
from typing import Any

import jax

from ling_jax.config import ModelConfig
from ling_jax.model.layers import MIXERS, layer_plan, mtp_layer_kind
from ling_jax.model.transformer import model_spec, with_weighted_mtp
from ling_jax.spec import Leaf, named_leaves


def matmul_parameters(config: ModelConfig) -> int:
    """Number of weights that multiply one token (docs/architecture.md §13).

    These are all matrices but the embedding, `top_k` of the experts, and the head once more for every MTP depth.
    """
    return sum(_multiplying(path, leaf, config) for path, leaf in named_leaves(model_spec(config)).items())


def _multiplying(path: str, leaf: Leaf, config: ModelConfig) -> int:
    """How many weights of a parameter multiply one token."""
    size = math.prod(leaf.shape)
    if leaf.role == "embed" or not leaf.is_matrix:
        return 0
    if leaf.role == "experts":
        return size * config.top_k // config.num_experts
    if leaf.role == "head":
        return size * (1 + config.mtp_predictions)
    if path.startswith("mtp/"):
        return size * config.mtp_predictions // config.mtp_depth
    return size


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Forward and backward FLOPs of a token in rows of `length` tokens (docs/architecture.md §13).

    6 for each matmul weight, 3 · 2 · (T+1)/2 · H · (K + V) for each layer of causal softmax attention, and
    3 · 4 · H · K² for each Lightning layer (its recurrent form). Recomputation and the extra work of the chunked form
    are no model FLOPs.
    """
    trunk = sum(
        segment.repeats * run.count * MIXERS[run.kind.mixer].flops(config, length)
        for segment in layer_plan(config)
        for run in segment.runs
    )
    without_mtp = dataclasses.replace(config, mtp_depth=0)
    return 6.0 * matmul_parameters(without_mtp) + trunk + mtp_flops_per_token(config, length)


def read_flops_per_row(config: ModelConfig, tokens: int, length: int) -> float:
    """FLOPs of reading the last `tokens` of the `length` tokens of a row into a cache, with logits of the last token.

    They are counted as in `flops_per_token`, forward only and without MTP. A prefill reads `tokens` = `length` tokens,
    a decode step one.
    """
    head = 2.0 * config.hidden_size * config.vocab_size
    # These tokens have length - (tokens - 1) / 2 keys on average, as those of whole rows of 2 * length - tokens tokens.
    per_token = flops_per_token(dataclasses.replace(config, mtp_depth=0), 2 * length - tokens) / 3
    return tokens * (per_token - head) + head


def frozen_flops_per_token(config: ModelConfig, trainable: Any) -> float:
    """The FLOPs of `flops_per_token` that frozen weights save: 2 each, for their gradients.

    `trainable` is a tree of bools over the parameters.
    """
    leaves = zip(named_leaves(model_spec(config)).items(), jax.tree.leaves(trainable), strict=True)
    computed = with_weighted_mtp(config)
    frozen = [leaf for leaf, keep in leaves if not keep and (computed.mtp_depth or not leaf[0].startswith("mtp/"))]
    return 2.0 * sum(_multiplying(*leaf, computed) for leaf in frozen)


def mtp_flops_per_token(config: ModelConfig, length: int) -> float:
    """The part of `flops_per_token` for multi-token prediction: its layers and its logits.

    It is 0 where `mtp_loss_weight` is 0, since training computes no MTP then.
    """
    if not config.mtp_loss_weight:
        return 0.0
    parameters = matmul_parameters(config) - matmul_parameters(dataclasses.replace(config, mtp_depth=0))
    return 6.0 * parameters + config.mtp_predictions * MIXERS[mtp_layer_kind(config).mixer].flops(config, length)
