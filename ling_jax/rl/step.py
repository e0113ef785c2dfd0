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
from ling_jax.model.loss import IGNORED, token_logps_and_entropies
from ling_jax.model.transformer import hidden_states, make_token_info
from ling_jax.rl.batch import Batch
from ling_jax.rl.loss import BatchLoss, Metrics, old_logps
from ling_jax.spec import Params
from ling_jax.train.norms import group_norms
from ling_jax.train.state import TrainState, create_state, next_state

# Nats that rounding alone may make in float32. More is an expert's tie: two that score alike to the last bit change
# places between sampling and training. Our choice: rare tokens round to a few 1e-5.
ROUNDING = 1e-4


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The whole state as ShapeDtypeStructs on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    create = lambda params: create_state(params, optimizer, trainable(config))  # noqa: E731
    shapes = jax.eval_shape(create, specs.abstract(model_spec(config)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def trainable(config: ModelConfig):
    """A tree of bools: what the step trains. The router's bias is fixed in RL (Ring-1T report §2.3.4).

    The MTP heads stay as they are too, our choice: the objective does not reach them, and weight decay would.
    """
    return specs.trainable(model_spec(dataclasses.replace(config, mtp_loss_weight=0.0)))


def make_rl_step(
    config: ModelConfig, optimizer: optax.GradientTransformationExtraArgs, loss: BatchLoss, *, microbatches: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`.

    A batch without `old_logps` is the only one that its weights learn from: they are both the policy and `old`, the
    ratio is 1, its gradient is all there is, and no second forward pass is needed. What is stale is between `old` and
    the recorded log-probs. A loss or gradient that is not finite, and a batch without loss tokens, leave everything but
    the two counts as it was.

    A microbatch has whole groups. Loss, gradients and metrics are those of the whole batch.
    """
    trained_leaves, spec = trainable(config), model_spec(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained, frozen = specs.partition(state.params, trained_leaves)
        whole = loss.whole(batch)

        def part(trained, rows: Batch):
            logps, entropies = policy_logps(specs.combine(trained, frozen), rows, config)
            return loss(logps, entropies, rows, whole)[0], (logps, entropies)

        def accumulate(grads, rows: Batch):
            (_, of_tokens), new = jax.value_and_grad(part, has_aux=True)(trained, rows)
            return jax.tree.map(jnp.add, grads, new), of_tokens

        zeros = jax.tree.map(jnp.zeros_like, trained)
        grads, of_tokens = jax.lax.scan(accumulate, zeros, split_rows(batch, microbatches))
        logps, entropies = (x.reshape(-1, x.shape[-1]) for x in of_tokens)
        total, metrics = loss(logps, entropies, batch, whole)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(total) & jnp.isfinite(grad_norm) & jnp.any(batch.mask)
        state, _ = next_state(state, optimizer, grads, trained, frozen, good)
        metrics |= {"loss": total, "grad_norm": grad_norm, "nonfinite": ~good, "tokens": jnp.sum(batch.live)}
        return state, metrics | age_metrics(old_logps(logps, batch), batch) | group_norms("grad_norm", grads, spec)

    return step


def make_scorer(config: ModelConfig, *, microbatches: int = 1) -> Callable[[Params, Batch], jax.Array]:
    """`score(params, batch) -> [B, T] float32`: log-probs of the drawn tokens, a microbatch at a time; 0 elsewhere."""

    def score(params: Params, batch: Batch) -> jax.Array:
        logps = jax.lax.map(lambda rows: policy_logps(params, rows, config)[0], split_rows(batch, microbatches))
        return jnp.pad(logps.reshape(-1, logps.shape[-1]), ((0, 0), (1, 0)))

    return score


def split_rows(batch: Batch, parts: int) -> Batch:
    """The batch with a leading axis of `parts`, neighbouring rows together."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def policy_logps(params: Params, batch: Batch, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """(log-probs of the tokens that were drawn, the entropies they were drawn with), [B, T - 1] float32: of the tokens
    from the second on, 0 outside the mask."""
    config = dataclasses.replace(config, mtp_depth=0)
    targets = jnp.where(batch.mask, batch.tokens, IGNORED)[:, 1:]
    info = make_token_info(batch.tokens, config, None, batch.live)
    hidden_BTD, _, _ = hidden_states(params, batch.tokens, info, config)
    with jax.named_scope("logps"):
        return token_logps_and_entropies(hidden_BTD[:, :-1], params["head"], targets, config.loss_chunk)


def age_metrics(logps: jax.Array, batch: Batch) -> dict[str, Any]:
    """How old the loss tokens are, and how far the log-probs [B, T - 1] of those that these very weights drew are from
    the recorded ones: what only the difference of the two programs can make."""
    mask, ages = batch.mask[:, 1:], batch.ages[:, 1:]
    fresh = mask & (ages == 0)
    mismatch = jnp.abs(jnp.where(fresh, logps - batch.behaviour_logps[:, 1:], 0))
    return {
        "mismatch_same_version/max": jnp.max(mismatch),
        "mismatch_same_version/tokens": jnp.sum(fresh),
        "mismatch_same_version/far": jnp.sum(mismatch > ROUNDING),
        "staleness/mean": jnp.sum(jnp.where(mask, ages, 0)) / jnp.maximum(jnp.sum(mask), 1),
        "staleness/max": jnp.max(jnp.where(mask, ages, 0)),
        "loss_tokens": jnp.sum(mask),
    }
