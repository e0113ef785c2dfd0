"""Random answers, a small model with experts and MTP, and its log-probs by a plain forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import model
from ling_jax.rl.answers import Answer
from ling_jax.rl.batch import Batch, Layout, pack
from ling_jax.rl.step import trainable
from ling_jax.train.config import OptimizerConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.state import create_state
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(num_layers=2, compute_dtype="float32", remat="none", mtp_depth=1)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-3, warmup_steps=0), 10, model.model_spec(CONFIG))
LENGTH = 12
ALONE = Layout(1, 6, LENGTH)


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


def random_answers(seed: int = 0, count: int = 6, *, old: bool = False, reference: bool = False) -> list[Answer]:
    """Three groups of two: answers of 3 to 7 tokens behind prompts of 3; answer 1 has tool output in the middle."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (count, LENGTH)).astype(np.int32)
    ends = rng.integers(6, 11, count)
    logps = np.pad(logps_of()(state().params, tokens)[0], ((0, 0), (1, 0)))
    answers = []
    for i, size in enumerate(ends):
        place = np.arange(size)
        mask = (place >= 3) & ((i != 1) | (place < 4) | (place >= 6))

        def noisy(scale, i=i, size=size, mask=mask):
            return np.where(mask, logps[i, :size] + rng.normal(0, scale, size), 0).astype(np.float32)

        answer = Answer(
            group=i // 2,
            advantage=float(rng.normal()),
            tokens=tokens[i, :size],
            mask=mask,
            behaviour_logps=noisy(1.5),
            ages=np.where(mask, rng.integers(0, 3, size), 0).astype(np.int32),
            sentence_ids=np.where(mask, place // 2, -1).astype(np.int32),
        )
        if old:
            answer = dataclasses.replace(answer, old_logps=noisy(0.3))
        answers.append(dataclasses.replace(answer, reference_logps=noisy(0.3)) if reference else answer)
    return answers


def padded(answers: list[Answer], name: str, fill=0) -> np.ndarray:
    """[answers, LENGTH]: this field of each answer in a row of its own."""
    arrays = [getattr(answer, name) for answer in answers]
    return np.stack([np.pad(x, (0, LENGTH - len(x)), constant_values=fill) for x in arrays])


def alone(answers: list[Answer], **options) -> Batch:
    """Each answer in a row of its own: the batch of a layout whose rows are as long as the longest answer."""
    assert all(len(answer) > LENGTH // 2 - 1 for answer in answers)
    return pack(answers, ALONE, **options)


def new_answers(answers: list[Answer], **fields) -> list[Answer]:
    return [dataclasses.replace(answer, **fields) for answer in answers]
