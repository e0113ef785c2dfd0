"""Lightning attention on a TPU for one to eight tokens on stored states, which are read and written once, in place.

The kernel runs the recurrence on the vector units in float32 while the next state is loaded; memory bandwidth is the
limit. It computes S_t = S_{t-1} + ((decay - 1) S_{t-1} + k_t^T v_t). For slow heads decay is close to 1: float32 keeps
all digits of decay - 1, whereas the rounding of decay would accumulate over thousands of tokens.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.tpu_blocks import LANES, Size

MAX_TOKENS = 8
SUBLANES = 8
BLOCK_BYTES = 2**19  # of states in a grid step; our choice: enough for full bandwidth, and four fit on every chip
VMEM_LIMIT = 48 * 2**20


def lightning_decode_tpu(
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
    """(out [B, T, H·V] in v's dtype, the states after these tokens).

    Args:
      q, k: [B, T, H·K]. v: [B, T, H·V]; T at most 8.
      log_decay: [H].
      states: [*stack, B, H, K, V] float32 states of many layers; the kernel reads and writes the layer at `place`, an
        index for each axis of the stack. If the caller donates the array, the update is in place.
      live: [B, T] or None. A token with 0 neither updates nor decays the state, and its output is 0. So a second call
        with the accepted draft tokens leads from the states before to those after them.
      every: return the state after each token, [B, T, H, K, V], instead; `states` stay unchanged.

    Raises ValueError for too many tokens.
    """
    batch, length, _ = q.shape
    if length > MAX_TOKENS:
        raise ValueError(f"lightning_decode: q has {length} tokens; at most {MAX_TOKENS}: use lightning_attention")
    *stack, _, _, key_dim, value_dim = states.shape
    slots, size = _block(batch, length, num_heads, key_dim, value_dim)
    layer = jnp.int32(0)
    for index, count in zip(place, stack, strict=True):
        layer = layer * count + index
    live = jnp.ones((batch, length), jnp.int32) if live is None else live.astype(jnp.int32)
    live = jnp.pad(live, ((0, -batch % slots), (0, 0)))
    state = pl.BlockSpec((1, slots, *size), lambda b, h, layer_ref, live_ref: (layer_ref[0], b, h, 0, 0))

    def row(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((slots * length, size.heads * width), lambda b, h, *_: (b, h))

    flat_states = states.reshape(-1, *states.shape[-4:])
    rows = [x.reshape(batch * length, -1) for x in (q, k, v)]
    shape = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(q).manual_axis_type)
    after = pl.BlockSpec((slots, length, *size), lambda b, h, *_: (b, 0, h, 0, 0)) if every else state
    after_shape = (batch, length, num_heads, key_dim, value_dim) if every else flat_states.shape
    out, states_after = pl.pallas_call(
        functools.partial(_kernel, slots=slots, length=length, size=size, every=every),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(batch, slots), num_heads // size.heads),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), row(key_dim), row(key_dim), row(value_dim), state],
            out_specs=[row(value_dim), after],
        ),
        out_shape=[shape(rows[2].shape, v.dtype), shape(after_shape, jnp.float32)],
        input_output_aliases={} if every else {6: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_LIMIT),
        interpret=interpret,
        name="lightning_decode",
    )(layer.reshape(1), live.reshape(-1), log_decay.astype(jnp.float32), *rows, flat_states)
    return out.reshape(v.shape), states_after if every else states_after.reshape(states.shape)


def _block(batch: int, length: int, num_heads: int, key_dim: int, value_dim: int) -> tuple[int, Size]:
    """(rows of the batch, size) of a grid step: the fewest rows whose tokens fill tiles, and heads up to BLOCK_BYTES.

    The last step may cover rows past the batch.
    """
    slots = min(batch, SUBLANES // math.gcd(SUBLANES, length))
    limit = BLOCK_BYTES // (4 * slots * key_dim * value_dim)

    def whole(n: int) -> bool:
        return not (n * key_dim % LANES or n * value_dim % LANES) or n == num_heads

    fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0 and whole(n)]
    return slots, Size(max([n for n in fits if n <= limit] or fits[:1]), key_dim, value_dim)


def _kernel(
    layer_ref, live_ref, log_decay_ref, q_ref, k_ref, v_ref, state_ref, out_ref, after_ref,
    *, slots: int, length: int, size: Size, every: bool,
):  # fmt: skip
    del layer_ref  # the index maps read it
    first_row, first_head = pl.program_id(0) * slots * length, pl.program_id(1) * size.heads
    for head in range(size.heads):
        lost = _lost(jnp.full((1, size.value_dim), log_decay_ref[first_head + head], jnp.float32))
        q, k = (_columns(ref[:, size.keys(head)]) for ref in (q_ref, k_ref))
        v = v_ref[:, size.values(head)].astype(jnp.float32)
        outs = []
        for slot in range(slots):
            state = state_ref[0, slot, head]
            for token in range(length):
                row = slice(slot * length + token, slot * length + token + 1)
                live = live_ref[first_row + row.start] != 0
                state = jnp.where(live, state + (state * lost + k[:, row] * v[row]), state)
                out = jnp.sum(q[:, row] * state, axis=0, keepdims=True) * size.scale
                outs.append(jnp.where(live, out, 0))
                if every:
                    after_ref[slot, token, head] = state
            if not every:
                after_ref[0, slot, head] = state
        out_ref[:, size.values(head)] = jnp.concatenate(outs, axis=0).astype(out_ref.dtype)


def _lost(log_decay):
    """exp(log_decay) - 1 to full precision; a series near 0, since TPUs have no expm1 instruction."""
    series = jnp.ones_like(log_decay)
    for n in range(9, 1, -1):
        series = 1 + log_decay * (1 / n) * series
    return jnp.where(log_decay > -0.5, log_decay * series, jnp.exp(log_decay) - 1)


def _columns(x):
    """The transpose of x [R, K] in float32, [K, R padded to whole tiles]."""
    padded = jnp.pad(x.astype(jnp.float32), ((0, -x.shape[0] % LANES), (0, 0)))
    return padded.T


def suits_decode(length: int, key_dim: int, value_dim: int) -> bool:
    """Whether this kernel is the faster choice on a TPU: few tokens and states of whole tiles."""
    return length <= MAX_TOKENS and not (key_dim % LANES or value_dim % LANES)
