"""Draws of requests whose logits the host changes first: penalties, biases, and tokens that are not allowed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.engine.draw import Sampling, draw
from ling_jax.engine.request import Request
from ling_jax.engine.sequence import Sequence

Top = tuple[tuple[tuple[int, float], ...], ...]


def draw_adjusted(
    sequence: Sequence, logits_W: np.ndarray, total: np.ndarray
) -> tuple[list[int], list[float], Top, str]:
    """([token], [its log-prob under the model], the likeliest tokens, why nothing can be drawn or "").

    `total` is the logsumexp of the logits as the step has it, so that log-probs have the bits of other requests'.
    """
    request = sequence.request
    try:
        adjusted_W = adjusted_logits(request, sequence.tokens, sequence.drawn - sequence.turn, logits_W)
    except Exception as error:  # of the caller's `allowed`: the neighbours must not notice
        return [], [], (), f"`allowed` raised {type(error).__name__}: {error}"
    if not np.isfinite(adjusted_W).any():
        return [], [], (), "`allowed` and min_new_tokens leave no token"
    token, logps_W = int(_draw_one(adjusted_W, _sampling(request, sequence.drawn))), logits_W - total
    top = np.argsort(-logps_W, kind="stable")[: request.top_logprobs]
    listed = tuple((int(i), float(logps_W[i])) for i in top)
    return [token], [float(logps_W[token])], (listed,) if request.top_logprobs else (), ""


def adjusted_logits(request: Request, context: list[int], drawn: int, logits_W: np.ndarray) -> np.ndarray:
    """[W] logits after repetition penalty, bias, `allowed` and min_new_tokens; the turn has the last `drawn` tokens."""
    adjusted_W = np.array(logits_W)
    if request.repetition_penalty != 1:
        seen = np.unique(context)
        penalty = request.repetition_penalty
        adjusted_W[seen] = np.where(adjusted_W[seen] > 0, adjusted_W[seen] / penalty, adjusted_W[seen] * penalty)
    for token, bias in (request.logit_bias or {}).items():
        adjusted_W[token] += bias
    if request.allowed is not None:
        adjusted_W[~allowed_tokens(request.allowed(context[len(context) - drawn :]), len(adjusted_W))] = -np.inf
    if drawn < request.min_new_tokens:
        adjusted_W[list(request.stop_ids)] = -np.inf
    return adjusted_W


def allowed_tokens(mask: Any, size: int) -> np.ndarray:
    """[W] bool from such an array, or from [ceil(W / 32)] 32-bit words with the first token in the lowest bit.

    Raises ValueError on an array of another form.
    """
    mask = np.asarray(mask)
    if mask.dtype == bool and mask.shape == (size,):
        return mask
    if mask.dtype in (np.int32, np.uint32) and mask.shape == (-(-size // 32),):
        return np.unpackbits(mask.view(np.uint8), bitorder="little")[:size].astype(bool)
    raise ValueError(
        f"a mask of {mask.dtype} {mask.shape}; expected [{size}] bool or [{-(-size // 32)}] uint32, one bit a token"
    )


def draw_nothing(config: ModelConfig) -> None:
    """Compiles the program of `draw_adjusted`."""
    dtype = jnp.promote_types(config.compute_dtype, jnp.float32)
    _draw_one(np.zeros(config.vocab_size, dtype), _sampling(Request(0, (0,), 1, seed=0), 0))


def _sampling(request: Request, number: int) -> Sampling:
    """Of one row; the logits know of min_new_tokens already."""
    r = request
    return Sampling(
        seed=np.array([r.seed], np.uint32),
        number=np.array([number], np.int32),
        temperature=np.array([r.temperature], np.float32),
        top_k=np.array([r.top_k], np.int32),
        top_p=np.array([r.top_p], np.float32),
        min_p=np.array([r.min_p], np.float32),
        stop=np.full((1, 1), -1, np.int32),
        stop_from=np.zeros(1, np.int32),
    )


@jax.jit
def _draw_one(adjusted_W, sampling: Sampling):
    return draw(adjusted_W[None], sampling)[0]
