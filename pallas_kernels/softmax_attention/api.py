"""Partial softmax attention: some queries to some keys, and the merge of partial results."""

import jax
import jax.numpy as jnp

from pallas_kernels.platform import platform
from pallas_kernels.softmax_attention.tpu import attend_gradients_tpu, attend_tpu, suits_tpu
from pallas_kernels.softmax_attention.window import Window
from pallas_kernels.softmax_attention.xla import attend_gradients_xla, attend_xla


def attend(
    q_BHTK: jax.Array, k_BGSK: jax.Array, v_BGSV: jax.Array, window: Window, scale: float
) -> tuple[jax.Array, jax.Array]:
    """(out [B, H, T, V], logsumexp of the scores [B, H, T]), both in at least float32.

    Query head h reads key/value head h // (H/G), query t the keys of its window; without any key, out is 0 and
    logsumexp -1e30. `scale` is > 0. On TPUs the kernel runs if the shapes suit it.
    """
    function = attend_tpu if uses_kernels(q_BHTK, k_BGSK, v_BGSV, tokens=2) else attend_xla
    return function(q_BHTK, k_BGSK, v_BGSV, window, scale)


def attend_gradients(
    q_BHTK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSV: jax.Array,
    window: Window,
    logsumexp_BHT: jax.Array,
    shift_BHT: jax.Array,
    d_out_BHTV: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) of attention to these keys, with weights exp(score - logsumexp).

    `logsumexp` and `shift` (the sum of d_out · out over V), [B, H, T] each, are those over all keys of the queries, not
    only these. dq is in at least float32, dk and dv in at least the dtype of k and v.
    """
    function = attend_gradients_tpu if uses_kernels(q_BHTK, k_BGSK, v_BGSV, tokens=2) else attend_gradients_xla
    return function(q_BHTK, k_BGSK, v_BGSV, window, logsumexp_BHT, shift_BHT, d_out_BHTV, scale)


def merge(some: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(out, logsumexp) over two disjoint sets of keys from the result of each."""
    (out, logsumexp), (other_out, other_logsumexp) = some, others
    total = jnp.logaddexp(logsumexp, other_logsumexp)

    def part(x, part_logsumexp):
        return jnp.exp(part_logsumexp - total)[..., None] * x

    return part(out, logsumexp) + part(other_out, other_logsumexp), total


def uses_kernels(q: jax.Array, k: jax.Array, v: jax.Array, tokens: int) -> bool:
    """Whether the program is traced for TPUs and the arrays suit the kernels; `tokens` is their token axis."""
    one_dtype = q.dtype == k.dtype == v.dtype
    sizes = q.shape[tokens], k.shape[tokens], q.shape[-1], v.shape[-1]
    return platform() == "tpu" and one_dtype and suits_tpu(q.dtype, *sizes)
