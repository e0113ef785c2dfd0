"""Language-model losses from hidden states, chunk by chunk of tokens (docs/architecture.md §10)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from ling_jax.model.mtp import shift_in_documents
from ling_jax.parallel.sharding import RULES, one_device, partition_spec, token_axes

IGNORED = -100


class LossSums(NamedTuple):
    """Loss sums and their token counts (scalars but for `mtp*`). Both add up over microbatches."""

    main: jax.Array  # Σ negative log-likelihood of the next token, nats
    mtp: jax.Array  # [depth] the same for MTP targets
    router_z: jax.Array  # Σ over MoE layers and live tokens of logsumexp(router logits)²
    main_count: jax.Array  # tokens with a next-token target
    mtp_count: jax.Array  # [depth] tokens with a target at each depth
    live_count: jax.Array  # tokens that are no padding


def shifted_targets(labels_BT: ArrayLike, docs_BT: jax.Array | None, by: int) -> jax.Array:
    """[B, T]: labels[t + by] where t + by lies in the row and document of t, else -100."""
    return shift_in_documents(labels_BT, docs_BT, by, fill=IGNORED)


def weighted_total(sums: LossSums, counts: LossSums, *, mtp_weight: float, z_weight: float) -> jax.Array:
    """mean main + mtp_weight · mean over depths of mean MTP + z_weight · Σ over layers of mean z; an empty mean is 0.

    The denominators come from `counts`: with the counts of the whole batch, the totals of its microbatches add up.
    """
    total = sums.main / jnp.maximum(counts.main_count, 1)
    if sums.mtp.shape[0]:
        # Dividing by the number of depths is Megatron-core's convention; one depth is the only released case.
        total += mtp_weight * jnp.mean(sums.mtp / jnp.maximum(counts.mtp_count, 1))
    return total + z_weight * sums.router_z / jnp.maximum(counts.live_count, 1)


def head_logits(head_DW: jax.Array, hidden_BTD: jax.Array) -> jax.Array:
    """Logits [B, T, W] in at least float32, at full precision."""
    dtype = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    return jnp.einsum(
        "BTD,DW->BTW", hidden_BTD.astype(dtype), head_DW.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy_sum(hidden_BTD: jax.Array, head_DW: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """Σ -log softmax(hidden · head)[target] in nats over targets that are not -100; a scalar in at least float32.

    hidden [B, T, D], head [D, W], targets [B, T]. Logits exist for `chunk` tokens of each row at a time. The same pass
    computes the gradients (the loss is a scalar, so backward only scales them); logits are computed once and never
    stored. On a mesh each device computes its part of the vocabulary for the rows of all devices along the axes that
    split rows and vocabulary alike, because a whole head with its gradient is larger than a layer's experts.
    """
    return _cross_entropy(hidden_BTD, head_DW, targets_BT, chunk, gradients=False)[0]


def _cross_entropy_fwd(hidden_BTD, head_DW, targets_BT, chunk: int):
    total, *gradients = _cross_entropy(hidden_BTD, head_DW, targets_BT, chunk, gradients=True)
    return total, gradients


def _cross_entropy_bwd(chunk: int, residuals, grad):
    del chunk
    return *(jnp.asarray(grad, leaf.dtype) * leaf for leaf in residuals), None


cross_entropy_sum.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _cross_entropy(hidden_BTD, head_DW, targets_BT, chunk: int, *, gradients: bool):
    """(Σ, with `gradients` also those of hidden states and head), on the mesh in scope."""
    part = functools.partial(_cross_entropy_part, chunk=chunk, gradients=gradients)
    results = ("scalar", "tokens", "head") if gradients else ("scalar",)
    return _on_mesh(part, results, head_DW, hidden_BTD, targets_BT)


class LossSplit(NamedTuple):
    """The mesh axes that split each dimension of a loss; none on one device."""

    tokens: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        """Axes that split tokens and vocabulary: along them a device computes its vocabulary part for all tokens."""
        return tuple(axis for axis in self.vocab if axis in self.tokens)

    @property
    def others(self) -> tuple[str, ...]:
        """Axes that split the tokens alone."""
        return tuple(axis for axis in self.tokens if axis not in self.vocab)


def _on_mesh(part: Callable[..., Any], results: tuple[str, ...], head_DW: jax.Array, *of_tokens_BT: jax.Array):
    """`part(split, head, *of_tokens)` on every device of the mesh in scope.

    `of_tokens` are [B, T, …]; the head is stored in parts. `results` are the layouts of what `part` returns: "scalar",
    "tokens" or "head".
    """
    if one_device():
        return part(LossSplit(), head_DW, *of_tokens_BT)
    axes = token_axes(of_tokens_BT[0].shape[:2])
    split = LossSplit((*axes[0], *axes[1]), RULES["embed"], RULES["vocab"])
    layouts = {"scalar": PartitionSpec(), "tokens": PartitionSpec(*axes), "head": partition_spec(("embed", "vocab"))}
    return jax.shard_map(
        functools.partial(part, split),
        in_specs=(layouts["head"], *(layouts["tokens"] for _ in of_tokens_BT)),
        out_specs=tuple(layouts[name] for name in results),
        check_vma=False,
    )(head_DW, *of_tokens_BT)


def _cross_entropy_part(split: LossSplit, head_DW, hidden_BTD, targets_BT, *, chunk: int, gradients: bool):
    """`_cross_entropy` on one device of a mesh with these axes."""
    columns_DW = _all_gather(head_DW, split.embed)
    zero = jnp.zeros((), jnp.promote_types(hidden_BTD.dtype, jnp.float32))

    def step(carry, inputs):
        total, grad_head_DW = carry
        x_BCD, target_BC = (_all_gather(a, split.shared) for a in inputs)
        predicted = _predict(x_BCD, target_BC, columns_DW, split.vocab)
        logsumexp_BC1 = _logsumexp(predicted.logits_BCW, split.vocab)
        total -= _target_logps(predicted, logsumexp_BC1, split.vocab).sum()
        if not gradients:
            return (total, None), None
        grad_x_BCD, new_DW = _chunk_gradients(predicted, logsumexp_BC1, -1.0, x_BCD, columns_DW, split)
        return (total, grad_head_DW + new_DW), grad_x_BCD

    start = (zero, jnp.zeros(columns_DW.shape, zero.dtype) if gradients else None)
    chunks = _time_chunks(hidden_BTD, chunk), _time_chunks(targets_BT, chunk, IGNORED)
    (total, grad_head_DW), grads = jax.lax.scan(step, start, chunks)
    total = jax.lax.psum(total, split.others)
    if not gradients:
        return (total,)
    return total, _rows(grads, hidden_BTD.shape[1]), _stored_gradient(grad_head_DW, split).astype(head_DW.dtype)


def _all_gather(x, axes: tuple[str, ...]):
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _psum_scatter(x, axes: tuple[str, ...], scattered: tuple[str, ...]):
    """The sum along `axes`; along those in `scattered` each device gets its part of the first dimension."""
    x = jax.lax.psum_scatter(x, scattered, tiled=True) if scattered else x
    return jax.lax.psum(x, tuple(axis for axis in axes if axis not in scattered))


def token_logps(hidden_BTD: jax.Array, head_DW: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """log softmax(hidden · head)[target] in nats, [B, T] in at least float32; 0 where the target is -100.

    hidden [B, T, D], head [D, W], targets [B, T]. Logits exist for `chunk` tokens of each row at a time; backward
    recomputes them. On a mesh the vocabulary is split as for `cross_entropy_sum`.
    """
    return token_logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def token_logps_and_entropies(
    hidden_BTD: jax.Array, head_DW: jax.Array, targets_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """(`token_logps`, entropies of the predictions [B, T] in nats: no gradient, 0 where the target is -100)."""
    return _token_logps_fwd(hidden_BTD, head_DW, targets_BT, chunk)[0]


def _token_logps_fwd(hidden_BTD, head_DW, targets_BT, chunk: int):
    part = functools.partial(_token_logps_part, chunk=chunk)
    *results, logsumexp_BT = _on_mesh(part, ("tokens",) * 3, head_DW, hidden_BTD, targets_BT)
    return tuple(results), (head_DW, hidden_BTD, targets_BT, logsumexp_BT)


def _token_logps_bwd(chunk: int, residuals, grads):
    part = functools.partial(_token_logps_gradients, chunk=chunk)
    return *_on_mesh(part, ("tokens", "head"), *residuals, grads[0]), None


token_logps_and_entropies.defvjp(_token_logps_fwd, _token_logps_bwd)


def _token_logps_part(split: LossSplit, head_DW, hidden_BTD, targets_BT, *, chunk: int):
    """(log-probabilities, entropies, logsumexp of the logits), [B, T] each, on one device of a mesh with these axes."""
    columns_DW = _all_gather(head_DW, split.embed)

    def step(_, inputs):
        x_BCD, target_BC = (_all_gather(a, split.shared) for a in inputs)
        predicted = _predict(x_BCD, target_BC, columns_DW, split.vocab)
        logsumexp_BC1 = _logsumexp(predicted.logits_BCW, split.vocab)
        logps_BC = _target_logps(predicted, logsumexp_BC1, split.vocab)
        results = logps_BC, _entropies(predicted, logsumexp_BC1, split.vocab), logsumexp_BC1[..., 0]
        first = jax.lax.axis_index(split.shared) * len(inputs[0]) if split.shared else 0
        return None, tuple(jax.lax.dynamic_slice_in_dim(x, first, len(inputs[0])) for x in results)

    _, results = jax.lax.scan(step, None, (_time_chunks(hidden_BTD, chunk), _time_chunks(targets_BT, chunk, IGNORED)))
    return tuple(_rows(x_NBC, targets_BT.shape[1]) for x_NBC in results)


def _token_logps_gradients(split: LossSplit, head_DW, hidden_BTD, targets_BT, logsumexp_BT, grad_BT, *, chunk: int):
    """(of the hidden states, of the head), where the log-probabilities have the gradient `grad`, on one device."""
    columns_DW = _all_gather(head_DW, split.embed)

    def step(grad_head_DW, inputs):
        x_BCD, target_BC, logsumexp_BC, grad_BC = (_all_gather(a, split.shared) for a in inputs)
        predicted = _predict(x_BCD, target_BC, columns_DW, split.vocab)
        grad_x_BCD, new_DW = _chunk_gradients(
            predicted, logsumexp_BC[..., None], grad_BC[..., None], x_BCD, columns_DW, split
        )
        return grad_head_DW + new_DW, grad_x_BCD

    zeros = jnp.zeros(columns_DW.shape, logsumexp_BT.dtype)
    others = (_time_chunks(x_BT, chunk) for x_BT in (logsumexp_BT, grad_BT))
    chunks = _time_chunks(hidden_BTD, chunk), _time_chunks(targets_BT, chunk, IGNORED), *others
    grad_head_DW, grads = jax.lax.scan(step, zeros, chunks)
    return _rows(grads, hidden_BTD.shape[1]), _stored_gradient(grad_head_DW, split).astype(head_DW.dtype)


class Predictions(NamedTuple):
    """Of a chunk of tokens, for a device's part of the vocabulary."""

    logits_BCW: jax.Array
    picked_BCW: jax.Array  # whether the column is the token's target
    counts_BC1: jax.Array  # whether the token has a target


def _predict(x_BCD, target_BC, head_DW, vocab: tuple[str, ...]) -> Predictions:
    """`vocab` are the mesh axes that split the columns of the head, here and below."""
    first = head_DW.shape[1] * jax.lax.axis_index(vocab) if vocab else 0
    picked_BCW = first + jnp.arange(head_DW.shape[1]) == target_BC[..., None]
    return Predictions(head_logits(head_DW, x_BCD), picked_BCW, (target_BC != IGNORED)[..., None])


def _vocab_sum(x_BCW, vocab: tuple[str, ...]):
    return jax.lax.psum(x_BCW.sum(axis=-1, keepdims=True), vocab)


def _logsumexp(logits_BCW, vocab: tuple[str, ...]):
    largest_BC1 = jax.lax.pmax(logits_BCW.max(axis=-1, keepdims=True), vocab)
    return largest_BC1 + jnp.log(_vocab_sum(jnp.exp(logits_BCW - largest_BC1), vocab))


def _target_logps(predicted: Predictions, logsumexp_BC1, vocab: tuple[str, ...]):
    """Log-probabilities of the targets [B, C], 0 without one."""
    logps_BC1 = _vocab_sum(jnp.where(predicted.picked_BCW, predicted.logits_BCW, 0), vocab) - logsumexp_BC1
    return jnp.where(predicted.counts_BC1, logps_BC1, 0)[..., 0]


def _entropies(predicted: Predictions, logsumexp_BC1, vocab: tuple[str, ...]):
    """Entropies of the predictions [B, C], 0 without a target."""
    logps_BCW = predicted.logits_BCW - logsumexp_BC1
    return jnp.where(predicted.counts_BC1, -_vocab_sum(jnp.exp(logps_BCW) * logps_BCW, vocab), 0)[..., 0]


def _chunk_gradients(predicted: Predictions, logsumexp_BC1, grad_BC1, x_BCD, head_DW, split: LossSplit):
    """(of the device's own hidden states, of its part of the head [D, W] from this chunk), from those of log-probs."""
    probs_BCW = jnp.exp(predicted.logits_BCW - logsumexp_BC1)
    grad_BCW = jnp.where(predicted.counts_BC1, grad_BC1 * (predicted.picked_BCW - probs_BCW), 0)
    grad_x_BCD = jnp.einsum("BCW,DW->BCD", grad_BCW, head_DW.astype(grad_BCW.dtype))
    grad_head_DW = jnp.einsum("BCD,BCW->DW", x_BCD.astype(grad_BCW.dtype), grad_BCW)
    return _psum_scatter(grad_x_BCD, split.vocab, split.shared).astype(x_BCD.dtype), grad_head_DW


def _stored_gradient(grad_head_DW, split: LossSplit):
    """The sum of the head's gradients over all tokens, in parts along `embed` as the head is stored."""
    # Devices along an `embed` axis that does not split the tokens hold the same gradient.
    same = jax.lax.psum(1, tuple(axis for axis in split.embed if axis not in split.tokens))
    rest = tuple(axis for axis in split.others if axis not in split.embed)
    return _psum_scatter(grad_head_DW, (*split.embed, *rest), split.embed) / same


def _time_chunks(x_BT, chunk: int, fill: int = 0):
    """[B, T, …] as [N, B, C, …], padded with `fill`. The batch axis keeps its sharding."""
    batch, length, *rest = x_BT.shape
    chunk = min(chunk, length)
    behind = ((0, 0), (0, -length % chunk), *((0, 0) for _ in rest))
    return jnp.moveaxis(jnp.pad(x_BT, behind, constant_values=fill).reshape(batch, -1, chunk, *rest), 1, 0)


def _rows(x_NBC, length: int):
    """The inverse of `_time_chunks`: [B, T, …]."""
    _, batch, _, *rest = x_NBC.shape
    return jnp.moveaxis(x_NBC, 0, 1).reshape(batch, -1, *rest)[:, :length]
