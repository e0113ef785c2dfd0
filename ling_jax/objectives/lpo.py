"""LPO: the ratio of a sentence."""

import jax
import jax.numpy as jnp

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.segments import segment_mean
from ling_jax.objectives.tokens import Tokens, check_shape, loss_tokens, ratio_of, surrogate, token_mean


def sentence_ratio(tokens: Tokens, sentence_ids):
    """r_ik = exp(mean over the sentence's loss tokens of log π_policy - log π_old), at each of its tokens, [B, T]."""
    return ratio_of(jax.vmap(segment_mean)(tokens.policy - tokens.old, tokens.mask, sentence_ids))


def lpo_loss(
    policy_logps,
    old_logps,
    behaviour_logps,
    advantages,
    mask,
    *,
    sentence_ids,
    group_size: int,
    clip=0.03,  # Ling 2.0 report §4.2.2
    entropies=None,
):
    """LPO: clipped objective on sentence-level geometric-mean ratios (Ling 2.0 report §4.2.2).

        J = mean over groups of 1/Σ|y_i| · Σ_i Σ_k |s_ik| · min(r_ik Â_i, clip(r_ik, 1±clip) Â_i)
        r_ik = exp(mean_t∈s_ik (log π_policy - log π_old))

    All [B, T] but advantages [B]; rows of a group are neighbours, `group_size` of them, static. sentence_ids: integers,
    local to the row; a sentence is the row's loss tokens with one id, whatever lies between them, so ids may have gaps
    and holes, and |s| counts loss tokens; ids of other tokens mean nothing. A group without loss tokens has 0 and is
    counted. `behaviour_logps` is not used but for the mismatch metrics and may be None. Returns (-J, metrics); at least
    float32. Raises ValueError for a wrong shape, ids that are no integers, or rows that make no whole groups.
    """
    tokens = loss_tokens("lpo", policy_logps, old_logps, behaviour_logps, advantages, mask)
    check_shape("lpo", "sentence_ids", sentence_ids, tokens.mask.shape)
    if not jnp.issubdtype(jnp.result_type(sentence_ids), jnp.integer):
        raise ValueError(f"lpo: sentence_ids is of {jnp.result_type(sentence_ids)}; expected integers")
    if group_size < 1 or tokens.mask.shape[0] % group_size:
        raise ValueError(f"lpo: {tokens.mask.shape[0]} rows make no whole groups of group_size {group_size}")
    ratio = sentence_ratio(tokens, jnp.asarray(sentence_ids))
    terms, clipped = surrogate(ratio, tokens.advantages, clip, clip)
    return -group_mean(terms, tokens.mask, group_size), token_metrics("lpo", tokens, ratio, clipped, entropies)


def group_mean(terms, mask, group_size: int):
    """Mean over groups of Σ terms / Σ|y_i| of the group's rows."""
    groups = terms.shape[0] // group_size
    shape = (groups, group_size * terms.shape[1])
    return jnp.sum(jax.vmap(token_mean)(terms.reshape(shape), mask.reshape(shape))) / max(groups, 1)
