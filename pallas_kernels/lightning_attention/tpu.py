"""Lightning attention on TPUs: one differentiable function over both passes, and the choice of blocks."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.typing import ArrayLike

from pallas_kernels.lightning_attention.tpu_backward import backward
from pallas_kernels.lightning_attention.tpu_blocks import CHUNK, LANES, rows_of
from pallas_kernels.lightning_attention.tpu_forward import forward

DTYPES = (jnp.bfloat16, jnp.float32)
# Bytes of a row of a block: 8 heads of 128 in bfloat16. More spill registers, fewer leave matrix units idle.
HEAD_BYTES = 8 * 128 * 2


def lightning_attention_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
    num_heads: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` on a TPU for flat q, k [B, T, H·K] and v [B, T, H·V]: (out [B, T, H·V], final_state).

    All arrays are bfloat16 or all float32; raises ValueError for other dtypes.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES or x.dtype != q.dtype:
            raise ValueError(f"lightning_attention: {name} is {x.dtype}; the TPU kernels take bfloat16 or float32")
    if initial_state is not None:
        initial_state = initial_state.astype(jnp.float32)
    ids = None if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    return _attend(num_heads, interpret, q, k, v, log_decay.astype(jnp.float32), initial_state, ids)


def suits_tpu(q: jax.Array | jax.ShapeDtypeStruct, value_dim: int) -> bool:
    """Whether the kernels are the faster choice for q [B, T, H, K]: whole tiles, and tokens that fill a chunk."""
    return q.dtype in DTYPES and q.shape[1] >= CHUNK and not (q.shape[3] % LANES or value_dim % LANES)


def head_block(batch: int, num_heads: int, key_dim: int, value_dim: int, itemsize: int) -> int:
    """Heads of a grid step: a divisor of H with whole tiles of columns, small enough for two steps on two cores."""
    limit = max(1, HEAD_BYTES // (max(key_dim, value_dim) * itemsize))

    def whole(n: int) -> bool:
        return not (n * key_dim % LANES or n * value_dim % LANES)

    fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0 and (whole(n) or n == num_heads)]
    small = [n for n in fits if n <= limit] or fits[:1]
    shared = [n for n in small if batch * num_heads // n >= 2] or small
    return max(shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(num_heads, interpret, q, k, v, log_decay, initial_state, segment_ids):
    return _forward(num_heads, interpret, q, k, v, log_decay, initial_state, segment_ids, save=False)[:2]


def _attend_forward(num_heads, interpret, *arguments):
    q, k, v, log_decay, initial_state, segment_ids = jax.tree.map(lambda x: x.value, arguments, is_leaf=_is_primal)
    out, final_state, states = _forward(num_heads, interpret, q, k, v, log_decay, initial_state, segment_ids, save=True)
    return (out, final_state), (q, k, v, log_decay, segment_ids, states, initial_state is not None)


def _attend_backward(num_heads, interpret, kept, cotangents):
    q, k, v, log_decay, segment_ids, states, initial = kept
    d_out, d_final = cotangents
    if isinstance(d_out, SymbolicZero):
        d_out = jnp.zeros(d_out.shape, d_out.dtype)
    dq, dk, dv, d_initial = backward(
        q, k, v, d_out, states,
        None if isinstance(d_final, SymbolicZero) else d_final,  # the usual case: no gradient to read
        log_decay, rows_of(segment_ids, q.shape[1], initial),
        heads=_heads(num_heads, q, v), initial=initial, interpret=interpret,
    )  # fmt: skip
    return dq, dk, dv, None, d_initial, None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _forward(num_heads, interpret, q, k, v, log_decay, initial_state, segment_ids, *, save: bool):
    rows = rows_of(segment_ids, q.shape[1], initial_state is not None)
    heads = _heads(num_heads, q, v)
    options = dict(num_heads=num_heads, heads=heads, save=save, interpret=interpret)
    return forward(q, k, v, log_decay, initial_state, rows, **options)


def _heads(num_heads: int, q, v) -> int:
    return head_block(q.shape[0], num_heads, q.shape[2] // num_heads, v.shape[2] // num_heads, q.dtype.itemsize)


def _is_primal(x) -> bool:
    return isinstance(x, CustomVJPPrimal)
