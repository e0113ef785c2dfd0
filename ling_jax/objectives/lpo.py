"""LPO: one ratio for each sentence."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.objectives.metrics import token_metrics
from ling_jax.objectives.objective import POSITIVE, Normaliser, Objective, clipped_term, ignores_behaviour
from ling_jax.objectives.segments import segment_ratio
from ling_jax.objectives.tokens import (
    Metrics,
    check_shape,
    loss_tokens,
    surrogate,
    token_mean,
    weighted,
)


def lpo_loss(
    policy_logps: ArrayLike,
    old_logps: ArrayLike,
    behaviour_logps: ArrayLike | None,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    sentence_ids: ArrayLike,
    group_size: int,
    clip: float = 0.03,  # Ling 2.0 report §4.2.2
    entropies: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, Metrics]:
    """LPO: clipped objective on sentence-level geometric-mean ratios (Ling 2.0 report §4.2.2).

        J = mean over groups of 1/Σ|y_i| · Σ_i Σ_k |s_ik| · min(r_ik Â_i, clip(r_ik, 1±clip) Â_i)
        r_ik = exp(mean_t∈s_ik (log π_policy - log π_old))

    Arrays are [B, T], advantages [B], or [B, T] with weights. A group is `group_size` neighbouring rows, which do not
    matter where `weights` [B, T] take the place of the mean. `sentence_ids` are integers, local to the row: a sentence
    is all loss tokens of a row with one id, contiguous or not, and |s| counts them. Ids of other tokens are ignored. A
    group without loss tokens contributes 0 and counts. `behaviour_logps` serves the mismatch metrics only and may be
    None. Returns (-J, metrics) in at least float32. Raises ValueError for a wrong shape, ids that are no integers, and
    rows that do not form whole groups.
    """
    tokens = loss_tokens("lpo", policy_logps, old_logps, behaviour_logps, advantages, mask, weights)
    check_shape("lpo", "sentence_ids", sentence_ids, tokens.mask.shape)
    if not jnp.issubdtype(jnp.result_type(sentence_ids), jnp.integer):
        raise ValueError(f"lpo: sentence_ids is of {jnp.result_type(sentence_ids)}; expected integers")
    if weights is None and (group_size < 1 or tokens.mask.shape[0] % group_size):
        raise ValueError(f"lpo: {tokens.mask.shape[0]} rows make no whole groups of group_size {group_size}")
    ratio = segment_ratio(tokens, jnp.asarray(sentence_ids))
    terms, clipped = surrogate(ratio, tokens.advantages, clip, clip)
    mean = functools.partial(group_mean, group_size=group_size)
    loss = -weighted(mean, terms, tokens.mask, tokens.weights)
    return loss, token_metrics("lpo", tokens, ratio, clipped, entropies)


def group_mean(terms: jax.Array, mask: jax.Array, group_size: int) -> jax.Array:
    """Mean over groups of Σ terms / Σ|y_i|, both over the rows of the group; terms and mask [B, T]."""
    groups = terms.shape[0] // group_size
    shape = (groups, group_size * terms.shape[1])
    return jnp.sum(jax.vmap(token_mean)(terms.reshape(shape), mask.reshape(shape))) / max(groups, 1)


def _description(*, group_size: int, clip: float) -> str:
    mean = f"mean over groups of {group_size} rows of 1/sum_i |y_i| sum_i sum_k |s_ik|"
    return f"{mean} {clipped_term(clip, clip)}; r = exp(mean over sentence s_ik of log(policy/old)), no mask"


def _normaliser(**options: float) -> Normaliser:
    return "groups"


LPO = Objective(
    loss=lpo_loss,
    options={"clip": POSITIVE},
    description=_description,
    normaliser=_normaliser,
    stale_flaw=ignores_behaviour,
)
