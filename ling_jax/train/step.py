"""One training step, a pure function over a loss: microbatches, AdamW, steps that are skipped.

The language model's loss is here, with router biases by rate (docs/architecture.md §8, §10).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.moe import Router
from ling_jax.model.transformer import LossSums, loss_counts, loss_sums, total_loss
from ling_jax.spec import Params, Spec
from ling_jax.train.norms import group_norms
from ling_jax.train.spikes import judge
from ling_jax.train.state import GuardedState, TrainState, next_state


class StepLoss(NamedTuple):
    """A loss that is a sum over parts of a batch, with what else a step needs to know of it.

    `aux` of a part is (sums, kept): a tree that is added up over the parts, and one that is stacked [M, …].
    """

    parts: Callable[[Any], tuple[Any, jax.Array | None]]  # batch -> (its parts [M, …], how many of them; None: all)
    whole: Callable[[Any], Any]  # batch -> what the loss of a part depends on beside its rows, such as counts
    part: Callable[[Params, Any, Any], tuple[jax.Array, tuple[Any, Any]]]  # (params, rows, whole) -> (loss, aux)
    metrics: Callable[[Any, Any, Any, Any], dict[str, Any]]  # (batch, whole, sums, kept) -> metrics
    has_tokens: Callable[[Any], jax.Array] = lambda batch: jnp.asarray(True)  # whether a batch has loss tokens
    moved: Callable[[Params, Any], Params] | None = None  # (frozen, sums) -> frozen parameters that move by a rule


def make_step(
    loss: StepLoss, optimizer: optax.GradientTransformationExtraArgs, spec: Spec, trainable: Any
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """The function `step(state, batch) -> (state, metrics)` of any stage.

    A step with a loss or gradient that is not finite, or one for which `loss.has_tokens` is false, changes the data
    position and the count of skipped steps only; so does a spike, where the state is a GuardedState
    (ling_jax.train.spikes). `trainable` is a tree of bools over `spec`; other leaves keep their bits unless
    `loss.moved` moves them.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        trained, frozen = specs.partition(state.params, trainable)
        whole = loss.whole(batch)

        def part(trained, rows):
            return loss.part(specs.combine(trained, frozen), rows, whole)

        (grads, total, sums), kept = _accumulate(part, trained, *loss.parts(batch))
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm) & loss.has_tokens(batch)
        state, good, guards = _judged(state, total, grad_norm, finite)
        if loss.moved is not None:
            frozen = jax.tree.map(lambda new, old: jnp.where(good, new, old), loss.moved(frozen, sums), frozen)
        state, updates = next_state(state, optimizer, grads, trained, frozen, good)
        metrics = {"loss": total} | loss.metrics(batch, whole, sums, kept)
        metrics |= {"grad_norm": grad_norm, "nonfinite": ~finite} | guards
        return state, metrics | group_norms("grad_norm", grads, spec) | group_norms("update_norm", updates, spec)

    return step


def _judged(state: TrainState, total, grad_norm, finite) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
    """(the state with its new history of spikes, whether the step counts, metrics of that)."""
    if not isinstance(state, GuardedState):
        return state, finite, {}
    history, spike = judge(state.spikes, total, grad_norm, finite)
    return state.replace(spikes=history), finite & ~spike, {"spike": spike, "spikes": history.skipped}


def make_train_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    microbatches: int = 1,
    router_bias_rate: float,
    trainable: Any = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]:
    """`make_step` of the language model's loss.

    `batch` has tokens, labels, segment_ids and positions, [B, T] each. Microbatches give the gradient of the whole
    batch: sums are divided by the counts of the batch, not of the microbatch. `trainable` is a tree of bools (None: all
    that the spec declares so); with `router_bias_rate` 0 router biases keep their bits, too.
    """
    spec = model_spec(config)
    trainable = specs.trainable(spec) if trainable is None else trainable
    return make_step(_language_model_loss(config, microbatches, router_bias_rate), optimizer, spec, trainable)


def _language_model_loss(config: ModelConfig, microbatches: int, router_bias_rate: float) -> StepLoss:
    def parts(batch):
        # Microbatch i has the rows i, i + n, … of the batch, so that no row moves between devices.
        def split(x):
            return jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0)

        return jax.tree.map(split, dict(batch)), None

    def whole(batch) -> LossSums:
        return loss_counts(batch["labels"], config, segment_ids=batch["segment_ids"])

    def part(params, rows, counts: LossSums):
        others = {name: rows[name] for name in ("positions", "segment_ids")}
        sums, routers = loss_sums(params, rows["tokens"], rows["labels"], config, **others)
        loads = jax.tree.map(lambda r: (r.loads, r.drops), routers, is_leaf=lambda x: isinstance(x, Router))
        return total_loss(sums, counts, config), ((sums, loads), ())

    def metrics(batch, counts: LossSums, found, _) -> dict[str, jax.Array]:
        sums, loads = found
        return _loss_metrics(sums, counts) | _router_metrics(loads)

    def moved(frozen: Params, found) -> Params:
        return update_expert_bias(frozen, found[1], router_bias_rate)

    return StepLoss(parts, whole, part, metrics, moved=moved if router_bias_rate else None)


def make_eval_step(config: ModelConfig) -> Callable[[Params, dict[str, jax.Array]], LossSums]:
    """The function `step(params, batch) -> LossSums`, for batches as in `make_train_step`."""

    def step(params, batch):
        return loss_sums(params, config=config, **batch)[0]

    return step


def _accumulate(part, trained: Params, rows: Any, count: jax.Array | None):
    """((gradients, Σ loss, Σ sums), kept [M, …]) over the parts `rows` [M, …], of which the first `count` are there."""
    gradient = jax.value_and_grad(part, has_aux=True)

    def one(rows):
        (loss, (sums, kept)), grads = gradient(trained, rows)
        return (grads, loss, sums), kept

    return _over_parts(one, rows, count)


def map_parts(function: Callable[[Any], Any], rows: Any, count: jax.Array | None) -> Any:
    """function(part) of the first `count` (None: all) parts of `rows` [M, …], stacked; 0 for the others."""
    return _over_parts(lambda part: ((), function(part)), rows, count)[1]


def _over_parts(one: Callable[[Any], tuple[Any, Any]], rows: Any, count: jax.Array | None) -> tuple[Any, Any]:
    """(Σ a, stacked b) of one(part) = (a, b), part after part."""
    size = len(jax.tree.leaves(rows)[0])
    if size == 1:
        total, kept = one(jax.tree.map(lambda x: x[0], rows))
        return total, jax.tree.map(lambda x: x[None], kept)
    totals, _ = shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), totals)

    def add(total, part):
        more, kept = one(part)
        return jax.tree.map(jnp.add, total, more), kept

    if count is None:
        return jax.lax.scan(add, zeros, rows)

    def add_number(i, carry):
        total, stacked = carry
        total, kept = add(total, jax.tree.map(lambda x: x[i], rows))
        return total, jax.tree.map(lambda x, new: x.at[i].set(new), stacked, kept)

    stacked = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes[1])
    return jax.lax.fori_loop(0, count, add_number, (zeros, stacked))


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


def _loss_metrics(sums, counts) -> dict[str, jax.Array]:
    metrics = {"main_loss": sums.main / jnp.maximum(counts.main_count, 1)}
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
