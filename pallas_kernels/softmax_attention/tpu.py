"""Softmax attention on a TPU: whole rows, partial attention, and the shapes that suit the kernels."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.softmax_attention.tpu_backward import backward
from pallas_kernels.softmax_attention.tpu_forward import Size, block_size, forward
from pallas_kernels.softmax_attention.window import Window, document_window
from pallas_kernels.tpu import LANES

MAX_HEAD_DIM = 256  # blocks and gradients of wider heads do not fit in VMEM
MAX_QUERIES = 8192  # queries whose gradient is on chip at a time
BLOCK = 1024  # tokens of a block at most; our choice, by static cost


def suits_tpu(dtype: DTypeLike, length: int, keys: int, key_dim: int, value_dim: int) -> bool:
    """Whether these kernels suit a TPU: whole tiles that fit in VMEM."""
    whole = not (length % LANES or keys % LANES or key_dim % 64 or value_dim % LANES)
    return dtype in (jnp.bfloat16, jnp.float32) and whole and max(key_dim, value_dim) <= MAX_HEAD_DIM


def softmax_attention_tpu(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGV: jax.Array,
    docs_BT: jax.Array | None,
    scale: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention inside documents, [B, T, H, V] in v's dtype; query head h reads key/value head h // (H/G).

    q [B, T, H, K], k [B, T, G, K], v [B, T, G, V] are all bfloat16 or all float32, in shapes that `suits_tpu` accepts.
    Scores and softmax are float32; `scale` is > 0. `docs_BT` numbers the documents of each row in order, 0 for padding,
    which attends to itself only; None: each row is one document.
    """

    def heads_first(x):
        return jnp.swapaxes(x, 1, 2)

    window = document_window(docs_BT, q_BTHK.shape[:2])
    return heads_first(_attend(scale, interpret, *map(heads_first, (q_BTHK, k_BTGK, v_BTGV)), window))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale: float, interpret: bool, q, k, v, window: Window):
    return _attend_forward(scale, interpret, q, k, v, window)[0]


def _attend_forward(scale: float, interpret: bool, q, k, v, window: Window):
    size = _size(q, k)
    out, logsumexp = forward(q, k, v, window, scale, size, _causal_pairs(q, size), v.dtype, interpret)
    return out, (q, k, v, window, out, logsumexp)


def _attend_backward(scale: float, interpret: bool, kept, d_out):
    q, k, v, window, out, logsumexp = kept
    shift = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    pairs = _causal_pairs(q, _size(q, k))
    grads = _gradients(q, k, v, window, logsumexp, shift, d_out, scale, pairs, interpret)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)


def attend_tpu(
    q: jax.Array, k: jax.Array, v: jax.Array, window: Window, scale: float, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`api.attend` on a TPU; results are float32."""
    return forward(q, k, v, window, scale, _size(q, k), q.shape[2] * k.shape[2], jnp.float32, interpret)


def attend_gradients_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: Window,
    logsumexp: jax.Array,
    shift: jax.Array,
    d_out: jax.Array,
    scale: float,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`api.attend_gradients` on a TPU."""
    pairs = q.shape[2] * k.shape[2]
    return _gradients(q, k, v, window, logsumexp, shift, d_out, scale, pairs, interpret)


def _gradients(q, k, v, window: Window, logsumexp, shift, d_out, scale: float, pairs: int, interpret: bool):
    """(dq, dk, dv), one stretch of queries after the other."""
    groups, (batch, heads, length, _) = k.shape[1], q.shape
    count = next(n for n in range(-(-length // MAX_QUERIES), length + 1) if n == 1 or not length % (n * LANES))
    alone = count == 1 and heads == groups  # otherwise dk and dv are summed in float32

    def stretch(q, logsumexp, shift, d_out, window):
        d_q, *d_kv = backward(
            q, k, v, d_out, logsumexp, shift, window, scale, _size(q, k), pairs // count,
            (k.dtype, v.dtype) if alone else (jnp.float32, jnp.float32), interpret,
        )  # fmt: skip
        return d_q, tuple(x.reshape(batch, groups, -1, *x.shape[2:]).sum(axis=2) if heads > groups else x for x in d_kv)

    def add(total, inputs):
        d_q, d_kv = stretch(*inputs)
        return jax.tree.map(jnp.add, total, d_kv), d_q

    if count == 1:
        d_q, d_kv = stretch(q, logsumexp, shift, d_out, window)
        return d_q, *d_kv
    queries = tuple(_stretches(x, 2, count) for x in (q, logsumexp, shift, d_out))
    windows = Window(*(_stretches(x, 1, count) for x in window))
    d_kv, d_q = jax.lax.scan(add, tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v)), (*queries, windows))
    return jnp.moveaxis(d_q, 0, 2).reshape(q.shape), *d_kv


def _stretches(x, axis: int, count: int):
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)


def _size(q, k) -> Size:
    return Size(block_size(q.shape[2], BLOCK), block_size(k.shape[2], BLOCK))


def _causal_pairs(q, size: Size) -> int:
    """Number of computed (query, key) pairs of a whole row: whole blocks up to the diagonal."""
    return q.shape[2] * (q.shape[2] + max(size)) // 2
