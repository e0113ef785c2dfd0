"""Lightning attention on GPUs (Triton, sm_80 and later): first the states between chunks in order, then all chunks in
parallel. Tests lower and interpret the kernels; they have not been timed on a GPU."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pallas_kernels.lightning_attention.gpu_chunks import chunk_gradients, chunk_outputs
from pallas_kernels.lightning_attention.gpu_marks import CHUNK, marks_of
from pallas_kernels.lightning_attention.gpu_states import fold_chunks

DTYPES = (jnp.bfloat16, jnp.float32)
DIMS = (16, 32, 64, 128)  # Triton blocks are powers of two, and its matmuls need at least 16


def lightning_attention_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    initial_state: jax.Array | None,
    segment_ids: ArrayLike | None,
    num_heads: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` on a GPU for flat q, k [B, T, H·K] and v [B, T, H·V]: (out [B, T, H·V], final_state).

    All arrays are bfloat16 or all float32; K and V are 16, 32, 64 or 128. Raises ValueError for other dtypes and sizes.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES or x.dtype != q.dtype:
            raise ValueError(f"lightning_attention: {name} is {x.dtype}; the GPU kernels take bfloat16 or float32")
        if x.shape[2] // num_heads not in DIMS:
            raise ValueError(f"lightning_attention: {name} has heads of {x.shape[2] // num_heads}; one of {DIMS}")
    shape = (len(q), num_heads, q.shape[2] // num_heads, v.shape[2] // num_heads)
    state = jnp.zeros(shape, jnp.float32) if initial_state is None else initial_state.astype(jnp.float32)
    ids = None if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    return _attend(interpret, q, k, v, log_decay.astype(jnp.float32), state, ids)


def suits_gpu(q: jax.Array | jax.ShapeDtypeStruct, value_dim: int) -> bool:
    """Whether the kernels suit q [B, T, H, K]: tested head sizes that fit an sm_80's shared memory, whole chunks."""
    widest = DIMS[-1] * jnp.dtype(jnp.bfloat16).itemsize // q.dtype.itemsize
    whole = {q.shape[3], value_dim} <= {*DIMS} and max(q.shape[3], value_dim) <= widest
    return q.dtype in DTYPES and q.shape[1] >= CHUNK and whole


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(interpret, q, k, v, log_decay, state, segment_ids):
    return _attend_forward(interpret, q, k, v, log_decay, state, segment_ids)[0]


def _attend_forward(interpret, q, k, v, log_decay, state, segment_ids):
    marks = marks_of(segment_ids, *q.shape[:2])
    q_pad, k_pad, v_pad = map(_padded, (q, k, v))
    states, final = fold_chunks(k_pad, v_pad, log_decay, state, marks, scale=1.0, reverse=False, interpret=interpret)
    out = chunk_outputs(q_pad, k_pad, v_pad, states, log_decay, marks, interpret=interpret)
    return (out[:, : q.shape[1]], final), (q, k, v, log_decay, segment_ids, states)


def _attend_backward(interpret, kept, cotangents):
    q, k, v, log_decay, segment_ids, states = kept
    length, marks = q.shape[1], marks_of(segment_ids, *q.shape[:2])
    d_out, d_final = cotangents
    q_pad, k_pad, v_pad, d_out = map(_padded, (q, k, v, d_out))
    scale = states.shape[3] ** -0.5
    d_states, d_state = fold_chunks(
        q_pad, d_out, log_decay, d_final, marks, scale=scale, reverse=True, interpret=interpret
    )
    grads = chunk_gradients(
        q_pad, k_pad, v_pad, d_out, states, d_states, log_decay, marks, interpret=interpret
    )  # fmt: skip
    return *(grad[:, :length] for grad in grads), None, d_state, None


_attend.defvjp(_attend_forward, _attend_backward)


def _padded(x):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0)))
