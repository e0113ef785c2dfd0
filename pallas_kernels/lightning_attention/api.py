"""The entry points of Lightning attention: shape checks and the choice of a backend."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from pallas_kernels.lightning_attention.gpu import lightning_attention_gpu, suits_gpu
from pallas_kernels.lightning_attention.reference import lightning_attention_reference
from pallas_kernels.lightning_attention.tpu import lightning_attention_tpu, suits_tpu
from pallas_kernels.lightning_attention.xla import lightning_attention_xla
from pallas_kernels.platform import platform

BACKENDS = ("reference", "xla", "tpu", "tpu_interpret", "gpu", "gpu_interpret")
KERNELS = {"tpu": lightning_attention_tpu, "gpu": lightning_attention_gpu}


def lightning_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: ArrayLike,
    *,
    initial_state: jax.Array | None = None,
    segment_ids: ArrayLike | None = None,
    backend: str | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Causal linear attention with a constant decay per head (docs/architecture.md §5, step 3).

        S_t = exp(log_decay) S_{t-1} + k_t^T v_t        out_t = K^-0.5 q_t S_t

    Args:
      q, k: [B, T, H, K]. v: [B, T, H, V].
      log_decay: [H], <= 0; a constant without gradient.
      initial_state: [B, H, K, V] state of the first document of each row; None: zeros.
      segment_ids: [B, T] integers or None. A document is a maximal run of equal non-zero ids; the state restarts at 0
        with each. 0 is padding: its output is 0, and it neither updates nor decays the state.
      backend: "reference" (a scan over tokens), "xla" (chunks), "tpu" or "gpu" (kernels), "tpu_interpret" or
        "gpu_interpret" (the kernels in the interpreter, slow, on any platform). None: the kernels of the platform if
        they suit the shapes, else "xla". The GPU kernels have not been timed on a GPU.
      chunk_size: tokens of a chunk of "xla"; None: the default. The kernels have their own.

    Returns:
      (out [B, T, H, V] in v's dtype, final_state [B, H, K, V] in at least float32, after the last live token).

    Raises:
      ValueError: shapes that do not fit, a dtype that is not floating, a backend that the platform lacks.
    """
    log_decay = jax.lax.stop_gradient(jnp.asarray(log_decay))
    _check(q, k, v, log_decay, initial_state, segment_ids, chunk_size)
    backend = choose_backend(backend, q, v.shape[-1])
    if not backend.startswith(tuple(KERNELS)):
        return _by_head(q, k, v, log_decay, initial_state, segment_ids, backend, chunk_size)
    flat = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    out, state = _kernel(*flat, log_decay, initial_state, segment_ids, q.shape[2], backend)
    return out.reshape(v.shape), state


def lightning_attention_flat(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: ArrayLike,
    *,
    num_heads: int,
    initial_state: jax.Array | None = None,
    segment_ids: ArrayLike | None = None,
    backend: str | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`lightning_attention` on flat q, k [B, T, H·K] and v [B, T, H·V]; returns (out [B, T, H·V], final_state).

    This is the kernels' layout. On a TPU, splitting the heads off is a copy that takes longer than the attention.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3 or x.shape[-1] % num_heads:
            raise ValueError(f"{name} is {x.shape}; expected [B, T, H·dim] with H = {num_heads} heads")

    def by_head(x):
        return x.reshape(*x.shape[:2], num_heads, -1)

    def shape(x):
        return jax.ShapeDtypeStruct((*x.shape[:2], num_heads, x.shape[2] // num_heads), x.dtype)

    log_decay = jax.lax.stop_gradient(jnp.asarray(log_decay))
    _check(*map(shape, (q, k, v)), log_decay, initial_state, segment_ids, chunk_size)
    backend = choose_backend(backend, shape(q), v.shape[-1] // num_heads)
    if backend.startswith(tuple(KERNELS)):
        return _kernel(q, k, v, log_decay, initial_state, segment_ids, num_heads, backend)
    heads = map(by_head, (q, k, v))
    out, state = _by_head(*heads, log_decay, initial_state, segment_ids, backend, chunk_size)
    return out.reshape(*out.shape[:2], -1), state


def choose_backend(backend: str | None, q: jax.Array | jax.ShapeDtypeStruct, value_dim: int) -> str:
    """The backend that runs for q [B, T, H, K]. Raises ValueError if it is unknown or the platform lacks it."""
    if backend is None:
        suits = {"tpu": suits_tpu, "gpu": suits_gpu}.get(platform())
        return platform() if suits and suits(q, value_dim) else "xla"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it is one of {', '.join(BACKENDS)} or None")
    if backend in KERNELS and platform() != backend:
        raise ValueError(f"backend is {backend!r} and the platform {platform()!r}; None chooses what it has")
    return backend


def _kernel(q, k, v, log_decay, initial_state, segment_ids, num_heads: int, backend: str):
    kernel, interpret = KERNELS[backend.removesuffix("_interpret")], backend.endswith("_interpret")
    with jax.named_scope(f"lightning_attention_{backend}"):
        return kernel(q, k, v, log_decay, initial_state, segment_ids, num_heads, interpret=interpret)


def _by_head(q, k, v, log_decay, initial_state, segment_ids, backend: str, chunk_size):
    with jax.named_scope(f"lightning_attention_{backend}"):
        if backend == "reference":
            return lightning_attention_reference(q, k, v, log_decay, initial_state, segment_ids)
        return lightning_attention_xla(q, k, v, log_decay, initial_state, segment_ids, chunk_size)


def _check(q, k, v, log_decay, initial_state, segment_ids, chunk_size) -> None:
    def check(name, x, expected):
        if x.shape != expected:
            raise ValueError(f"lightning_attention: {name} is {x.shape}; expected {expected} from q {q.shape}")

    for name, x in (("q", q), ("k", k), ("v", v), ("log_decay", log_decay), ("initial_state", initial_state)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"lightning_attention: {name} is {x.dtype}; expected a floating dtype")
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
        segment_ids = jnp.asarray(segment_ids)
        check("segment_ids", segment_ids, (batch, length))
        if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            raise ValueError(f"lightning_attention: segment_ids is {segment_ids.dtype}; expected integers")
