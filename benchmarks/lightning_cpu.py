"""Lightning attention on this CPU against its matmuls: a part of `benchmarks.lightning` and `benchmarks.train_step`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import best_seconds
from pallas_kernels.lightning_attention import lightning_attention

HEADS, DIM, CHUNK, TOKENS = 8, 128, 128, 8192


class Measured(NamedTuple):
    versus_peak: float  # of rows of 512 tokens: time over that of its FLOPs at the rate of a batched 128 x 128 matmul
    flatness: float  # time of a token in one row of 8192 tokens over that in rows of 512
    workload: str


def measure_lightning(times: int) -> Measured:
    """Forward + backward, (14 C D + 12 D^2) FLOPs per token and head; the best of `times`."""
    log_decay = -(2.0 ** -np.arange(1, HEADS + 1))
    total = lambda q, k, v: jnp.sum(lightning_attention(q, k, v, log_decay, chunk_size=CHUNK)[0] ** 2)  # noqa: E731
    step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))

    def qkv(rows: int):
        rng = np.random.default_rng(0)
        return [jnp.asarray(rng.normal(size=(rows, TOKENS // rows, HEADS, DIM)), jnp.float32) for _ in range(3)]

    square = jnp.ones((256, 128, 128), jnp.float32)
    product = jax.jit(lambda a, b: jnp.einsum("nij,njk->nik", a, b))
    batched_peak = 2 * 256 * 128**3 / best_seconds(product, square, square, times=times)
    many, one = qkv(16), qkv(1)
    turns = [[best_seconds(step, *rows, times=1) / TOKENS for rows in (many, one)] for _ in range(times)]  # in turn:
    short, long = np.min(turns, axis=0).tolist()  # the machine's speed drifts
    ratio = short * batched_peak / (HEADS * (14 * CHUNK * DIM + 12 * DIM**2))
    workload = f"{HEADS} heads of {DIM}, chunks of {CHUNK}, forward + backward, {TOKENS} tokens"
    return Measured(ratio, long / short, workload)
