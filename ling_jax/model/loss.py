"""Language-model losses from hidden states, chunk by chunk of tokens (docs/architecture.md §10)."""

import functools
from typing import NamedTuple

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
    if one_device():
        return _cross_entropy_part(hidden_BTD, head_DW, targets_BT, chunk, gradients, LossSplit())
    axes = token_axes(targets_BT.shape)
    tokens, head = PartitionSpec(*axes), partition_spec(("embed", "vocab"))
    split = LossSplit((*axes[0], *axes[1]), RULES["embed"], RULES["vocab"])
    return jax.shard_map(
        lambda *arrays: _cross_entropy_part(*arrays, chunk, gradients, split),
        in_specs=(tokens, head, tokens),
        out_specs=(PartitionSpec(), tokens, head) if gradients else (PartitionSpec(),),
        check_vma=False,
    )(hidden_BTD, head_DW, targets_BT)


class LossSplit(NamedTuple):
    """The mesh axes that split each dimension of a loss; none on one device."""

    tokens: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        """Axes that split tokens and vocabulary: along them a device computes its vocabulary part for all tokens."""
        return tuple(axis for axis in self.vocab if axis in self.tokens)


def _cross_entropy_part(hidden_BTD, head_DW, targets_BT, chunk: int, gradients: bool, split: LossSplit):
    """`_cross_entropy` on one device of a mesh with these axes."""
    tokens, embed, vocab = split
    head_DW = _all_gather(head_DW, embed)
    zero = jnp.zeros((), jnp.promote_types(hidden_BTD.dtype, jnp.float32))

    def step(carry, inputs):
        total, grad_head_DW = carry
        x_BCD, target_BC = (_all_gather(a, split.shared) for a in inputs)
        nll_BC, grad_logits_BCW = _chunk_nll(x_BCD, target_BC, head_DW, vocab)
        if not gradients:
            return (total + nll_BC.sum(), None), None
        dtype = grad_logits_BCW.dtype
        grad_x_BCD = jnp.einsum("BCW,DW->BCD", grad_logits_BCW, head_DW.astype(dtype))
        grad_head_DW += jnp.einsum("BCD,BCW->DW", x_BCD.astype(dtype), grad_logits_BCW)
        return (total + nll_BC.sum(), grad_head_DW), _psum_scatter(grad_x_BCD, vocab, split.shared).astype(x_BCD.dtype)

    start = (zero, jnp.zeros(head_DW.shape, zero.dtype) if gradients else None)
    (total, grad_head_DW), grads = jax.lax.scan(step, start, _time_chunks(hidden_BTD, targets_BT, chunk))
    others = tuple(axis for axis in tokens if axis not in split.shared)
    total = jax.lax.psum(total, others)
    if not gradients:
        return (total,)
    grad_x_BTD = jnp.moveaxis(grads, 0, 1).reshape(len(hidden_BTD), -1, hidden_BTD.shape[2])[:, : hidden_BTD.shape[1]]
    # Devices along an `embed` axis that does not split the tokens hold the same gradient.
    same = jax.lax.psum(1, tuple(axis for axis in embed if axis not in tokens))
    grad_head_DW = _psum_scatter(grad_head_DW, (*embed, *(axis for axis in others if axis not in embed)), embed) / same
    return total, grad_x_BTD, grad_head_DW.astype(head_DW.dtype)


def _all_gather(x, axes: tuple[str, ...]):
    return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _psum_scatter(x, axes: tuple[str, ...], scattered: tuple[str, ...]):
    """The sum along `axes`; along those in `scattered` each device gets its part of the first dimension."""
    x = jax.lax.psum_scatter(x, scattered, tiled=True) if scattered else x
    return jax.lax.psum(x, tuple(axis for axis in axes if axis not in scattered))


def token_logps(hidden_BTD: jax.Array, head_DW: jax.Array, targets_BT: jax.Array, chunk: int) -> jax.Array:
    """log softmax(hidden · head)[target] in nats, [B, T] in at least float32; 0 where the target is -100.

    Computed for `chunk` tokens of each row at a time. Backward recomputes the logits of each chunk.
    """
    return token_logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk)[0]


def token_logps_and_entropies(
    hidden_BTD: jax.Array, head_DW: jax.Array, targets_BT: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """(`token_logps`, entropies of the predictions [B, T] in nats: no gradient, 0 where the target is -100)."""
    if one_device():
        return _logps_and_entropies(hidden_BTD, head_DW, targets_BT, chunk)

    def on_device(hidden_BTD, head_DW, targets_BT):
        return _logps_and_entropies(hidden_BTD, _all_gather(head_DW, RULES["embed"]), targets_BT, chunk)

    tokens = PartitionSpec(*token_axes(targets_BT.shape))
    return jax.shard_map(
        on_device,
        in_specs=(tokens, PartitionSpec(RULES["embed"]), tokens),
        out_specs=tokens,
        axis_names={*RULES["batch"], *RULES["tokens"]},
        check_vma=False,
    )(hidden_BTD, head_DW, targets_BT)


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


def _chunk_nll(x_BCD, target_BC, head_DW, vocab: tuple[str, ...] = ()):
    """(negative log-likelihood [B, C], its gradient with respect to the logits [B, C, W]).

    `vocab` are the mesh axes that split the columns of the head.
    """
    logits_BCW = head_logits(head_DW, x_BCD)
    first = head_DW.shape[1] * jax.lax.axis_index(vocab) if vocab else 0
    picked_BCW = first + jnp.arange(head_DW.shape[1]) == target_BC[..., None]
    counts_BC1 = (target_BC != IGNORED)[..., None]

    def total(x_BCW):
        return jax.lax.psum(x_BCW.sum(axis=-1, keepdims=True), vocab)

    largest_BC1 = jax.lax.pmax(jax.lax.stop_gradient(logits_BCW).max(axis=-1, keepdims=True), vocab)
    logsumexp_BC1 = largest_BC1 + jnp.log(total(jnp.exp(logits_BCW - largest_BC1)))
    nll_BC1 = logsumexp_BC1 - total(jnp.where(picked_BCW, logits_BCW, 0))
    grad_BCW = jnp.where(counts_BC1, jnp.exp(logits_BCW - logsumexp_BC1) - picked_BCW, 0)
    return jnp.where(counts_BC1, nll_BC1, 0)[..., 0], grad_BCW


def _time_chunks(hidden_BTD, targets_BT, chunk: int):
    """Hidden states and targets as [N, B, C, …], padded with targets of -100. The batch axis keeps its sharding."""
    batch, length, width = hidden_BTD.shape
    behind = -length % min(chunk, length)
    hidden = jnp.pad(hidden_BTD, ((0, 0), (0, behind), (0, 0))).reshape(batch, -1, min(chunk, length), width)
    targets = jnp.pad(targets_BT, ((0, 0), (0, behind)), constant_values=IGNORED).reshape(batch, -1, min(chunk, length))
    return jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)
