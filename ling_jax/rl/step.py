"""One optimisation step of reinforcement learning, pure: log-probs of what was drawn, an objective, AdamW."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.loss import token_logps_and_entropies
from ling_jax.model.transformer import hidden_states, make_token_info
from ling_jax.rl.batch import Batch
from ling_jax.rl.loss import BatchLoss, Metrics, old_logps
from ling_jax.spec import Params
from ling_jax.train.state import TrainState
from ling_jax.train.step import StepLoss, make_step, map_parts

# Nats that rounding alone may make in float32. More is an expert's tie: two that score alike to the last bit change
# places between sampling and training. Our choice: rare tokens round to a few 1e-5.
ROUNDING = 1e-4


def trainable(config: ModelConfig) -> Any:
    """A tree of bools: what the step trains. The router's bias is fixed in RL (Ring-1T report §2.3.4).

    The MTP heads stay as they are too, our choice: the objective does not reach them, and weight decay would.
    """
    return specs.trainable(model_spec(dataclasses.replace(config, mtp_loss_weight=0.0)))


def make_rl_step(
    config: ModelConfig, optimizer: optax.GradientTransformationExtraArgs, loss: BatchLoss
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`.

    A batch without `old_logps` is the only one that its weights learn from: they are both the policy and `old`, the
    ratio is 1, its gradient is all there is, and no second forward pass is needed. What is stale is between `old` and
    the recorded log-probs. A loss or gradient that is not finite, and a batch without loss tokens, leave everything but
    the two counts as it was. Loss, gradients and metrics are those of the whole batch, whatever its microbatches.
    """

    def part(params: Params, rows: Batch, phi: jax.Array | None):
        logps, entropies = policy_logps(params, rows, config)
        return loss(logps, entropies, rows, phi)[0], ((), (logps, entropies))

    def metrics(batch: Batch, phi: jax.Array | None, _, of_tokens) -> Metrics:
        logps, entropies = (x.swapaxes(0, 1).reshape(-1, x.shape[-1]) for x in of_tokens)  # as `Batch.rows`
        rows = batch.rows
        _, found = loss(logps, entropies, rows, phi)
        return found | {"tokens": jnp.sum(rows.segment_ids > 0)} | age_metrics(old_logps(logps, rows), rows)

    parts = StepLoss(
        parts=lambda batch: (batch.replace(count=None), batch.count),
        whole=loss.phi,
        part=part,
        metrics=metrics,
        has_tokens=lambda batch: jnp.any(batch.mask),
    )
    return make_step(parts, optimizer, model_spec(config), trainable(config))


def make_scorer(config: ModelConfig) -> Callable[[Params, Batch], jax.Array]:
    """`score(params, batch)`: log-probs [M, R, T] float32 of the drawn tokens, a microbatch at a time; 0 elsewhere."""

    def score(params: Params, batch: Batch) -> jax.Array:
        return map_parts(lambda rows: policy_logps(params, rows, config)[0], batch.replace(count=None), batch.count)

    return score


def policy_logps(params: Params, rows: Batch, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """(log-probs of the tokens that were drawn, the entropies they were drawn with), [R, T] float32, each at the
    position that predicts the token; 0 where none was drawn. Tokens go to their recorded experts where rows have
    some."""
    config = dataclasses.replace(config, mtp_depth=0)
    info = make_token_info(rows.tokens, config, rows.positions, rows.segment_ids)
    hidden_BTD, _, _ = hidden_states(params, rows.tokens, info, config, experts=rows.experts)
    with jax.named_scope("logps"):
        return token_logps_and_entropies(hidden_BTD, params["head"], rows.targets, config.loss_chunk)


def age_metrics(logps: jax.Array, rows: Batch) -> dict[str, Any]:
    """How old the loss tokens are, and how far the log-probs [R, T] of those that these very weights drew are from the
    recorded ones: what only the difference of the two programs can make."""
    mask, ages = rows.mask, rows.ages
    fresh = mask & (ages == 0)
    mismatch = jnp.abs(jnp.where(fresh, logps - rows.behaviour_logps, 0))
    return {
        "mismatch_same_version/max": jnp.max(mismatch),
        "mismatch_same_version/mean": jnp.sum(mismatch) / jnp.maximum(jnp.sum(fresh), 1),
        "mismatch_same_version/tokens": jnp.sum(fresh),
        "mismatch_same_version/far": jnp.sum(mismatch > ROUNDING),
        "staleness/mean": jnp.sum(jnp.where(mask, ages, 0)) / jnp.maximum(jnp.sum(mask), 1),
        "staleness/max": jnp.max(jnp.where(mask, ages, 0)),
        "loss_tokens": jnp.sum(mask),
    }
