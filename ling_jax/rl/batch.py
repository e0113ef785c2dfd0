"""Answers packed into rows, the form in which programs read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax.config import ModelConfig
from ling_jax.data.packing import best_fit_decreasing
from ling_jax.model.loss import IGNORED
from ling_jax.model.recorded_experts import empty_experts
from ling_jax.objectives.objective import Normaliser
from ling_jax.parallel.sharding import num_shards, partition_spec
from ling_jax.rl.answers import Answer, token_weights

FLOATS = ("behaviour_logps", "advantages", "weights")  # of every batch


@flax.struct.dataclass
class Batch:
    """Microbatches of rows [M, R, T] that hold several answers each, one behind the other.

    A position has the numbers of the token that it predicts, the next one of its answer: `targets`, and all behind it
    but `experts`, which are of the token that stands there.
    """

    tokens: jax.Array  # int32
    segment_ids: jax.Array  # int32: the answers of a row are 1, 2, …; 0 behind them
    positions: jax.Array  # int32, in the answer
    targets: jax.Array  # int32: the next token where the policy drew it, else -100
    behaviour_logps: jax.Array  # float32, as they were recorded
    ages: jax.Array  # int32: weight versions since the token was drawn
    sentence_ids: jax.Array  # int32, different for each sentence of a row
    advantages: jax.Array  # float32
    weights: jax.Array  # float32: of the token in the objective's mean over the whole batch
    reference_weights: jax.Array | None = None  # float32: in the mean of the penalty; None where none is asked for
    old_logps: jax.Array | None = None  # float32, before the first step on the batch; None: those of the step
    reference_logps: jax.Array | None = None  # float32; None where no penalty needs them
    teacher_logps: jax.Array | None = None  # float32; None without teachers
    # [M, R, T, L, k] integers: recorded experts, -1 where a token chooses by itself; None: all do
    experts: jax.Array | None = None
    count: jax.Array | None = None  # int32 scalar: microbatches that hold answers; None: all

    @property
    def mask(self) -> jax.Array:
        """bool: where a drawn token is predicted."""
        return self.targets != IGNORED

    @property
    def rows(self) -> "Batch":
        """All microbatches as rows [R · M, T, …] of one, without `count`; devices keep their rows."""

        def merged(x):
            return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        return jax.tree.map(merged, self.replace(count=None))


class Layout(NamedTuple):
    """The shape of a batch."""

    microbatches: int
    rows: int  # of a microbatch
    length: int  # tokens of a row: the longest answer


class Place(NamedTuple):
    """Where an answer lies in a batch."""

    microbatch: int
    row: int
    start: int


def layout_for(answers: int, microbatches: int, length: int, mesh: jax.sharding.Mesh) -> Layout:
    """The layout that holds so many answers however long they are; rows split evenly over the mesh."""
    shards = num_shards("batch", mesh)
    return Layout(microbatches, -(-answers // (microbatches * shards)) * shards, length)


def places_of(answers: Sequence[Answer], layout: Layout) -> list[Place]:
    """Where `pack` puts each answer: longest first into the fullest row with room for it; rows fill microbatches in
    order. Depends on the lengths alone."""
    lengths = np.array([len(answer) for answer in answers], np.int64)
    rows = best_fit_decreasing(lengths, layout.length)
    ends, places = np.zeros(int(rows.max(initial=-1)) + 1, np.int64), [Place(0, 0, 0)] * len(answers)
    for i in np.argsort(-lengths, kind="stable"):
        row = int(rows[i])
        places[i] = Place(row // layout.rows, row % layout.rows, int(ends[row]))
        ends[row] += lengths[i]
    return places


def pack(
    answers: Sequence[Answer],
    layout: Layout,
    normaliser: Normaliser = "rows",
    reference: Normaliser | None = None,
    floats: Sequence[str] = (),
    replays: ModelConfig | None = None,
) -> Batch:
    """The batch of these answers, numpy arrays.

    `normaliser` says what the objective is a mean over, `reference` the same of a penalty to the reference; `floats`
    are the optional arrays of a Batch that it has. It has the recorded experts for a model that `replays` them. Raises
    ValueError where the answers do not fit the layout.
    """
    places = places_of(answers, layout)
    count = max((place.microbatch for place in places), default=-1) + 1
    if count > layout.microbatches:
        raise ValueError(f"{len(answers)} answers take {count} microbatches of {layout}")
    zeros = _zeros(layout, floats)
    segments, sentences = np.zeros(layout[:2], np.int64), np.zeros(layout[:2], np.int64)
    experts = None if replays is None else _experts(answers, places, layout, replays)
    weights = {"weights": token_weights(answers, normaliser)}
    weights |= {"reference_weights": token_weights(answers, reference)} if reference else {}
    of_tokens = zeros.keys() & {field.name for field in dataclasses.fields(Answer)}
    for i, (answer, (m, r, start)) in enumerate(zip(answers, places, strict=True)):
        size = len(answer)
        segments[m, r] += 1
        arrays = {
            "tokens": answer.tokens,
            "segment_ids": np.full(size, segments[m, r]),
            "positions": np.arange(size),
            "targets": _ahead(np.where(answer.mask, answer.tokens, IGNORED), IGNORED),
            "sentence_ids": _ahead(answer.sentence_ids + 1, 0) + sentences[m, r],
            "advantages": np.full(size, answer.advantage),
            **{name: np.full(size, values[i]) for name, values in weights.items()},
        }
        sentences[m, r] += int(answer.sentence_ids.max(initial=-1)) + 2
        arrays |= {name: _ahead(getattr(answer, name), 0) for name in of_tokens - arrays.keys()}
        for name, values in arrays.items():
            zeros[name][m, r, start : start + size] = values
    return Batch(**zeros, experts=experts, count=np.int32(count))


def _experts(answers: Sequence[Answer], places: Sequence[Place], layout: Layout, config: ModelConfig) -> np.ndarray:
    experts = empty_experts(layout.microbatches * layout.rows, layout.length, config)
    for answer, (m, r, start) in zip(answers, places, strict=True):
        if answer.experts is not None:
            experts[m * layout.rows + r, start : start + len(answer.experts)] = answer.experts
    return experts.reshape(*layout, *experts.shape[2:])


def unpack(values: np.ndarray, answers: Sequence[Answer], layout: Layout) -> list[np.ndarray]:
    """Of values [M, R, T] of predicted tokens those of each answer, [n]: 0 for its first token, which is predicted by
    none."""
    found = []
    for answer, (m, r, start) in zip(answers, places_of(answers, layout), strict=True):
        found.append(np.concatenate([np.zeros(1, values.dtype), values[m, r, start : start + len(answer) - 1]]))
    return found


def empty_batch(layout: Layout, floats: Sequence[str] = (), replays: ModelConfig | None = None) -> Batch:
    """A batch without answers, numpy arrays; `floats` and `replays` as for `pack`."""
    experts = None if replays is None else _experts((), (), layout, replays)
    return Batch(**_zeros(layout, floats), experts=experts, count=np.int32(0))


def _zeros(layout: Layout, floats: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros(tuple(layout), dtype) for name, dtype in _dtypes(floats).items()}
    arrays["targets"][...] = IGNORED
    return arrays


def _ahead(values: np.ndarray, fill: Any) -> np.ndarray:
    """The value of the next token, `fill` at the last."""
    return np.concatenate([values[1:], np.full(1, fill, values.dtype)])


def _dtypes(floats: Sequence[str]) -> dict[str, Any]:
    integers = ("tokens", "segment_ids", "positions", "targets", "ages", "sentence_ids")
    return dict.fromkeys(integers, np.int32) | dict.fromkeys((*FLOATS, *floats), np.float32)


def abstract_batch(
    layout: Layout,
    mesh: jax.sharding.Mesh,
    floats: Sequence[str] = (),
    *,
    replays: ModelConfig | None = None,
    counted: bool = True,
) -> Batch:
    """A batch as ShapeDtypeStructs on the mesh; `floats` and `replays` as for `pack`.

    Not `counted`: all microbatches hold answers.
    """
    by_row = batch_sharding(mesh)

    def array(dtype, shape=()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*layout, *shape), dtype, sharding=by_row)

    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    empty = None if replays is None else empty_experts(0, 0, replays)
    return Batch(
        **{name: array(dtype) for name, dtype in _dtypes(floats).items()},
        experts=None if empty is None else array(empty.dtype, empty.shape[2:]),
        count=scalar if counted else None,
    )


def expert_bytes_per_token(config: ModelConfig) -> int:
    """Bytes that the recorded experts of a token take."""
    return empty_experts(1, 1, config).nbytes


def expert_bytes_per_device(layout: Layout, mesh: jax.sharding.Mesh, config: ModelConfig) -> int:
    """Bytes that the recorded experts of a batch take on a device."""
    shards = num_shards("batch", mesh) * num_shards("tokens", mesh)
    return layout.microbatches * layout.rows * layout.length // shards * expert_bytes_per_token(config)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of arrays [M, R, T, …]."""
    return NamedSharding(mesh, partition_spec((None, "batch", "tokens")))


def on_mesh(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """The batch on the devices; every process has all of its numpy arrays and keeps its devices' parts."""

    def placed(x: np.ndarray) -> jax.Array:
        sharding = batch_sharding(mesh) if np.ndim(x) else NamedSharding(mesh, PartitionSpec())
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(placed, batch)
