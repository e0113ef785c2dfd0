"""The one entry to Lightning attention; it checks shapes and picks a backend."""

import jax
import jax.numpy as jnp

from pallas_kernels.lightning_attention.reference import lightning_attention_reference
from pallas_kernels.lightning_attention.xla import lightning_attention_xla

BACKENDS = ("reference", "xla")


def lightning_attention(
    q,
    k,
    v,
    log_decay,
    *,
    initial_state=None,
    segment_ids=None,
    backend: str | None = None,
    chunk_size: int | None = None,
):
    """Causal linear attention with a constant decay per head (docs/architecture.md §5, step 3).

        S_t = exp(log_decay) S_{t-1} + k_t^T v_t        out_t = K^-0.5 q_t S_t

    Args:
      q, k: [B, T, H, K]. v: [B, T, H, V].
      log_decay: [H], <= 0; a constant: no gradient reaches it.
      initial_state: [B, H, K, V] of the row's first document, or None for zeros.
      segment_ids: [B, T] integers or None. 0 is padding: its output is 0 and it neither updates nor decays the
        state. The state restarts at 0 where a new document, a maximal run of equal non-zero ids, begins.
      backend: "reference" (a scan over tokens), "xla" (chunks); None chooses.
      chunk_size: tokens of a chunk; None chooses.

    Returns:
      (out [B, T, H, V] in v's dtype, final_state [B, H, K, V] in at least float32, after the last live token).

    Raises:
      ValueError: shapes that do not fit or an unknown backend.
    """
    log_decay = jax.lax.stop_gradient(jnp.asarray(log_decay))
    _check_shapes(q, k, v, log_decay, initial_state, segment_ids, chunk_size)
    if initial_state is None:
        shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
        initial_state = jnp.zeros(shape, jnp.promote_types(q.dtype, jnp.float32))
    backend = backend or "xla"
    with jax.named_scope(f"lightning_attention_{backend}"):
        if backend == "reference":
            return lightning_attention_reference(q, k, v, log_decay, initial_state, segment_ids)
        if backend == "xla":
            return lightning_attention_xla(q, k, v, log_decay, initial_state, segment_ids, chunk_size)
    raise ValueError(f"backend is {backend!r}; it is one of {', '.join(BACKENDS)} or None")


def lightning_attention_flat(q, k, v, log_decay, *, num_heads: int, **options):
    """`lightning_attention` on q, k [B, T, H·K] and v [B, T, H·V], as projections make them."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 or x.shape[-1] % num_heads:
            raise ValueError(f"{name} is {x.shape}; expected [B, T, H·dim] with H = {num_heads} heads")
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))
    out, state = lightning_attention(q, k, v, log_decay, **options)
    return out.reshape(*out.shape[:2], -1), state


def _check_shapes(q, k, v, log_decay, initial_state, segment_ids, chunk_size) -> None:
    def check(name, x, expected):
        if x.shape != expected:
            raise ValueError(f"lightning_attention: {name} is {x.shape}; expected {expected} from q {q.shape}")

    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"lightning_attention: q {q.shape} and v {v.shape} must be [B, T, H, dim]")
    batch, length, heads, key_dim = q.shape
    if length == 0:
        raise ValueError(f"lightning_attention: q {q.shape} has no tokens")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"lightning_attention: chunk_size is {chunk_size}; it must be at least 1")
    check("k", k, q.shape)
    check("v", v, (batch, length, heads, v.shape[-1]))
    check("log_decay", log_decay, (heads,))
    if initial_state is not None:
        check("initial_state", initial_state, (batch, heads, key_dim, v.shape[-1]))
    if segment_ids is not None:
        check("segment_ids", jnp.asarray(segment_ids), (batch, length))
