"""One optimisation step of reinforcement learning, pure: log-probs of what was drawn, an objective, AdamW."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.loss import IGNORED, token_logps_and_entropies
from ling_jax.model.transformer import hidden_states, make_token_info
from ling_jax.objectives import effective_objective
from ling_jax.objectives.describe import LOSSES
from ling_jax.train.metrics import group_norms
from ling_jax.train.state import TrainState, create_state, next_state

# Nats that rounding alone may make in float32. More is an expert's tie: two that score alike to the last bit change
# places between sampling and training. Our choice: rare tokens round to a few 1e-5.
ROUNDING = 1e-4
Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@flax.struct.dataclass
class Batch:
    """Answers in rows, prompt and completion from the left; rows of a group are neighbours.

    A row without loss tokens has no part in the loss; `scale` says what the others are worth because of that.
    """

    tokens: jax.Array  # [B, T] int32
    live: jax.Array  # [B, T] int32: 1, 0 behind the end
    mask: jax.Array  # [B, T] bool: what the policy drew
    behaviour_logps: jax.Array  # [B, T] float32, as they were recorded
    ages: jax.Array  # [B, T] int32: weight versions since the token was drawn
    sentence_ids: jax.Array  # [B, T] int32, local to the row
    advantages: jax.Array  # [B] float32
    scale: jax.Array  # [] float32


def abstract_batch(rows: int, length: int) -> Batch:
    """A batch as ShapeDtypeStructs on the first device."""
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=_first_device())  # noqa: E731
    return Batch(
        tokens=array(jnp.int32, rows, length),
        live=array(jnp.int32, rows, length),
        mask=array(bool, rows, length),
        behaviour_logps=array(jnp.float32, rows, length),
        ages=array(jnp.int32, rows, length),
        sentence_ids=array(jnp.int32, rows, length),
        advantages=array(jnp.float32, rows),
        scale=array(jnp.float32),
    )


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The whole state as ShapeDtypeStructs on the first device."""
    create = lambda params: create_state(params, optimizer, trainable(config))  # noqa: E731
    shapes = jax.eval_shape(create, specs.abstract(model_spec(config)))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_first_device()), shapes)


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def trainable(config: ModelConfig):
    """A tree of bools: what the step trains. The router's bias is fixed in RL (Ring-1T report §2.3.4).

    The MTP heads stay as they are too, our choice: the objective does not reach them, and weight decay would.
    """
    return specs.trainable(model_spec(dataclasses.replace(config, mtp_loss_weight=0.0)))


def objective_options(name: str, group_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of an objective: those given, and the group's size where it takes that."""
    takes_size = name in LOSSES and "group_size" in inspect.signature(LOSSES[name]).parameters
    return dict(options) | ({"group_size": group_size} if takes_size else {})


def make_objective(name: str, group_size: int, options: Mapping[str, Any]) -> Objective:
    """`objective(policy, old, behaviour, advantages, mask, *, sentence_ids, entropies)` by its name in `objectives`.

    Raises ValueError for an unknown objective or option.
    """
    settings = objective_options(name, group_size, options)
    effective_objective(name, **settings)  # checks both
    keywords = inspect.signature(LOSSES[name]).parameters

    def objective(*arrays, **per_token):
        taken = {key: value for key, value in per_token.items() if key in keywords}
        return LOSSES[name](*arrays, **taken, **settings)

    return objective


def make_rl_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    objective: Objective,
    *,
    microbatches: int = 1,
):
    """`step(state, batch) -> (state, metrics)`.

    One step is made per batch, so the weights before it are both the policy and `old`: the ratio is 1, its gradient is
    all there is, and no second forward pass is needed. What is stale is between `old` and the recorded log-probs. A
    loss or gradient that is not finite, and a batch without loss tokens, leave everything but the two counts as it was.

    A microbatch has whole groups; their gradients are that of the batch for objectives that are a mean over rows or
    groups. Loss and metrics are of the whole batch.
    """
    trained_leaves = trainable(config)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        trained, frozen = specs.partition(state.params, trained_leaves)

        def total(trained, rows: Batch):
            logps, entropies = policy_logps(specs.combine(trained, frozen), rows, config)
            loss, _ = evaluated(objective, logps, entropies, rows)
            return batch.scale / microbatches * loss, (logps, entropies)

        def accumulate(grads, rows: Batch):
            (_, of_tokens), new = jax.value_and_grad(total, has_aux=True)(trained, rows)
            return jax.tree.map(jnp.add, grads, new), of_tokens

        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch.replace(scale=None))
        grads, of_tokens = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, trained), parts)
        logps, entropies = (x.reshape(-1, x.shape[-1]) for x in of_tokens)
        loss, metrics = evaluated(objective, logps, entropies, batch)
        loss, grad_norm = batch.scale * loss, optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.any(batch.mask)
        state, _ = next_state(state, optimizer, grads, trained, frozen, good)
        metrics |= {"loss": loss, "grad_norm": grad_norm, "nonfinite": ~good, "tokens": jnp.sum(batch.live)}
        return state, metrics | age_metrics(logps, batch) | group_norms("grad_norm", grads)

    return step


def evaluated(objective: Objective, logps, entropies, batch: Batch):
    """(loss, metrics) where the policy is what it was: nothing is drawn first, so all begin with the second token."""
    return objective(
        logps,
        jax.lax.stop_gradient(logps),
        batch.behaviour_logps[:, 1:],
        batch.advantages,
        batch.mask[:, 1:],
        sentence_ids=batch.sentence_ids[:, 1:],
        entropies=entropies,
    )


def policy_logps(params, batch: Batch, config: ModelConfig):
    """(log-probs of the tokens that were drawn, the entropies they were drawn with), [B, T - 1] float32: of the tokens
    from the second on, 0 outside the mask."""
    config = dataclasses.replace(config, mtp_depth=0)
    targets = jnp.where(batch.mask, batch.tokens, IGNORED)[:, 1:]
    info = make_token_info(batch.tokens, config, None, batch.live)
    hidden_BTD, _, _ = hidden_states(params, batch.tokens, info, config)
    with jax.named_scope("logps"):
        return token_logps_and_entropies(hidden_BTD[:, :-1], params["head"], targets, config.loss_chunk)


def age_metrics(logps, batch: Batch) -> dict[str, jax.Array]:
    """How old the loss tokens are, and how far the log-probs of those that these very weights drew are from the
    recorded ones: what only the difference of the two programs can make."""
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
