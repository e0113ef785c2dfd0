"""A batch of random answers, a small model with experts and MTP, and its log-probs by a plain forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import model
from ling_jax.rl.batch import Batch
from ling_jax.rl.step import trainable
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.state import create_state
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(num_layers=2, compute_dtype="float32", remat="none", mtp_depth=1)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 10, model.model_spec(CONFIG))
SIZES = dict(rows=6, length=12)


@functools.cache
def state():
    params = jax.tree.map(jnp.asarray, random_params(CONFIG, dtype="float32", std=0.2))
    return create_state(params, OPTIMIZER, trainable(CONFIG))


@functools.cache
def logps_of():
    """(log-prob, entropy) of every token from the second on, by a plain forward pass."""

    def logps(params, tokens):
        every = jax.nn.log_softmax(model.forward(params, tokens, CONFIG).logits[:, :-1], axis=-1)
        return jnp.take_along_axis(every, tokens[:, 1:, None], axis=-1)[..., 0], -jnp.sum(jnp.exp(every) * every, -1)

    return quick_jit(logps)


def random_batch(seed=0) -> Batch:
    """Answers of 3 to 7 tokens behind prompts of 3; row 1 has tool output in the middle."""
    rng = np.random.default_rng(seed)
    rows, length = SIZES.values()
    tokens = rng.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    ends = rng.integers(6, 11, (rows, 1))
    place = np.arange(length)[None]
    mask = (place >= 3) & (place < ends)
    mask[1, 4:6] = False
    logps = np.zeros((rows, length), np.float32)
    logps[:, 1:] = logps_of()(state().params, tokens)[0]
    return Batch(
        tokens=tokens,
        live=(place < ends).astype(np.int32),
        mask=mask,
        behaviour_logps=np.where(mask, logps + rng.normal(0, 1.5, logps.shape), 0).astype(np.float32),
        ages=np.where(mask, rng.integers(0, 3, logps.shape), 0).astype(np.int32),
        sentence_ids=(place // 2 + 0 * tokens).astype(np.int32),
        advantages=rng.normal(0, 1, rows).astype(np.float32),
        valid=np.ones(rows, bool),
    )
