"""The compiled step: tiles of rows, one token each, which read, score and draw (docs/engine.md)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.engine.draw import Sampling, draw
from ling_jax.engine.rows import by_rows, hold, of_parts, on_all, row_logits
from ling_jax.model.rope import Ropes, rope_tables
from ling_jax.model.token_info import PAST_END, Pages
from ling_jax.model.transformer import chosen_experts, forward_with_pages
from ling_jax.parallel.sharding import constrain, num_shards

DRAW, NOTHING = -1, -2  # targets of a row; from 0 on a token whose log-prob is wanted
HOLD = -3  # and below: the logits go to the host, in place HOLD - target
HELD = 4  # rows of a call whose logits go to the host; our choice
NO_TOKEN = -1  # a row that reads what its slot drew last
ENDED = -2  # in place of what a slot drew last: a stop token, or the slot takes no part


class Rows(NamedTuple):
    """Tiles of N rows, [M, N] int32 each. Rows of one slot are neighbours, in the order of their positions.

    On a mesh of D parts the first N/D rows are of slots of the first part, the next N/D of the second, and so on.
    """

    slot: jax.Array
    token: jax.Array  # to be read; NO_TOKEN: what the slot drew in an earlier tile of this call
    position: jax.Array  # of the token; -1: an empty row
    target: jax.Array  # DRAW, NOTHING, HOLD …, or a token
    number: jax.Array  # of the draw


class Slots(NamedTuple):
    """What a call has to know of each slot, in few arrays: each one costs a call time."""

    table: jax.Array  # [S, n] int32 pages, numbered in the slot's part
    # [S, 4 + K] int32: place of the state in the part, then INTEGERS, then K stop tokens; -1 fills the row.
    integers: jax.Array
    floats: jax.Array  # [S, 3] float32: FLOATS


INTEGERS = ("seed", "top_k", "stop_from")  # the seed's bits
FLOATS = ("temperature", "top_p", "min_p")


class Outputs(NamedTuple):
    """What the rows gave, [M, N, …]."""

    token: jax.Array  # int32 drawn token; -1: none
    logp: jax.Array  # of it or of the target, under the model; where logits are held, their logsumexp
    experts: jax.Array | None  # [M, N, L, k] int32 chosen experts of the MoE layers; None: there are none
    held: jax.Array | None  # [HELD, W] logits; None of a step that only draws


def tiles_step(
    params: Any,
    layers: Any,
    rows: jax.Array,
    slots: Slots,
    tiles: jax.Array,
    config: ModelConfig,
    only_draws: bool = False,
) -> tuple[Any, Outputs]:
    """(pool, outputs) after the first tiles, one after the other.

    `rows` are the fields of `Rows` stacked, [5, M, N]; `tiles` is [how many, how many whatever is drawn]. A slot that
    draws one of its stop tokens stays as it is from then on; its later rows give token -1, and where all slots have
    ended, so do the tiles. All bits of a row depend on its own sequence alone as long as a tile has the same number of
    rows. With `only_draws` every row that has a token draws, and the program is the shorter one for that.
    """
    shape, count, reading = rows.shape[1:], tiles[0], tiles[1]
    dtype = jnp.promote_types(config.compute_dtype, jnp.float32)
    given = Rows(*rows)
    # For all tiles at once, since in the loop these small operations take as long as layers.
    ropes_MN, sampling_MN = _rows_split(rope_tables(given.position, config)), _sampling(given, slots)
    chosen = jax.eval_shape(
        lambda layers: _tile(params, layers, Rows(*rows[:, 0]), slots, config, _of_tile(0, ropes_MN)), layers
    )[2]
    outputs = Outputs(
        token=jnp.full(shape, -1, jnp.int32),
        logp=jnp.zeros(shape, dtype),
        experts=None if chosen is None else _rows_split(jnp.zeros((shape[0], *chosen.shape), jnp.int32)),
        held=None if only_draws else jnp.zeros((HELD, config.vocab_size), dtype),
    )

    def going(carry):
        i, _, last_S, _ = carry
        return (i < count) & ((i < reading) | jnp.any(last_S != ENDED))

    def step(carry):
        i, layers, last_S, out = carry
        row = of_parts(Rows(*rows[:, i]))
        last_N = last_S[row.slot]
        row = row._replace(
            position=jnp.where(last_N == ENDED, -1, row.position),
            token=jnp.where(row.token == NO_TOKEN, last_N, row.token),
        )
        hidden_ND, layers, chosen = _tile(params, layers, row, slots, config, _of_tile(i, ropes_MN))

        def sampling():
            return _of_tile(i, sampling_MN)

        if only_draws:
            token_N, logp_N, held = *_draws(params["head"], hidden_ND, row, sampling), None
        else:
            token_N, logp_N, held = _targets(params["head"], hidden_ND, row, sampling, out.held)
        token_N, logp_N, slot_N = on_all((token_N, logp_N, row.slot))
        ends_N = jnp.any(token_N[:, None] == sampling_MN.stop[i], axis=1)
        drawn_N = jnp.where(token_N >= 0, slot_N, PAST_END)
        last_S = last_S.at[drawn_N].set(jnp.where(ends_N, ENDED, token_N), mode="drop")
        outputs = Outputs(
            token=out.token.at[i].set(token_N),
            logp=out.logp.at[i].set(logp_N),
            experts=None if chosen is None else _rows_split(out.experts.at[i].set(chosen)),
            held=held,
        )
        return i + 1, layers, last_S, outputs

    taking_part = jnp.where(given.position >= 0, given.slot, PAST_END)
    last_S = jnp.full(slots.table.shape[0], ENDED, jnp.int32).at[taking_part].set(0, mode="drop")
    _, layers, _, outputs = jax.lax.while_loop(going, step, (jnp.int32(0), layers, last_S, outputs))
    return layers, outputs


def chunks_step(
    params: Any,
    layers: Any,
    tokens: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    state: jax.Array,
    config: ModelConfig,
) -> tuple[Any, jax.Array | None]:
    """(pool with these tokens, chosen experts [J · T, L, k] or None): many tokens of a few sequences at a time.

    tokens [J, T] at positions [J, T] (-1: padding, behind a row's tokens), table [J, n], state [J]. Faster than tiles
    of single tokens, but the bits of a token depend on how its context was cut into chunks.
    """
    tokens, positions, table, state = of_parts((tokens, positions, table, state))
    live_J = positions[:, 0] >= 0
    pages = Pages(table, jnp.where(live_J, state, PAST_END), positions[:, 0] == 0, jnp.asarray(True))
    _, routers, layers = forward_with_pages(params, tokens, positions, pages, layers, config)
    return layers, _experts_of_rows(routers, config)


# On one device. `device.programs` has those of a mesh.
run_tiles = functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=1)(tiles_step)
read_chunks = functools.partial(jax.jit, static_argnums=6, donate_argnums=1)(chunks_step)


def _rows_split(arrays_MN):
    """The arrays [M, N, …] with each part's rows on its devices."""
    return jax.tree.map(lambda x: constrain(x, (None, "batch", *[None] * (x.ndim - 2))), arrays_MN)


def _of_tile(number, arrays_MN: Any) -> Any:
    return jax.tree.map(lambda x_MN: x_MN[number], arrays_MN)


def _tile(params, layers, row: Rows, slots: Slots, config: ModelConfig, ropes: Ropes):
    """(hidden states [N, D], pool, chosen experts [N, L, k] or None) of the tile's tokens."""
    live_N = row.position >= 0
    state_N = jnp.where(live_N, slots.integers[row.slot, 0], PAST_END)
    pages = Pages(
        table=of_parts(slots.table[row.slot]),
        state=state_N,
        fresh=row.position == 0,
        distinct=_distinct(state_N, live_N),
    )
    ropes = jax.tree.map(lambda x_ND: x_ND[:, None], ropes)
    hidden_N1D, routers, layers = forward_with_pages(
        params, row.token[:, None], row.position[:, None], pages, layers, config, ropes=ropes
    )
    return hidden_N1D[:, 0], layers, _experts_of_rows(routers, config)


def _distinct(state_N, live_N):
    """Whether no two live rows have the same state: [] bool, or [D] of each part."""
    if (parts := num_shards("batch")) == 1:
        return ~jnp.any((state_N[1:] == state_N[:-1]) & live_N[1:])
    state_DN, live_DN = state_N.reshape(parts, -1), live_N.reshape(parts, -1)
    return ~jnp.any((state_DN[:, 1:] == state_DN[:, :-1]) & live_DN[:, 1:], axis=1)


def _experts_of_rows(routers: Any, config: ModelConfig) -> jax.Array | None:
    """[B · T, L, k] int32 experts of the MoE layers in order; None where there are none."""
    experts_BTLk = chosen_experts({"segments": routers}, config)
    return None if experts_BTLk is None else experts_BTLk.reshape(-1, *experts_BTLk.shape[2:])


def _draws(head_DW, hidden_ND, row: Rows, sampling: Callable[[], Sampling]):
    """`_targets` of rows that all draw: (drawn token [N] or -1, its log-prob [N])."""

    def of_rows(logits_NW, sampling):
        token_N = draw(logits_NW, sampling)
        logp_N = jnp.take_along_axis(logits_NW, token_N[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits_NW, axis=1)
        return token_N, logp_N

    token_N, logp_N = by_rows(of_rows, row_logits(head_DW, hidden_ND), sampling())
    return jnp.where(row.position >= 0, token_N, -1), logp_N


def _targets(head_DW, hidden_ND, row: Rows, sampling: Callable[[], Sampling], held):
    """(drawn token [N] or -1, log-prob [N], held logits)."""
    live_N = row.position >= 0
    draws_N = live_N & (row.target == DRAW)

    def of_rows(logits_NW, sampling, target_N, draws_N):
        drawn_N = jax.lax.cond(
            jnp.any(draws_N), lambda logits: draw(logits, sampling), lambda _: jnp.zeros_like(target_N), logits_NW
        )
        token_N = jnp.where(draws_N, drawn_N, jnp.maximum(target_N, 0))
        total_N = jax.nn.logsumexp(logits_NW, axis=1)
        logp_N = jnp.take_along_axis(logits_NW, token_N[:, None], axis=1)[:, 0] - total_N
        logp_N = jnp.where(target_N <= HOLD, total_N, logp_N)
        return jnp.where(draws_N, token_N, -1), logp_N

    def look():
        logits_NW = row_logits(head_DW, hidden_ND)
        token_N, logp_N = by_rows(of_rows, logits_NW, sampling(), row.target, draws_N)
        held_N = (row.target <= HOLD) & live_N
        place_N = jnp.where(held_N, HOLD - row.target, PAST_END)
        # A scatter of whole rows takes a CPU as long as a layer.
        new = jax.lax.cond(jnp.any(held_N), lambda: hold(held, place_N, logits_NW), lambda: held)
        return token_N, logp_N, new

    def skip():
        return jnp.full(row.slot.shape, -1, jnp.int32), jnp.zeros(row.slot.shape, held.dtype), held

    return jax.lax.cond(jnp.any(live_N & (row.target != NOTHING)), look, skip)


def _sampling(rows: Rows, slots: Slots) -> Sampling:
    """Of all rows, [M, N] each; stop tokens [M, N, K]."""
    _, seed_MN, *integers, stop_MNK = jnp.split(slots.integers[rows.slot], [*range(1, 2 + len(INTEGERS))], axis=2)
    seed_MN = jax.lax.bitcast_convert_type(seed_MN, jnp.uint32)
    columns = dict(zip(INTEGERS, (seed_MN, *integers), strict=True))
    columns |= dict(zip(FLOATS, jnp.split(slots.floats[rows.slot], len(FLOATS), axis=2), strict=True))
    return Sampling(number=rows.number, stop=stop_MNK, **{name: column[..., 0] for name, column in columns.items()})
