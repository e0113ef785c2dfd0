"""The host's plan of one step: which rows read which tokens, and which draw."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ling_jax.engine.step import DRAW, NO_TOKEN, NOTHING, Rows

PIECE = 8  # tokens that a request draws in a step, at most; our choice: one that ends idles for half of it


@dataclasses.dataclass(frozen=True)
class Feed:
    """What one slot reads in a step, and how often it draws afterwards."""

    slot: int
    tokens: Sequence[int]  # to be read, at least one
    position: int  # of the first
    targets: Sequence[int]  # of each: NOTHING, a token whose log-prob is wanted, or DRAW, HOLD … for the last
    number: int  # of the first draw
    draws: int  # 0 to PIECE; the first by the last of `tokens`


class Plan(NamedTuple):
    """Rows of a step, and where those of each feed are, as indices into the flattened tiles."""

    rows: np.ndarray  # [5, M, N] int32, the fields of `Rows`
    count: int  # tiles in use
    reading: int  # of these with tokens that the host knows
    read: np.ndarray  # [R] row of each token, feed by feed
    first: list[int]  # [F] where in `read` those of each feed begin
    drawn: np.ndarray  # [PIECE, F] row of each draw; -1 where there is none


class Chunks(NamedTuple):
    """The arguments of `read_chunks` for J rows of T tokens; rows without a sequence have no token."""

    tokens: np.ndarray  # [J, T]
    positions: np.ndarray  # [J, T]; -1 where a row has no token
    slot: np.ndarray  # [J]
    state: np.ndarray  # [J] place of the slot's state


def lay_out_chunks(pieces: Mapping[int, tuple[Sequence[int], int, int, int]], count: int, size: int) -> Chunks:
    """`count` rows of `size` tokens with {row: (tokens of a context, position of the first, slot, state)}."""
    chunks = Chunks(*(np.zeros(shape, np.int32) for shape in ((count, size), (count, size), count, count)))
    chunks.positions[:] = -1
    for row, (tokens, first, slot, state) in pieces.items():
        chunks.tokens[row, : len(tokens)] = tokens
        chunks.positions[row, : len(tokens)] = np.arange(first, first + len(tokens))
        chunks.slot[row], chunks.state[row] = slot, state
    return chunks


def num_tiles(slots: int, size: int, prefill_tokens: int) -> int:
    """Tiles of `size` rows that hold every plan."""
    return -(-(slots + prefill_tokens) // size) + (PIECE - 1) * -(-slots // size)


def lay_out_parts(feeds: Sequence[Feed], slots: int, parts: int, size: int, tiles: int) -> Plan:
    """`lay_out` of the feeds of each part, which has `slots` slots and `size` rows of every tile, side by side."""
    if parts == 1:
        return lay_out(feeds, size, tiles)
    rows = np.zeros((len(Rows._fields), tiles, parts, size), np.int32)
    fields = Rows(*rows)
    fields.position[:], fields.target[:] = -1, NOTHING
    read, first, drawn = [], [0] * len(feeds), np.full((PIECE, len(feeds)), -1)
    count = reading = 0
    for part in range(parts):
        numbers = [number for number, feed in enumerate(feeds) if feed.slot // slots == part]
        if not numbers:
            continue
        plan = lay_out([feeds[number] for number in numbers], size, tiles)

        def of_all(place, part=part):
            return np.where(place < 0, -1, (place // size * parts + part) * size + place % size)

        rows[:, :, part] = plan.rows
        count, reading = max(count, plan.count), max(reading, plan.reading)
        for number, begin in zip(numbers, plan.first, strict=True):
            first[number] = len(read) + begin
        drawn[:, numbers] = of_all(plan.drawn)
        read += of_all(plan.read).tolist()
    return Plan(rows.reshape(len(Rows._fields), tiles, -1), count, reading, np.array(read), first, drawn)


def lay_out(feeds: Sequence[Feed], size: int, tiles: int) -> Plan:
    """The feeds' first tokens, their second ones, …, then each next draw of all that draw in tiles of its own.

    So the rows of a tile are of as many slots as there are: rows of one slot cost more in a tile than rows of many.
    Those of one are neighbours in their order, and a draw is in a later tile than the one that it continues.
    """
    if all(len(feed.tokens) == 1 for feed in feeds):  # a step that only draws
        return _moved(_standing(tuple((feed.slot, feed.draws) for feed in feeds), size, tiles), feeds)
    return _laid_out(feeds, size, tiles)


def _laid_out(feeds: Sequence[Feed], size: int, tiles: int) -> Plan:
    packed = np.zeros((len(Rows._fields), tiles * size), np.int32)
    rows = Rows(*packed)
    rows.position[:], rows.target[:] = -1, NOTHING
    slot, position, number, draws, lengths = np.array(
        [(feed.slot, feed.position, feed.number, feed.draws, len(feed.tokens)) for feed in feeds], np.int32
    ).T
    read, first = _read(rows, feeds, slot, position, number, lengths, size)
    reading = -(-len(read) // size)
    piece, going, place, later, count = _draw_rows(draws, reading, size)
    rows.slot[place], rows.token[place], rows.target[place] = slot[going], NO_TOKEN, DRAW
    rows.position[place] = (position + lengths)[going] + piece
    rows.number[place] = number[going] + piece + 1
    drawn = np.vstack([np.where(draws > 0, read[first + lengths - 1], -1), later])
    return Plan(packed.reshape(-1, tiles, size), reading + count, reading, read, first.tolist(), drawn)


@functools.lru_cache(maxsize=1024)  # a step is often like the one before, in each of its parts
def _standing(draws: tuple[tuple[int, int], ...], size: int, tiles: int) -> tuple[Plan, np.ndarray, np.ndarray]:
    """The plan of feeds of one token that draw as often as `draws`, [F] of (slot, draws), says, from zeros.

    With it come the entries of its rows that differ from feed to feed, as flat indices, and for each the place of what
    is added to it in the positions, numbers, tokens and targets of all feeds.
    """
    count = len(draws)
    plan = _laid_out([Feed(slot, [0], 0, [0], 0, number) for slot, number in draws], size, tiles)
    fields = np.arange(plan.rows.size).reshape(len(Rows._fields), -1)
    used = np.flatnonzero(Rows(*plan.rows).position.reshape(-1) >= 0)
    feed_of = {slot: number for number, (slot, _) in enumerate(draws)}
    own = np.array([feed_of[slot] for slot in Rows(*plan.rows).slot.reshape(-1)[used].tolist()])
    places = Rows(*fields)
    entries = [places.position[used], places.number[used], places.token[:count], places.target[:count]]
    source = [own, own + count, np.arange(2 * count, 4 * count)]
    return plan, np.concatenate(entries), np.concatenate(source)


def _moved(standing: tuple[Plan, np.ndarray, np.ndarray], feeds: Sequence[Feed]) -> Plan:
    """The plan with the positions, draws and tokens of these feeds."""
    plan, entries, source = standing
    rows = plan.rows.copy()
    fields = [(feed.position, feed.number, feed.tokens[0], feed.targets[0]) for feed in feeds]
    rows.reshape(-1)[entries] += np.array(list(zip(*fields, strict=True)), np.int32).reshape(-1)[source]
    return plan._replace(rows=rows)


def _draw_rows(draws_F: np.ndarray, reading: int, size: int):
    """(piece, feed and row of each draw behind the first, those rows [PIECE - 1, F] or -1, tiles that they take)."""
    piece, going = np.nonzero(draws_F > np.arange(1, PIECE)[:, None])
    counts = np.bincount(piece, minlength=PIECE - 1)
    tiles_of = -(-counts // size)
    start = (reading + np.cumsum(tiles_of) - tiles_of) * size - (np.cumsum(counts) - counts)
    place = np.arange(len(piece)) + start[piece]
    later = np.full((PIECE - 1, len(draws_F)), -1)
    later[piece, going] = place
    return piece, going, place, later, int(tiles_of.sum())


def _read(rows: Rows, feeds: Sequence[Feed], slot, position, number, lengths, size: int):
    """Writes the rows that read; returns (row of each token, feed by feed, where those of each feed begin)."""
    first = np.cumsum(lengths) - lengths
    offset = np.arange(lengths.sum()) - np.repeat(first, lengths)
    read = _places(np.repeat(np.arange(len(feeds)), lengths), offset, size)
    rows.slot[read], rows.number[read] = np.repeat(slot, lengths), np.repeat(number, lengths)
    rows.position[read] = np.repeat(position, lengths) + offset
    rows.token[read] = np.concatenate([feed.tokens for feed in feeds])
    rows.target[read] = np.concatenate([feed.targets for feed in feeds])
    return read, first


def _places(feed: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """[R] row of each token: by offset, then by feed; inside each tile by feed, then by offset."""
    tile = np.empty(len(feed), np.int64)
    tile[np.lexsort((feed, offset))] = np.arange(len(feed)) // size
    places = np.empty(len(feed), np.int64)
    places[np.lexsort((offset, feed, tile))] = np.arange(len(feed))
    return places
