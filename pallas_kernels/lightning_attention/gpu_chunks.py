"""All chunks in parallel on a GPU: outputs from the states before each chunk, gradients from the state gradients after
it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.lightning_attention.gpu_marks import CHUNK, Marks, rows_where
from pallas_kernels.lightning_attention.gpu_states import dot, dot_columns, dot_rows

PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=1)  # three sums of [64, 128] in registers
MANY = 2**30  # larger than any document number


def chunk_outputs(
    q: jax.Array, k: jax.Array, v: jax.Array, states: jax.Array, log_decay: jax.Array, marks: Marks, *, interpret: bool
) -> jax.Array:
    """The outputs of all chunks, [B, N * CHUNK, H·V] in v's dtype; states [B, N, H, K, V] enter the chunks."""
    return _call(_outputs, "lightning_gpu_outputs", (q, k, v), (), (states,), log_decay, marks, (v,), interpret)


def chunk_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    states: jax.Array,
    d_states: jax.Array,
    log_decay: jax.Array,
    marks: Marks,
    *,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) of all chunks; d_states [B, N, H, K, V] are gradients of the states after the chunks."""
    states, outs = (states, d_states), (q, k, v)
    return _call(_gradients, "lightning_gpu_gradients", (q, k, v), (d_out,), states, log_decay, marks, outs, interpret)


def _call(kernel, name: str, qkv, more, states, log_decay, marks: Marks, outs, interpret: bool):
    batch, chunks, heads, key_dim, _ = states[0].shape

    def rows(x) -> pl.BlockSpec:
        return pl.BlockSpec((None, CHUNK, x.shape[2] // heads), lambda b, h, n: (b, n, h))

    token, chunk = (
        pl.BlockSpec((None, CHUNK), lambda b, h, n: (b, n)),
        pl.BlockSpec((None, None), lambda b, h, n: (b, n)),
    )
    state = pl.BlockSpec((None, None, None, *states[0].shape[3:]), lambda b, h, n: (b, n, h, 0, 0))
    results = pl.pallas_call(
        functools.partial(kernel, scale=key_dim**-0.5),
        grid=(batch, heads, chunks),
        in_specs=[
            pl.BlockSpec((None,), lambda b, h, n: (h,)),
            *(token, token, chunk, chunk, chunk),
            *map(rows, (*qkv, *more)),
            *(state for _ in states),
        ],
        out_specs=[*map(rows, outs)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outs],
        compiler_params=PARAMS,
        interpret=interpret,
        name=name,
    )(log_decay, *marks, *qkv, *more, *states)
    return results if len(outs) > 1 else results[0]


def _outputs(
    log_decay_ref, docs_ref, counts_ref, first_ref, last_ref, total_ref, q_ref, k_ref, v_ref, state_ref, out_ref,
    *, scale: float,
):  # fmt: skip
    log_decay, docs, counts = log_decay_ref[...], docs_ref[...], counts_ref[...]
    q, k, v = q_ref[...], k_ref[...], v_ref[...]
    enter = jnp.exp(log_decay * counts.astype(jnp.float32))[:, None]
    old = rows_where(docs == first_ref[...], dot(q, state_ref[...]) * enter)

    def document(doc, out):
        own, within = docs == doc, _within(log_decay, docs, counts, doc)
        score = _masked(within, dot_columns(rows_where(own, q), rows_where(own, k)))
        return out + rows_where(own, dot(score.astype(v.dtype), rows_where(own, v)))

    out_ref[...] = (_over_documents(docs, document, old) * scale).astype(out_ref.dtype)


def _gradients(
    log_decay_ref, docs_ref, counts_ref, first_ref, last_ref, total_ref, q_ref, k_ref, v_ref, d_out_ref,
    state_ref, d_state_ref, dq_ref, dk_ref, dv_ref, *, scale: float,
):  # fmt: skip
    log_decay, docs, counts = log_decay_ref[...], docs_ref[...], counts_ref[...]
    q, k, v, d_out = q_ref[...], k_ref[...], v_ref[...], d_out_ref[...]
    enter = jnp.exp(log_decay * counts.astype(jnp.float32))[:, None] * scale
    leave = jnp.exp(log_decay * (total_ref[...] - counts).astype(jnp.float32))[:, None]
    enters, leaves = docs == first_ref[...], docs == last_ref[...]
    old = (
        rows_where(enters, dot_columns(d_out, state_ref[...]) * enter),
        rows_where(leaves, dot_columns(v, d_state_ref[...]) * leave),
        rows_where(leaves, dot(k, d_state_ref[...]) * leave),
    )

    def document(doc, grads):
        own, within = docs == doc, _within(log_decay, docs, counts, doc)
        q_own, k_own, d_out_own = (rows_where(own, x) for x in (q, k, d_out))
        score = _masked(within, dot_columns(q_own, k_own) * scale).astype(v.dtype)
        d_score = _masked(within, dot_columns(d_out_own, rows_where(own, v)) * scale).astype(v.dtype)
        more = dot(d_score, k_own), dot_rows(d_score, q_own), dot_rows(score, d_out_own)
        return tuple(old + rows_where(own, new) for old, new in zip(grads, more, strict=True))

    grads = _over_documents(docs, document, old)
    for ref, grad in zip((dq_ref, dk_ref, dv_ref), grads, strict=True):
        ref[...] = grad.astype(ref.dtype)


def _over_documents(docs, body, carry):
    """Each document of the chunk alone: a NaN in one would go through a product with 0 to the others."""
    first = jnp.min(jnp.where(docs > 0, docs, MANY))
    return lax.fori_loop(first, jnp.max(docs) + 1, body, carry)


def _within(log_decay, docs, counts, doc):
    """[C, C] float32 decay from token j to token i of a document, -1 where there is none."""
    own = docs == doc
    place = lax.broadcasted_iota(jnp.int32, (CHUNK,), 0)
    pairs = own[:, None] & own[None, :] & (place[:, None] >= place[None, :])
    return jnp.where(pairs, jnp.exp(log_decay * (counts[:, None] - counts[None, :]).astype(jnp.float32)), -1.0)


def _masked(within, score):
    return jnp.where(within >= 0, score * within, 0.0)
