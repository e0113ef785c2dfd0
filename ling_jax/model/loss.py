"""Language-model losses from hidden states, without the logits of all tokens at once (docs/architecture.md §10)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ling_jax.model.mtp import shift_in_documents
from ling_jax.parallel.sharding import RULES, one_device, split_axes

IGNORED = -100


class LossSums(NamedTuple):
    """Sums over tokens and how many tokens each is over; both add up over microbatches."""

    main: jax.Array  # Σ negative log-likelihood of the next token
    mtp: jax.Array  # [depth] the same of MTP targets
    router_z: jax.Array  # Σ over MoE layers and live tokens of logsumexp(router logits)²
    main_count: jax.Array
    mtp_count: jax.Array
    live_count: jax.Array


def shifted_targets(labels_BT, docs_BT, by: int):
    """labels[t + by] at t where that is in the row and in t's document, else -100."""
    return shift_in_documents(labels_BT, docs_BT, by, fill=IGNORED)


def weighted_total(sums: LossSums, counts: LossSums, *, mtp_weight: float, z_weight: float):
    """mean main + mtp_weight · mean over depths of mean MTP + z_weight · Σ over layers of mean z; an empty mean is 0.

    The denominators are `counts`' own, so that the totals of microbatches add up to the total of the batch.
    """
    total = sums.main / jnp.maximum(counts.main_count, 1)
    if sums.mtp.shape[0]:
        # Dividing by the number of depths is Megatron-core's convention; one depth is the only released case.
        total += mtp_weight * jnp.mean(sums.mtp / jnp.maximum(counts.mtp_count, 1))
    return total + z_weight * sums.router_z / jnp.maximum(counts.live_count, 1)


def head_logits(head_DW, hidden_BTD):
    """[B, T, W] in at least float32, the products too."""
    dtype = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    return jnp.einsum(
        "BTD,DW->BTW", hidden_BTD.astype(dtype), head_DW.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )


def cross_entropy_sum(hidden_BTD, head_DW, targets_BT, chunk: int):
    """Σ -log softmax(hidden · head)[target] over targets that are not -100.

    On a mesh every device sums over its own rows with the whole head (its part of the vocabulary, where `tensor`
    splits that), and the head's gradient is added up over devices once, not after every chunk.
    """

    def total(hidden_BTD, head_DW, targets_BT, axes):
        return jax.lax.psum(_cross_entropy_sum(hidden_BTD, head_DW, targets_BT, chunk), axes)

    return _by_tokens(total, hidden_BTD, head_DW, targets_BT, of_tokens=False)


def _by_tokens(function, hidden_BTD, head_DW, targets_BT, *, of_tokens: bool):
    """`function(hidden, head, targets, mesh axes that split the tokens)`, each device with its own tokens and the head.

    The result is per token, [B, T], or the same on all devices.
    """
    if one_device():
        return function(hidden_BTD, head_DW, targets_BT, ())
    mesh = jax.sharding.get_abstract_mesh()
    axes = [split_axes(axis, size, mesh) for axis, size in zip(("batch", "tokens"), targets_BT.shape, strict=True)]

    def on_device(hidden_BTD, head_DW, targets_BT):
        head_DW = jax.lax.all_gather(head_DW, RULES["embed"], tiled=True)
        return function(hidden_BTD, head_DW, targets_BT, (*axes[0], *axes[1]))

    tokens, embed = PartitionSpec(*axes), PartitionSpec(RULES["embed"])
    return jax.shard_map(
        on_device,
        in_specs=(tokens, embed, tokens),
        out_specs=tokens if of_tokens else PartitionSpec(),
        axis_names={*RULES["batch"], *RULES["tokens"]},
        check_vma=False,
    )(hidden_BTD, head_DW, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy_sum(hidden_BTD, head_DW, targets_BT, chunk: int):
    """Σ -log softmax(hidden · head)[target] over targets that are not -100, in chunks of `chunk` tokens of each row.

    Its gradients are made in the same pass (the loss is a scalar: they only scale), so that the logits are computed
    once and never kept.
    """

    def step(total, inputs):
        nll_BC, _ = _chunk_nll(*inputs, head_DW)
        return total + nll_BC.sum(), None

    total, _ = jax.lax.scan(step, _zero(hidden_BTD), _time_chunks(hidden_BTD, targets_BT, chunk))
    return total


def _cross_entropy_fwd(hidden_BTD, head_DW, targets_BT, chunk: int):
    def step(carry, inputs):
        total, grad_head_DW = carry
        x_BCD, target_BC = inputs
        nll_BC, grad_logits_BCW = _chunk_nll(x_BCD, target_BC, head_DW)
        dtype = grad_logits_BCW.dtype
        grad_x_BCD = jnp.einsum("BCW,DW->BCD", grad_logits_BCW, head_DW.astype(dtype))
        grad_head_DW += jnp.einsum("BCD,BCW->DW", x_BCD.astype(dtype), grad_logits_BCW)
        return (total + nll_BC.sum(), grad_head_DW), grad_x_BCD.astype(x_BCD.dtype)

    start = (_zero(hidden_BTD), jnp.zeros(head_DW.shape, _zero(hidden_BTD).dtype))
    (total, grad_head_DW), grads = jax.lax.scan(step, start, _time_chunks(hidden_BTD, targets_BT, chunk))
    grad_x_BTD = jnp.moveaxis(grads, 0, 1).reshape(hidden_BTD.shape[0], -1, hidden_BTD.shape[2])
    return total, (grad_x_BTD[:, : hidden_BTD.shape[1]], grad_head_DW.astype(head_DW.dtype))


def _cross_entropy_bwd(chunk: int, residuals, grad):
    del chunk
    return *(jnp.asarray(grad, leaf.dtype) * leaf for leaf in residuals), None


_cross_entropy_sum.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def token_logps(hidden_BTD, head_DW, targets_BT, chunk: int):
    """log softmax(hidden · head)[target], [B, T] in at least float32, 0 where a target is -100.

    Made in chunks of `chunk` tokens of each row; a gradient makes each chunk's logits again, so they are never kept.
    """
    return token_logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk)[0]


def token_logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk: int):
    """(`token_logps`, the entropy in nats of what each target was drawn from: a constant, 0 where a target is -100)."""
    of_device = lambda *arguments: _logps_and_entropies(*arguments[:3], chunk)  # noqa: E731
    return _by_tokens(of_device, hidden_BTD, head_DW, targets_BT, of_tokens=True)


def _logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk: int):
    @jax.checkpoint
    def step(_, inputs):
        x_BCD, target_BC = inputs
        logits_BCW = jax.lax.stop_gradient(head_logits(head_DW, x_BCD))
        logps_BCW = jax.nn.log_softmax(logits_BCW, axis=-1)
        entropy_BC = jnp.where(target_BC != IGNORED, -jnp.sum(jnp.exp(logps_BCW) * logps_BCW, axis=-1), 0)
        return None, (-_chunk_nll(x_BCD, target_BC, head_DW)[0], entropy_BC)

    _, chunks = jax.lax.scan(step, None, _time_chunks(hidden_BTD, targets_BT, chunk))
    batch, length = targets_BT.shape
    return tuple(jnp.moveaxis(x_NBC, 0, 1).reshape(batch, -1)[:, :length] for x_NBC in chunks)


def _chunk_nll(x_BCD, target_BC, head_DW):
    """(negative log-likelihood [B, C], its gradient by the logits [B, C, W])."""
    logits_BCW = head_logits(head_DW, x_BCD)
    counts_BC1 = (target_BC != IGNORED)[..., None]
    picked_BCW = jnp.arange(head_DW.shape[1]) == target_BC[..., None]
    logsumexp_BC1 = jax.nn.logsumexp(logits_BCW, axis=-1, keepdims=True)
    nll_BC1 = logsumexp_BC1 - jnp.sum(jnp.where(picked_BCW, logits_BCW, 0), axis=-1, keepdims=True)
    grad_BCW = jnp.where(counts_BC1, jnp.exp(logits_BCW - logsumexp_BC1) - picked_BCW, 0)
    return jnp.where(counts_BC1, nll_BC1, 0)[..., 0], grad_BCW


def _zero(x):
    return jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))


def _time_chunks(hidden_BTD, targets_BT, chunk: int):
    """Both as [N, B, C, …]; targets behind the end are -100. The batch axis stays whole, so a sharded one stays put."""
    batch, length, width = hidden_BTD.shape
    behind = -length % min(chunk, length)
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, behind), (0, 0))).reshape(batch, -1, min(chunk, length), width)
    targets = jnp.pad(targets_BT, ((0, 0), (0, behind)), constant_values=IGNORED).reshape(batch, -1, min(chunk, length))
    return jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)
