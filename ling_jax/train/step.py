"""One training step, a pure function: microbatches, AdamW, router biases by rate (docs/architecture.md §8, §10)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.moe import Router
from ling_jax.model.transformer import LossSums, loss_counts, loss_sums, total_loss
from ling_jax.spec import Params
from ling_jax.train.norms import group_norms
from ling_jax.train.spikes import judge
from ling_jax.train.state import GuardedState, TrainState, next_state


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    router_bias_rate: float,
    trainable: Any = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]:
    """The function `step(state, batch) -> (state, metrics)`.

    `batch` has tokens, labels, segment_ids and positions, [B, T] each. Microbatches give the gradient of the whole
    batch: sums are divided by the counts of the batch, not of the microbatch. A step with a loss or gradient that is
    not finite changes the data position and the count of skipped steps only; so does a spike, where the state is a
    GuardedState (ling_jax.train.spikes). `trainable` is a tree of bools (None: all that the spec declares so); other
    leaves keep their bits, and with `router_bias_rate` 0 router biases do too.
    """
    spec = model_spec(config)
    trainable = specs.trainable(spec) if trainable is None else trainable

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, Any]]:
        trained, frozen = specs.partition(state.params, trainable)
        counts = loss_counts(batch["labels"], config, segment_ids=batch["segment_ids"])

        def total(trained, rows):
            sums, routers = loss_sums(
                specs.combine(trained, frozen), rows.pop("tokens"), rows.pop("labels"), config, **rows
            )
            loads = jax.tree.map(lambda r: (r.loads, r.drops), routers, is_leaf=lambda x: isinstance(x, Router))
            return total_loss(sums, counts, config), (sums, loads)

        grads, (loss, (sums, loads)) = _accumulate(total, trained, batch, microbatches)
        grad_norm = optax.tree.norm(grads)
        good = finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if isinstance(state, GuardedState):
            history, spike = judge(state.spikes, loss, grad_norm, finite)
            state, good = state.replace(spikes=history), finite & ~spike
        if router_bias_rate:
            biases = update_expert_bias(frozen, loads, router_bias_rate)
            frozen = jax.tree.map(lambda new, old: jnp.where(good, new, old), biases, frozen)
        state, updates = next_state(state, optimizer, grads, trained, frozen, good)
        metrics = _loss_metrics(loss, sums, counts) | _router_metrics(loads)
        metrics |= {"grad_norm": grad_norm, "nonfinite": ~finite}
        if isinstance(state, GuardedState):
            metrics |= {"spike": spike, "spikes": history.skipped}
        return state, metrics | group_norms("grad_norm", grads, spec) | group_norms("update_norm", updates, spec)

    return step


def make_eval_step(config: ModelConfig) -> Callable[[Params, dict[str, jax.Array]], LossSums]:
    """The function `step(params, batch) -> LossSums`, for batches as in `make_train_step`."""

    def step(params, batch):
        return loss_sums(params, config=config, **batch)[0]

    return step


def _accumulate(total, trained, batch, microbatches: int):
    """Sums over `microbatches` of (gradients, (losses, …)).

    Microbatch i has the rows i, i + n, … of the batch, so that no row moves between devices.
    """
    gradient = jax.value_and_grad(total, has_aux=True)

    def one(rows):
        value, grads = gradient(trained, rows)
        return grads, value

    if microbatches == 1:
        return one(dict(batch))
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, rows):
        return jax.tree.map(jnp.add, total, one(rows)), None

    return jax.lax.scan(add, zeros, split)[0]


def update_expert_bias(params: Params, loads: Any, rate: float) -> Params:
    """The parameters after `bias_step` of every router bias (docs/architecture.md §8).

    `loads` are tokens per expert in this step, grouped as by `loss_sums`.
    """

    def moved(layer, load):
        if load is None:
            return layer
        bias = layer["ffn"]["expert_bias"]
        loads = load[0]
        if loads.shape != bias.shape:  # one MTP module serves several depths
            loads = loads.sum(axis=0, keepdims=True)
        return layer | {"ffn": layer["ffn"] | {"expert_bias": bias + bias_step(loads, rate).astype(bias.dtype)}}

    segments = {
        segment: {name: moved(layer, loads["segments"][segment][name]) for name, layer in runs.items()}
        for segment, runs in params["segments"].items()
    }
    params = params | {"segments": segments}
    if "mtp" in loads:
        params["mtp"] = params["mtp"] | {"layer": moved(params["mtp"]["layer"], loads["mtp"])}
    return params


def bias_step(loads_E: jax.Array, rate: float) -> jax.Array:
    """rate · (s - mean(s)), s = sign(mean load - load) [..., E].

    It is exact for integer loads [..., E], also where their sum exceeds 2^31.
    """
    experts = loads_E.shape[-1]
    # mean load = whole + left / experts, without the sum of loads, which may not fit int32.
    remainders = jnp.sum(loads_E % experts, axis=-1, keepdims=True)
    whole = jnp.sum(loads_E // experts, axis=-1, keepdims=True) + remainders // experts
    left = remainders % experts > 0
    sign = jnp.where(loads_E > whole, -1.0, jnp.where((loads_E < whole) | left, 1.0, 0.0))
    return rate * (sign - sign.mean(axis=-1, keepdims=True))


def _loss_metrics(loss, sums, counts) -> dict[str, jax.Array]:
    metrics = {"loss": loss, "main_loss": sums.main / jnp.maximum(counts.main_count, 1)}
    metrics |= {"tokens": counts.live_count, "loss_tokens": counts.main_count}
    for depth in range(sums.mtp.shape[0]):
        metrics[f"mtp_loss_{depth}"] = sums.mtp[depth] / jnp.maximum(counts.mtp_count[depth], 1)
    return metrics | {"router_z": sums.router_z / jnp.maximum(counts.live_count, 1)}


def _router_metrics(loads) -> dict[str, jax.Array]:
    """The largest ratio of maximal to mean load in a layer, and the drops of all layers."""
    pairs = jax.tree.leaves(loads, is_leaf=lambda x: isinstance(x, tuple))
    ratios = [jnp.max(load.max(axis=-1) / jnp.maximum(load.mean(axis=-1), 1e-9)) for load, _ in pairs]
    if not pairs:
        return {}
    return {"load_max_over_mean": jnp.max(jnp.stack(ratios)), "drops": sum(jnp.sum(drops) for _, drops in pairs)}
