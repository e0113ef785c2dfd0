"""Self-check of the kernels on this device: comparison with their references on small packed rows."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul import (
    add_grouped_outer_reference,
    add_grouped_outer_tpu,
    grouped_matmul_reference,
    grouped_matmul_tpu,
)
from pallas_kernels.lightning_attention.api import choose_backend, lightning_attention
from pallas_kernels.lightning_attention.gpu_decode import lightning_decode_gpu
from pallas_kernels.lightning_attention.reference import lightning_layer_reference
from pallas_kernels.lightning_attention.tpu_decode import lightning_decode_tpu
from pallas_kernels.lightning_attention.tpu_layer import Norms, lightning_layer_tpu
from pallas_kernels.lightning_attention.tpu_rows import rotation_lanes
from pallas_kernels.platform import platform
from pallas_kernels.softmax_attention import softmax_attention_reference, softmax_attention_tpu

TOLERANCE = 1e-4  # float32 at the highest precision is off by about 1e-6
OVERRIDE = "LING_JAX_IGNORE_KERNEL_ERRORS"
HEADS, LENGTH = 2, 141
DIMS = {"tpu": 128, "gpu": 64}  # of the heads that suit the kernels in float32
DECODES = {"tpu": lightning_decode_tpu, "gpu": lightning_decode_gpu}


class KernelError(Exception):
    """A kernel disagrees with its reference."""


def chosen_backend() -> str:
    """The backend that `backend=None` chooses on this platform for shapes that suit the kernels."""
    dim = DIMS.get(platform(), 128)
    return choose_backend(None, jax.ShapeDtypeStruct((1, LENGTH, HEADS, dim), jnp.float32), dim)


def check_kernels(backend: str | None = None) -> str:
    """Checks a backend (None: the chosen one) and returns a line for the start-up report.

    Raises KernelError if a kernel disagrees with its reference, unless $LING_JAX_IGNORE_KERNEL_ERRORS is 1. There is no
    fallback: all hosts of a program must use the same backend.
    """
    backend = backend or chosen_backend()
    if backend == "xla":
        return "xla"  # plain jax.numpy needs no check
    errors = kernel_errors(backend)
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    if all(error <= TOLERANCE for error in errors.values()):
        return f"{backend}; off their reference by {shown}"
    if os.environ.get(OVERRIDE) == "1":
        return f"{backend}; OFF THEIR REFERENCE BY {shown}, which {OVERRIDE}=1 ignores"
    raise KernelError(
        f"the {backend} kernels are off their reference by {shown}; at most {TOLERANCE:.0e}. Results of this device "
        f"cannot be trusted: replace it or update libtpu; {OVERRIDE}=1 runs all the same"
    )


def kernel_errors(backend: str) -> dict[str, float]:
    """{kernel: largest error over the largest value of the reference} in float32; NaN if a value is."""
    return {what: float(error) for what, error in _errors(backend).items()}


def _errors(backend: str) -> dict[str, jax.Array]:
    device, interpret = backend.removesuffix("_interpret"), backend.endswith("_interpret")
    inputs = _inputs(DIMS.get(device, 128))
    with jax.default_matmul_precision("highest"):
        found, wanted = (_attention(*inputs, name) for name in (backend, "reference"))
        errors = {"attention": _error(found[:2], wanted[:2]), "gradients": _error(found[2:], wanted[2:])}
        if device in DECODES:
            errors["decoding"] = _decoding_error(DECODES[device], *inputs, interpret)
        if device == "tpu":
            errors["layers"] = _layer_error(*inputs, interpret)
            errors |= {"experts": _experts_error(interpret), "softmax": _softmax_error(interpret)}
    return errors


def _inputs(dim: int):
    """(q, k, v, gradient of the output, log_decay, state, ids)."""
    rng = np.random.default_rng(0)
    q, k, v, d_out = rng.normal(size=(4, 2, LENGTH, HEADS, dim)).astype(np.float32)
    state = rng.normal(size=(2, HEADS, dim, dim)).astype(np.float32)
    # Documents of 1, 103, 29 and of 110, 13 tokens, with padding after, before and between them.
    rows = ([(1, 1), (2, 103), (3, 29), (0, 8)], [(0, 9), (7, 110), (0, 9), (2, 13)])
    ids = np.array([[i for i, length in row for _ in range(length)] for row in rows], np.int32)
    return q, k, v, d_out, np.float32([-0.9, -0.003]), state, ids


def _attention(q, k, v, d_out, log_decay, state, ids, backend: str):
    @jax.jit
    def run(q, k, v, state):
        def attend(q, k, v, state):
            return lightning_attention(q, k, v, log_decay, initial_state=state, segment_ids=ids, backend=backend)

        (out, final), pull = jax.vjp(attend, q, k, v, state)
        return out, final, *pull((jnp.asarray(d_out), final))

    return run(q, k, v, state)


def _decoding_error(decode, q, k, v, d_out, log_decay, state, ids, interpret: bool):
    token = [x[:, :1] for x in (q, k, v)]
    flat = (x.reshape(2, 1, -1) for x in token)
    step = jax.jit(decode, static_argnames=("num_heads", "interpret"))
    out, after = step(*flat, log_decay, state, num_heads=HEADS, interpret=interpret)
    wanted = lightning_attention(*token, log_decay, initial_state=state, backend="reference")
    return _error((out.reshape(wanted[0].shape), after), wanted)


def _layer_error(q, k, v, d_out, log_decay, state, ids, interpret: bool):
    """The error of values and gradients; half of the dims are rotated, both heads form one norm group."""
    half, dim = q.shape[3] // 4, q.shape[3]
    angle = np.arange(LENGTH)[None, :, None] * 10.0 ** -np.arange(half)
    options = dict(num_heads=HEADS, num_groups=1, half=half, eps=1e-6)

    def run(layer, q, k, v, gate, d_out):
        norms = Norms(*(jnp.linspace(0.5, 1.5, size) for size in (dim, dim, HEADS * dim)))
        rotation = rotation_lanes(jnp.cos(angle), jnp.sin(angle), dim)

        def call(*x):
            return layer(*x, rotation, jnp.asarray(log_decay), state, ids, **options)

        (out, final), pull = jax.vjp(call, q, k, v, gate, norms)
        return out, final, *jax.tree.leaves(pull((d_out, final)))

    flat = [x.reshape(2, LENGTH, -1) for x in (q, k, v, d_out[::-1], d_out)]
    layers = functools.partial(lightning_layer_tpu, interpret=interpret), lightning_layer_reference
    return _error(*(jax.jit(functools.partial(run, layer))(*flat) for layer in layers))


def _experts_error(interpret: bool):
    """The error with an expert without rows, two that share a tile, one of two tiles, and rows of no expert."""
    rng, rows, loads = np.random.default_rng(0), 389, np.int32([0, 100, 30, 200])
    x, y = rng.normal(size=(2, rows, 128)).astype(np.float32)
    w = rng.normal(size=(len(loads), 128, 128)).astype(np.float32)
    own = np.arange(rows)[:, None] < loads.sum()
    kernels = (functools.partial(f, interpret=interpret) for f in (grouped_matmul_tpu, add_grouped_outer_tpu))

    def run(multiply, add_outer):
        return jax.jit(lambda x, y, w: (jnp.where(own, multiply(x, w, loads), 0), add_outer(w, x, y, loads)))(x, y, w)

    return _error(run(*kernels), run(grouped_matmul_reference, add_grouped_outer_reference))


def _softmax_error(interpret: bool):
    """The error of values and gradients; two heads share a key head, a document ends in the second of two blocks."""
    rng, length, dims = np.random.default_rng(0), 2048, ((4, 192), (2, 192), (2, 128), (4, 128))
    *qkv, d_out = (rng.normal(size=(1, length, *dim)).astype(np.float32) for dim in dims)
    docs = np.where(np.arange(length) < 1200, 1, 2)[None]

    def run(attend, d_out, *qkv):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, docs, 192**-0.5), *qkv)
        return out, *pull(d_out)

    forms = functools.partial(softmax_attention_tpu, interpret=interpret), softmax_attention_reference
    return _error(*(jax.jit(functools.partial(run, form))(d_out, *qkv) for form in forms))


def _error(found, wanted):
    return jnp.max(
        jnp.stack([jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in zip(found, wanted, strict=True)])
    )
