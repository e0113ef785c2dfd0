"""The engine's promise, the slow and simple way: one request, one token a call, in a tile that is otherwise empty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import spec
from ling_jax.engine import EXACT_TILE
from ling_jax.engine.draw import Sampling, draw
from ling_jax.engine.weights import decoding_copy
from ling_jax.model.cache import pool_spec
from ling_jax.model.loss import head_logits
from ling_jax.model.token_info import PAGE_SIZE, PAST_END, Pages
from ling_jax.model.transformer import forward_with_pages

STOPS = 8


@functools.partial(jax.jit, static_argnums=6, donate_argnums=1)
def read_one(params, layers, token, position, row, sampling: Sampling, config):
    """(pool, drawn token, its log-prob, log-probs of all tokens [W]) after one token in one row of the tile."""
    here_N = jnp.arange(EXACT_TILE) == row
    positions_N = jnp.where(here_N, position, -1)
    pages = Pages(
        table=jnp.tile(jnp.arange(1, -(-config.max_length // PAGE_SIZE) + 1), (EXACT_TILE, 1)),
        state=jnp.where(here_N, 0, PAST_END),
        fresh=positions_N == 0,
        distinct=position >= 0,  # true, but unknown to the compiler, which would otherwise fuse more than in the engine
    )
    tokens_N1 = jnp.where(here_N, token, 0)[:, None]
    hidden_N1D, _, layers = forward_with_pages(params, tokens_N1, positions_N[:, None], pages, layers, config)
    logits_NW = head_logits(params["head"], hidden_N1D)[:, 0]
    total_N = jax.nn.logsumexp(logits_NW, axis=1)
    logits_NW, total_N = jax.lax.optimization_barrier((logits_NW, total_N))  # of whole tiles, as in the engine
    drawn = draw(logits_NW, jax.tree.map(lambda x: jnp.repeat(x[None], EXACT_TILE, axis=0), sampling))[row]
    logps_W = logits_NW[row] - total_N[row]
    return layers, drawn, logps_W[drawn], logps_W


class Oracle:
    """Reads one context from its beginning and goes on from it."""

    def __init__(self, params, config, row: int = 0):
        self.params, self.config, self.row = decoding_copy(params, config), config, row

    def go_on(self, request, context, number: int, count: int, turn: int = 0):
        """(tokens, log-probs, log-probs of the context's own tokens) of at most `count` draws from draw `number` on.

        `turn` is the number of the turn's first draw.
        """
        pages = -(-self.config.max_length // PAGE_SIZE) + 1
        layers = spec.init(jax.random.key(0), pool_spec(self.config, states=1, pages=pages))
        context, tokens, logps, given = [int(t) for t in context], [], [], []
        for position in range(len(context) + count - 1):
            token = context[position] if position < len(context) else tokens[-1]
            drawing = position >= len(context) - 1
            sampling = self.sampling(request, number + len(tokens), turn)
            layers, drawn, logp, logps_W = read_one(
                self.params, layers, np.int32(token), np.int32(position), np.int32(self.row), sampling, self.config
            )
            if not drawing:
                given.append(float(logps_W[context[position + 1]]))
                continue
            tokens.append(int(drawn))
            logps.append(float(logp))
            if tokens[-1] in request.stop_ids:
                break
        return tokens, logps, given

    def sampling(self, request, number: int, turn: int) -> Sampling:
        stop = [*request.stop_ids, *[-1] * (STOPS - len(request.stop_ids))]
        return Sampling(
            seed=np.uint32(request.seed),
            number=np.int32(number),
            temperature=np.float32(request.temperature),
            top_k=np.int32(request.top_k),
            top_p=np.float32(request.top_p),
            min_p=np.float32(request.min_p),
            stop=np.asarray(stop, np.int32),
            stop_from=np.int32(turn + request.min_new_tokens),
        )
