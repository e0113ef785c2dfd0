"""How far the trainer's log-probs are from the recorded ones, and how much of it other experts make (docs/rl.md)."""

import jax
import jax.numpy as jnp

from ling_jax.model.recorded_experts import NO_RECORD


def mismatch_metrics(
    own_logps: jax.Array, replayed_logps: jax.Array, behaviour_logps: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Mean and maximum, over the tokens in `mask`, of three distances between log-probs [B, T] of the same tokens.

    `own_logps` are the trainer's with its own routing, `replayed_logps` the trainer's with the recorded experts, and
    `behaviour_logps` the recorded ones, all of the same weights and in nats:

        mismatch        |own - behaviour|
        of routing      |own - replayed|
        the rest        |replayed - behaviour|

    A token's mismatch is at most the sum of the other two. Without tokens all are 0.
    """
    distances = {
        "mismatch": own_logps - behaviour_logps,
        "mismatch_of_routing": own_logps - replayed_logps,
        "mismatch_rest": replayed_logps - behaviour_logps,
    }
    metrics = {}
    for name, distance_BT in distances.items():
        distance_BT = jnp.abs(jnp.where(mask, distance_BT, 0))
        metrics[f"{name}/mean"] = jnp.sum(distance_BT) / jnp.maximum(jnp.sum(mask), 1)
        metrics[f"{name}/max"] = jnp.max(distance_BT)
    return metrics


def rerouting_metrics(own_experts: jax.Array, recorded_experts: jax.Array) -> dict[str, jax.Array]:
    """How often the trainer's own choice [B, T, L, k] is another set of experts than the recorded one.

    `rerouted/choices` is the share of (token, MoE layer) pairs, `rerouted/tokens` that of tokens with any such layer,
    among tokens with a record. The order of a token's experts does not matter. Without records both are 0.
    """
    recorded_BTLk = recorded_experts.astype(own_experts.dtype)
    has_record_BT = jnp.all(recorded_BTLk != NO_RECORD, axis=(2, 3))
    other_BTL = jnp.any(jnp.sort(own_experts, axis=-1) != jnp.sort(recorded_BTLk, axis=-1), axis=-1)
    other_BTL &= has_record_BT[..., None]
    tokens = jnp.maximum(jnp.sum(has_record_BT), 1)
    return {
        "rerouted/choices": jnp.sum(other_BTL) / (tokens * other_BTL.shape[-1]),
        "rerouted/tokens": jnp.sum(jnp.any(other_BTL, axis=-1)) / tokens,
    }
