"""A fixed number of slots in one cache: rollouts join, go on and leave between compiled pieces of decoding."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ling_jax.config import ModelConfig
from ling_jax.model import Cache, init_cache
from ling_jax.rollout.decode import Context, Rows, decode, read_on

# What joins is read by CHUNK tokens, those of JOINING slots at a time: one program whatever joins. Our choice: on a CPU
# a token costs the same in larger parts, and short tool outputs leave less of a part empty.
CHUNK = 16
JOINING = 8
PIECE = 8  # tokens decoded between two looks from the host: our choice; a row that ends idles for half of it


class Drawn(NamedTuple):
    """What one slot drew in a piece."""

    tokens: list[int]  # the last may be an end token
    logps: list[float]  # of each under the model: temperature 1, nothing cut
    ended: bool  # at an end token or at the limit


@dataclasses.dataclass
class _Row:
    """A slot in use."""

    unread: list[int]  # tokens that the cache does not hold yet
    length: int  # tokens of the context, unread ones counted
    seed: int
    drawn: int
    limit: int  # of `drawn`
    fresh: bool = True  # the cache still holds what another rollout left
    live: bool = True


class Slots:
    """Generates for at most `slots` rollouts at a time, each of at most `max_length` tokens.

    Token i that a rollout draws is drawn with fold_in(key(seed), i): its tokens depend on the weights, its context and
    its seed, not on its slot, its neighbours or the pieces. `temperature` and `top_p` may be set between two calls.
    Two programs are compiled for all of it, and shared by all `Slots` of the same sizes.

        slots = Slots(config, slots=64, max_length=256, end_ids={0})
        slots.load(params)
        slots.put(0, prompt, seed=7, limit=80)
        while not (drawn := slots.advance()[0]).ended: …
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        max_length: int,
        end_ids: Collection[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        piece: int = PIECE,
    ):
        """Raises ValueError where there is no slot or the length passes the model's context."""
        if slots < 1 or piece < 1:
            raise ValueError(f"slots is {slots} and piece {piece}; both must be at least 1")
        self.config, self.max_length, self.piece = config, max_length, piece
        self.temperature, self.top_p = temperature, top_p
        self._end_ids, self._end = frozenset(end_ids), jnp.asarray(sorted(end_ids), jnp.int32)
        self._params = None
        self._rows: list[_Row | None] = [None] * slots
        cache = init_cache(config, slots, max_length).replace(empty=False)
        dtype = jnp.promote_types(config.compute_dtype, jnp.float32)
        self._context = Context(cache, jnp.zeros((slots, config.vocab_size), dtype))

    def load(self, params) -> None:
        """New weights. All slots become empty, since what they hold is of the old ones: put again what goes on.

        They are not copied: load again after a training step to which they were donated.
        """
        devices = jnp.asarray(params["head"]).devices()
        if len(devices) == 1:  # the same programs serve weights of a file, of a checkpoint and of a training step
            params, self._context = jax.device_put((params, self._context), *devices)
        self._params = params
        self._rows = [None] * len(self._rows)

    def put(self, slot: int, tokens: Sequence[int], *, seed: int, drawn: int = 0, limit: int) -> None:
        """A rollout with its context so far joins; it draws at most `limit` tokens from here.

        `drawn` of its tokens were drawn before: a rollout that is put again goes on with its own stream of random
        numbers. Raises ValueError where the slot is in use, the context is empty, has tokens out of the vocabulary or,
        with `limit` more, passes `max_length`.
        """
        if self._rows[self._checked(slot)] is not None:
            raise ValueError(f"slot {slot} is in use; drop what it holds first")
        if drawn < 0 or not 0 <= seed < 2**32:
            raise ValueError(f"slot {slot}: seed {seed} and drawn {drawn}; expected 0 <= seed < 2**32 and drawn >= 0")
        self._check_tokens(slot, tokens, length=0, limit=limit)
        self._rows[slot] = _Row(list(tokens), len(tokens), seed, drawn, drawn + limit)

    def feed(self, slot: int, tokens: Sequence[int], *, limit: int) -> None:
        """More context behind what the slot holds, such as a tool's output and the opening of the next turn.

        The rollout goes on, ended or not, and draws at most `limit` tokens from here. Raises ValueError as `put`, and
        where the slot is empty.
        """
        row = self._used(slot)
        self._check_tokens(slot, tokens, length=row.length, limit=limit)
        row.unread, row.length = row.unread + list(tokens), row.length + len(tokens)
        row.limit, row.live = row.drawn + limit, True

    def drop(self, slot: int) -> None:
        """The rollout leaves. Raises ValueError where the slot is empty."""
        self._used(slot)
        self._rows[slot] = None

    def advance(self) -> dict[int, Drawn]:
        """What each slot that had not ended draws in one piece, after what was put and fed is read.

        Raises ValueError where no weights were loaded.
        """
        if self._params is None:
            raise ValueError("no weights; call load(params) first")
        while unread := [slot for slot, row in enumerate(self._rows) if row is not None and row.unread]:
            self._read_chunks(unread[:JOINING])
        live = {slot: row for slot, row in enumerate(self._rows) if row is not None and row.live}
        if not live:
            return {}
        rows = self._rows_of(live)
        self._context, *drawn = _decode(self._params, self._context, rows, self._end, self.config, self.piece)
        tokens, logps, counts = map(np.asarray, drawn)
        cut = lambda new_BP, slot: new_BP[slot, : counts[slot]].tolist()  # noqa: E731
        return {slot: self._went_on(row, cut(tokens, slot), cut(logps, slot)) for slot, row in live.items()}

    def _went_on(self, row: _Row, tokens: list[int], logps: list[float]) -> Drawn:
        row.length += len(tokens)
        row.drawn += len(tokens)
        row.live = tokens[-1] not in self._end_ids and row.drawn < row.limit
        return Drawn(tokens, logps, not row.live)

    def _read_chunks(self, joining: Sequence[int]) -> None:
        """The next tokens of these slots go into the cache."""
        count, size = min(JOINING, len(self._rows)), min(CHUNK, self.max_length)
        tokens, live = np.zeros((count, size), np.int32), np.zeros((count, size), np.int32)
        slots, fresh = np.full(count, len(self._rows), np.int32), np.zeros(count, bool)  # past the end: dropped
        for i, slot in enumerate(joining):
            row = self._rows[slot]
            chunk, row.unread = row.unread[:size], row.unread[size:]
            tokens[i, : len(chunk)], live[i, : len(chunk)] = chunk, 1
            slots[i], fresh[i], row.fresh = slot, row.fresh, False
        self._context = _join(self._params, self._context, tokens, live, slots, fresh, self.config)

    def _rows_of(self, live: dict[int, _Row]) -> Rows:
        size = len(self._rows)
        rows = Rows(
            live=np.zeros(size, bool),
            seed=np.zeros(size, np.uint32),
            drawn=np.zeros(size, np.int32),
            limit=np.zeros(size, np.int32),
            temperature=np.full(size, self.temperature, np.float32),
            top_p=np.full(size, self.top_p, np.float32),
        )
        for slot, row in live.items():
            rows.live[slot], rows.seed[slot], rows.drawn[slot], rows.limit[slot] = True, row.seed, row.drawn, row.limit
        return rows

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < len(self._rows):
            raise ValueError(f"there is no slot {slot}; there are {len(self._rows)}, from 0")
        return slot

    def _used(self, slot: int) -> _Row:
        row = self._rows[self._checked(slot)]
        if row is None:
            raise ValueError(f"slot {slot} is empty; put a rollout there first")
        return row

    def _check_tokens(self, slot: int, tokens: Sequence[int], *, length: int, limit: int) -> None:
        if not len(tokens):
            raise ValueError(f"slot {slot}: there are no tokens; give at least one")
        if (worst := max(tokens)) >= self.config.vocab_size or (worst := min(tokens)) < 0:
            raise ValueError(f"slot {slot}: token {worst} is not in the vocabulary of {self.config.vocab_size}")
        if limit < 1:
            raise ValueError(f"slot {slot}: the limit is {limit}; it must be at least 1")
        if length + len(tokens) + limit > self.max_length:
            raise ValueError(
                f"slot {slot}: {length + len(tokens)} tokens of context and {limit} new ones pass the slots' length "
                f"of {self.max_length}"
            )


_decode = jax.jit(decode, static_argnums=(4, 5), donate_argnums=1)


@functools.partial(jax.jit, static_argnums=6, donate_argnums=1)
def _join(params, context: Context, tokens_KT, live_KT, slots_K, fresh_K, config: ModelConfig) -> Context:
    """The context after K of its rows have read these tokens; `fresh` rows forget what they held.

    Slots past the end stand for none.
    """
    cache = context.cache
    keep = lambda leaf: jnp.where(fresh_K.reshape(-1, *[1] * (leaf.ndim - 3)), 0, leaf)  # noqa: E731
    layers = jax.tree.map(lambda leaf: keep(leaf[:, :, slots_K]), cache.layers)
    length = jnp.where(fresh_K, 0, cache.length[slots_K])
    part = Cache(layers=layers, length=length, max_length=cache.max_length, empty=False)
    part, logits_KW = read_on(params, tokens_KT, live_KT, part, config)
    put_back = lambda leaf, rows: leaf.at[:, :, slots_K].set(rows, mode="drop")  # noqa: E731
    cache = cache.replace(
        layers=jax.tree.map(put_back, cache.layers, part.layers),
        length=cache.length.at[slots_K].set(part.length, mode="drop"),
    )
    return Context(cache, context.logits.at[slots_K].set(logits_KW, mode="drop"))
