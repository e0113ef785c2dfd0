"""Lightning attention on GPUs (Triton, sm_80 and later): states between chunks one after the other, then all chunks at
once. Lowered and interpreted in tests; not timed on a GPU."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.gpu_chunks import chunk_gradients, chunk_outputs
from pallas_kernels.lightning_attention.gpu_marks import CHUNK, marks_of
from pallas_kernels.lightning_attention.gpu_states import fold_chunks

DTYPES = (jnp.bfloat16, jnp.float32)
DIMS = (16, 32, 64, 128)  # Triton's blocks are powers of two; its matmuls need 16


def lightning_attention_gpu(q, k, v, log_decay, initial_state, segment_ids, num_heads: int, interpret: bool = False):
    """(out, final_state) of flat q, k [B, T, H·K] and v [B, T, H·V], all bfloat16 or all float32; the rest as in
    `lightning_attention`. K and V are 16, 32, 64 or 128."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in DTYPES or x.dtype != q.dtype:
            raise ValueError(f"lightning_attention: {name} is {x.dtype}; the GPU kernels take bfloat16 or float32")
        if x.shape[2] // num_heads not in DIMS:
            raise ValueError(f"lightning_attention: {name} has heads of {x.shape[2] // num_heads}; one of {DIMS}")
    shape = (len(q), num_heads, q.shape[2] // num_heads, v.shape[2] // num_heads)
    state = jnp.zeros(shape, jnp.float32) if initial_state is None else initial_state.astype(jnp.float32)
    ids = None if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    return _attend(interpret, q, k, v, log_decay.astype(jnp.float32), state, ids)


def suits_gpu(q, value_dim: int) -> bool:
    """Whether the kernels are the choice for q [B, T, H, K]: tested sizes of heads whose tiles fit in the shared memory
    of an sm_80, and tokens that fill a chunk."""
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
