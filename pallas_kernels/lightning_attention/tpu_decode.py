"""Lightning attention on a TPU for one to eight tokens on stored states, each read and written once, in place.

The recurrence itself, on the vector units in float32, while the next state comes in; memory is the limit by far. It is
S_t = S_{t-1} + ((decay - 1) S_{t-1} + k_t^T v_t): of a slow head's decay, float32 holds the last digits of decay - 1
only, and thousands of single tokens would multiply the rounding.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lightning_attention.tpu_blocks import LANES, Size

MOST_TOKENS = 8
SUBLANES = 8
BLOCK_BYTES = 2**19  # of states in a grid step; our choice: large enough for full bandwidth, four such fit anywhere
VMEM_LIMIT = 48 * 2**20


def lightning_decode_tpu(
    q, k, v, log_decay, states, place=(), live=None, *, num_heads: int, every: bool = False, interpret: bool = False
):
    """(out [B, T, H·V] in v's dtype, the states with these tokens).

    Args:
      q, k: [B, T, H·K]. v: [B, T, H·V]; T at most 8.
      log_decay: [H].
      states: [*stack, B, H, K, V] float32, of many layers: the one at `place`, an index for each axis of the stack, is
        read and written. Given up by a caller that jits with donation, it is updated in place.
      live: [B, T] or None; a token that is 0 neither updates nor decays its state, and its output is 0. So a second
        call with the tokens that were accepted goes from the states before to those behind them.
      every: return the state behind each token, [B, T, H, K, V], instead, and leave `states` as they are.

    Raises ValueError for too many tokens.
    """
    batch, length, _ = q.shape
    if length > MOST_TOKENS:
        raise ValueError(f"lightning_decode: q has {length} tokens; at most {MOST_TOKENS}: use lightning_attention")
    *stack, _, _, key_dim, value_dim = states.shape
    slots, size = _block(batch, length, num_heads, key_dim, value_dim)
    layer = jnp.int32(0)
    for index, count in zip(place, stack, strict=True):
        layer = layer * count + index
    live = jnp.ones((batch, length), jnp.int32) if live is None else live.astype(jnp.int32)
    live = jnp.pad(live, ((0, -batch % slots), (0, 0)))
    state = pl.BlockSpec((1, slots, *size), lambda b, h, layer_ref, live_ref: (layer_ref[0], b, h, 0, 0))
    row = lambda width: pl.BlockSpec((slots * length, size.heads * width), lambda b, h, *_: (b, h))  # noqa: E731
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
    """Slots and heads of a grid step: the fewest slots whose tokens fill rows of tiles, and heads up to BLOCK_BYTES.

    The last step may have slots that there are not.
    """
    slots = min(batch, SUBLANES // math.gcd(SUBLANES, length))
    limit = BLOCK_BYTES // (4 * slots * key_dim * value_dim)
    whole = lambda n: not (n * key_dim % LANES or n * value_dim % LANES) or n == num_heads  # noqa: E731
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
    """exp(log_decay) - 1 to all digits, for which there is no instruction: near 0 by its series."""
    series = jnp.ones_like(log_decay)
    for n in range(9, 1, -1):
        series = 1 + log_decay * (1 / n) * series
    return jnp.where(log_decay > -0.5, log_decay * series, jnp.exp(log_decay) - 1)


def _columns(x):
    """[R, K] -> [K, R or more], float32, by transposes of whole tiles."""
    padded = jnp.pad(x.astype(jnp.float32), ((0, -x.shape[0] % LANES), (0, 0)))
    return padded.T


def suits_decode(length: int, key_dim: int, value_dim: int) -> bool:
    """Whether this kernel is the faster choice on a TPU: few tokens, and states of whole tiles."""
    return length <= MOST_TOKENS and not (key_dim % LANES or value_dim % LANES)
