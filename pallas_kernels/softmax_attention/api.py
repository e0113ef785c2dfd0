"""Attention of some queries to some keys, to be merged with that to others."""

import jax.numpy as jnp

from pallas_kernels.platform import platform
from pallas_kernels.softmax_attention.tpu import attend_gradients_tpu, attend_tpu, suits_tpu
from pallas_kernels.softmax_attention.window import Window
from pallas_kernels.softmax_attention.xla import attend_gradients_xla, attend_xla


def attend(q_BHTK, k_BGSK, v_BGSV, window: Window, scale: float):
    """(out [B, H, T, V], logsumexp of the scores [B, H, T]), both in at least float32.

    Query head h attends to key/value head h // (H/G), query t to the keys of its window. Where there is none out is 0
    and logsumexp -1e30. The scale is > 0. Kernels where the program is for TPUs and the shapes suit them.
    """
    function = attend_tpu if uses_kernels(q_BHTK, k_BGSK, v_BGSV, tokens=2) else attend_xla
    return function(q_BHTK, k_BGSK, v_BGSV, window, scale)


def attend_gradients(q_BHTK, k_BGSK, v_BGSV, window: Window, logsumexp_BHT, shift_BHT, d_out_BHTV, scale: float):
    """(dq, dk, dv), through the weights exp(score - logsumexp) of these keys: dq in at least float32, the others in at
    least the dtype of theirs.

    `logsumexp` and `shift`, the sum of d_out · out over V, are those of all keys that the queries see, not just these.
    """
    function = attend_gradients_tpu if uses_kernels(q_BHTK, k_BGSK, v_BGSV, tokens=2) else attend_gradients_xla
    return function(q_BHTK, k_BGSK, v_BGSV, window, logsumexp_BHT, shift_BHT, d_out_BHTV, scale)


def merge(some, others):
    """(out, logsumexp) of both sets of keys, from those of each."""
    (out, logsumexp), (other_out, other_logsumexp) = some, others
    total = jnp.logaddexp(logsumexp, other_logsumexp)
    part = lambda x, part_logsumexp: jnp.exp(part_logsumexp - total)[..., None] * x  # noqa: E731
    return part(out, logsumexp) + part(other_out, other_logsumexp), total


def uses_kernels(q, k, v, tokens: int) -> bool:
    """Whether the program is for TPUs and the arrays, whose tokens are that axis, suit the kernels."""
    one_dtype = q.dtype == k.dtype == v.dtype
    sizes = q.shape[tokens], k.shape[tokens], q.shape[-1], v.shape[-1]
    return platform() == "tpu" and one_dtype and suits_tpu(q.dtype, *sizes)
