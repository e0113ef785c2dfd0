"""Lightning attention on a GPU for one to eight tokens on stored states, each read and written once, in place.

Lowered and interpreted in tests; not timed on a GPU.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.lightning_attention.gpu import DIMS

MAX_TOKENS = 8
COLUMNS = 32  # of a state in a program's registers; our choice
PARAMS = plgpu.CompilerParams(num_warps=4, num_stages=1)


def lightning_decode_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    states: jax.Array,
    place: Sequence[int | jax.Array] = (),
    live: jax.Array | None = None,
    *,
    num_heads: int,
    every: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_decode_tpu` on a GPU, for K and V that are powers of two; same arguments, result and errors."""
    batch, length, _ = q.shape
    if length > MAX_TOKENS:
        raise ValueError(f"lightning_decode: q has {length} tokens; at most {MAX_TOKENS}: use lightning_attention")
    *stack, _, _, key_dim, value_dim = states.shape
    columns = min(COLUMNS, value_dim)
    layer = jnp.int32(0)
    for index, count in zip(place, stack, strict=True):
        layer = layer * count + index
    live = jnp.ones((batch, length), jnp.int32) if live is None else live.astype(jnp.int32)
    flat = states.reshape(-1, *states.shape[-4:])

    def rows(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, length, width), lambda b, h, c: (b, 0, h))

    value = pl.BlockSpec((None, length, columns), lambda b, h, c: (b, 0, h * (value_dim // columns) + c))
    state = pl.BlockSpec((len(flat), None, None, key_dim, columns), lambda b, h, c: (0, b, h, 0, c))
    after, after_shape = state, flat.shape
    if every:
        after = pl.BlockSpec((None, length, None, key_dim, columns), lambda b, h, c: (b, 0, h, 0, c))
        after_shape = (batch, length, num_heads, key_dim, value_dim)
    out, states_after = pl.pallas_call(
        functools.partial(_kernel, length=length, every=every),
        grid=(batch, num_heads, value_dim // columns),
        in_specs=[
            pl.BlockSpec((1,), lambda b, h, c: (0,)),
            pl.BlockSpec((None, length), lambda b, h, c: (b, 0)),
            pl.BlockSpec((None,), lambda b, h, c: (h,)),
            *(rows(key_dim), rows(key_dim), value, state),
        ],
        out_specs=[value, after],
        out_shape=[jax.ShapeDtypeStruct(v.shape, v.dtype), jax.ShapeDtypeStruct(after_shape, jnp.float32)],
        input_output_aliases={} if every else {6: 1},
        compiler_params=PARAMS,
        interpret=interpret,
        name="lightning_gpu_decode",
    )(layer.reshape(1), live, log_decay.astype(jnp.float32), q, k, v, flat)
    return out, states_after if every else states_after.reshape(states.shape)


def _kernel(
    layer_ref, live_ref, log_decay_ref, q_ref, k_ref, v_ref, state_ref, out_ref, after_ref, *, length: int, every: bool
):
    layer, lost = layer_ref[0], jnp.expm1(log_decay_ref[...])  # decay - 1, as in the TPU kernel
    state = state_ref[layer]
    scale = q_ref.shape[1] ** -0.5
    for token in range(length):
        q, k, v = (ref[token, :].astype(jnp.float32) for ref in (q_ref, k_ref, v_ref))
        live = live_ref[token] != 0
        new = state + (state * lost + k[:, None] * v[None, :])
        state = lax.select(jnp.broadcast_to(live, state.shape), new, state)
        out = jnp.sum(q[:, None] * state, axis=0) * scale
        out_ref[token, :] = jnp.where(live, out, 0.0).astype(out_ref.dtype)
        if every:
            after_ref[token] = state
    if not every:
        after_ref[layer] = state


def suits_decode_gpu(length: int, key_dim: int, value_dim: int) -> bool:
    """Whether this kernel suits a GPU: few tokens and tested head sizes."""
    return length <= MAX_TOKENS and {key_dim, value_dim} <= {*DIMS}
