"""Comparison of two models on disk on the same tokens, layer by layer: where they differ, and by how much.

One layer of each model is in memory at a time. Both compute in float32 for any stored dtype, so that differences come
from their weights and configs.
"""

import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ling_jax.checkpoint.layerwise import embedded, mtp_input, normed, run_layer, shifted_tokens
from ling_jax.checkpoint.parts import LayerLeaf, Reader, layer_leaves
from ling_jax.config import ModelConfig
from ling_jax.model import model_spec
from ling_jax.model.layers import LayerKind, layer_constants, layer_kind, mtp_layer_kind
from ling_jax.model.loss import head_logits
from ling_jax.spec import Params, named_leaves

DEPARTS = 2  # times the error that rounding explains; our choice
LOGIT_BYTES = 32 * 2**20  # of one model's logits in memory at a time; our choice
SIZES = ("vocab_size", "hidden_size", "num_layers")  # must be equal
# Settings of running and training, which change outputs by rounding at most.
NOT_COMPARED = (
    "compute_dtype", "remat", "scan_layers", "lightning_chunk", "loss_chunk", "max_length", "init_std",
    "mtp_loss_weight", "z_loss_weight", "mtp_detached",
)  # fmt: skip


class PartError(NamedTuple):
    """The errors of a part of model B: norms of differences relative to the output of model A's part."""

    name: str
    kind: str
    error: float  # of the outputs on each model's own hidden states
    own: float  # of the outputs when both parts read A's hidden states: the error of this part alone
    rounding: float  # of one model's part after rounding its weights like the other's

    @property
    def departs(self) -> bool:
        """Whether the part computes another function: its own error is above `DEPARTS` times that of rounding."""
        return self.own > DEPARTS * self.rounding


class LogitError(NamedTuple):
    """The divergence of the next-token distributions, in nats per token."""

    name: str
    mean_kl: float  # KL(A || B)
    max_kl: float
    same_top: float  # share of tokens with the same most likely next token


class _Block(NamedTuple):
    """A part of a model: the places of its weights, and its function of inputs and embedded tokens (MTP only)."""

    name: str
    kind: str
    places: dict[str, LayerLeaf]
    run: Callable[[Params, Any, Any], Any]


class _Model:
    """A model on disk, the tokens that it is run on, and its parts in order."""

    def __init__(self, reader: Reader, tokens_BT: np.ndarray, like: ModelConfig):
        self.reader = reader
        how = {name: getattr(like, name) for name in NOT_COMPARED}  # both run in the same way, to the same bits
        self.config = dataclasses.replace(reader.config, **how | {"compute_dtype": "float32"})
        ones_BT, positions_BT = np.ones_like(tokens_BT), np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
        self.rows = {"tokens": tokens_BT, "segment_ids": ones_BT, "positions": positions_BT.astype(np.int32)}
        self._places = layer_leaves(reader.config)
        self._shapes = {path: leaf.shape for path, leaf in named_leaves(model_spec(reader.config)).items()}

    def load(self, block: _Block) -> Params:
        leaves = {name: self.reader.read(*place) for name, place in block.places.items()}
        self.reader.report_nonfinite(f"{block.name}: ")
        return traverse_util.unflatten_dict(leaves, sep="/")

    def rounded(self, params: Params, block: _Block) -> Params | None:
        """Another model's weights of a block in this model's stored form; None if equal or not possible."""
        leaves, places = named_leaves(params), block.places
        shapes = {name: self._shapes[place.leaf][len(place.index) :] for name, place in places.items()}
        if {name: leaf.shape for name, leaf in leaves.items()} != shapes:
            return None
        try:
            stored = {name: self.reader.as_stored(leaf, *places[name]) for name, leaf in leaves.items()}
        except ValueError:  # NaN, which FP8 cannot hold
            return None
        same = all(stored[name] is leaf for name, leaf in leaves.items())
        return None if same else traverse_util.unflatten_dict(stored, sep="/")

    def trunk(self) -> Iterator[_Block]:
        """Layers and the final norm."""
        for number in range(self.config.num_layers):
            kind = layer_kind(self.config, number)
            run = functools.partial(self._layer, number=number, kind=kind)
            yield _Block(f"layer {number}", ", ".join(kind), self._places[number], run)
        yield self.top("final_norm", "final norm", lambda params, x, _: normed(params["final_norm"], x, self.config))

    def top(self, leaf: str, name: str, run: Callable) -> _Block:
        return _Block(name, "", {leaf: LayerLeaf(leaf, ())}, run)

    def embedding(self) -> _Block:
        return self.top("embed", "embedding", lambda params, tokens, _: params["embed"][tokens].astype(np.float32))

    def head(self, name: str) -> _Block:
        return self.top("head", name, lambda params, hidden, _: _logits(params["head"], hidden))

    def mtp(self, depth: int) -> _Block:
        kind = mtp_layer_kind(self.config)
        run = functools.partial(self._mtp, number=self.config.num_layers + depth, kind=kind)
        return _Block(f"MTP {depth + 1}", ", ".join(kind), self._places[self.config.num_layers + depth], run)

    def mtp_embedded(self, depth: int) -> np.ndarray:
        return embedded(self.reader, shifted_tokens(self.rows, depth + 1, self.config), self.config)

    def _layer(self, params: Params, x_BTD, _, *, number: int, kind: LayerKind):
        return run_layer(params, x_BTD, layer_constants(self.config, kind, number), self.rows, self.config, kind)

    def _mtp(self, params: Params, hidden_BTD, embedded_BTD, *, number: int, kind: LayerKind):
        x_BTD = mtp_input(params, embedded_BTD, hidden_BTD, self.config)
        x_BTD = self._layer(params["layer"], x_BTD, None, number=number, kind=kind)
        return normed(params["final_norm"], x_BTD, self.config)


def check_comparable(a: ModelConfig, b: ModelConfig) -> None:
    """Raises ValueError if the hidden states of two models have different shapes."""
    if differ := _differences(a, b, SIZES):
        raise ValueError(f"these models cannot be compared layer by layer: {'; '.join(differ)}")


def config_differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """The differences of two configs that change the model's function, as texts."""
    names = (field.name for field in dataclasses.fields(ModelConfig) if field.compare)
    return _differences(a, b, [name for name in names if name not in NOT_COMPARED])


def _differences(a: ModelConfig, b: ModelConfig, names: Iterable[str]) -> list[str]:
    values = ((name, getattr(a, name), getattr(b, name)) for name in names)
    return [f"{name} is {one} and {other}" for name, one, other in values if one != other]


def compare_layers(a: Reader, b: Reader, tokens_BT: np.ndarray) -> Iterator[PartError | LogitError]:
    """The embedding, every layer, the final norm, the logits, then every MTP layer that both have and its logits.

    `tokens_BT` [B, T] integers. Raises ValueError if the models have different sizes.
    """
    check_comparable(a.config, b.config)
    tokens_BT = np.asarray(tokens_BT, np.int32)
    models = _Model(a, tokens_BT, a.config), _Model(b, tokens_BT, a.config)
    states, error = _compare_block(models, [model.embedding() for model in models], (tokens_BT, tokens_BT))
    yield error
    for blocks in zip(*(model.trunk() for model in models), strict=True):
        states, error = _compare_block(models, blocks, states)
        yield error
    yield from _compare_logits(models, states, "")
    for depth in range(min(model.config.mtp_depth for model in models)):
        tokens = [model.mtp_embedded(depth) for model in models]
        states, error = _compare_block(models, [model.mtp(depth) for model in models], states, tokens)
        yield error
        yield from _compare_logits(models, states, f"MTP {depth + 1} ")


def _compare_block(models, blocks, inputs, tokens=(None, None)) -> tuple[list[np.ndarray], PartError]:
    """(outputs of both models' blocks, their error); the weights of one block are in memory at a time."""
    (model_a, model_b), (block_a, block_b), (x_a, x_b), (tokens_a, tokens_b) = models, blocks, inputs, tokens
    params = model_a.load(block_a)
    y_a = np.asarray(block_a.run(params, x_a, tokens_a))
    rounding = _rounding(params, block_a, model_b, block_b, (x_a, tokens_a), y_a)
    params = None  # free it before the next is read
    gc.collect(0)  # JAX frees zero-copy arrays at any collection
    params = model_b.load(block_b)
    y_b = np.asarray(block_b.run(params, x_b, tokens_b))
    own_b = y_b if _same((x_a, tokens_a), (x_b, tokens_b)) else np.asarray(block_b.run(params, x_a, tokens_a))
    rounding = max(rounding, _rounding(params, block_b, model_a, block_a, (x_a, tokens_a), own_b))
    params = None
    gc.collect(0)
    kind = block_a.kind if block_a.kind == block_b.kind else f"{block_a.kind} | {block_b.kind}"
    return [y_a, y_b], PartError(block_a.name, kind, _relative(y_b, y_a), _relative(own_b, y_a), rounding)


def _rounding(params: Params, block: _Block, other: _Model, other_block: _Block, inputs, output) -> float:
    """The error of a block's output when its weights have the other model's stored form."""
    rounded = other.rounded(params, other_block)
    return 0.0 if rounded is None else _relative(np.asarray(block.run(rounded, *inputs)), output)


def _compare_logits(models, states, prefix: str) -> Iterator[PartError | LogitError]:
    """The errors of the LM head on hidden states, some tokens at a time; both heads are in memory."""
    blocks = [model.head(f"{prefix}logits") for model in models]
    heads = [model.load(block) for model, block in zip(models, blocks, strict=True)]
    rounded = [models[1].rounded(heads[0], blocks[1]), models[0].rounded(heads[1], blocks[0])]
    error, own, roundings = _Ratio(), _Ratio(), [_Ratio(), _Ratio()]
    kl, same_top = [], []
    hidden_a, hidden_b = (x_BTD.reshape(1, -1, x_BTD.shape[-1]) for x_BTD in states)
    step = max(1, LOGIT_BYTES // (4 * models[0].config.vocab_size))
    for first in range(0, hidden_a.shape[1], step):
        a, b = hidden_a[:, first : first + step], hidden_b[:, first : first + step]
        logits_a, logits_b = _logits(heads[0]["head"], a), _logits(heads[1]["head"], b)
        own_b = logits_b if _same(a, b) else _logits(heads[1]["head"], a)
        error.add(logits_b, logits_a)
        own.add(own_b, logits_a)
        for ratio, head, exact in zip(roundings, rounded, (logits_a, own_b), strict=True):
            if head is not None:
                ratio.add(_logits(head["head"], a), exact)
        kl.append(np.asarray(_kl(logits_a, logits_b)))
        same_top.append(np.asarray(logits_a.argmax(-1) == logits_b.argmax(-1)))
    yield PartError(blocks[0].name, "", error.value, own.value, max(ratio.value for ratio in roundings))
    kl = np.concatenate(kl, axis=1)
    name = f"{prefix}next token"
    yield LogitError(name, float(kl.mean()), float(kl.max()), float(np.concatenate(same_top, axis=1).mean()))


_logits = jax.jit(head_logits)


@jax.jit
def _kl(logits_BTW, other_BTW):
    """[B, T] KL divergences of the second distributions from the first, which are the reference."""
    logp, logq = jax.nn.log_softmax(logits_BTW), jax.nn.log_softmax(other_BTW)
    p, log_ratio = jnp.exp(logp), logp - logq
    close = p * (log_ratio + jnp.expm1(-log_ratio))  # p log(p/q) - p + q has the same sum and is never negative
    return jnp.sum(jnp.where(jnp.abs(log_ratio) < 1, close, p * log_ratio - p + jnp.exp(logq)), axis=-1)


class _Ratio:
    """The norm of a difference relative to the norm of a reference, accumulated over parts."""

    def __init__(self):
        self._error = self._size = 0.0

    def add(self, value, reference) -> None:
        value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        self._size += float(np.sum(reference**2))
        if not np.array_equal(value, reference, equal_nan=True):
            self._error += float(np.sum((value - reference) ** 2))

    @property
    def value(self) -> float:
        """The ratio: 0 if all numbers are equal, infinite if a NaN differs."""
        if self._error == 0:
            return 0.0
        ratio = math.sqrt(self._error) / math.sqrt(self._size) if self._size else math.inf
        return math.inf if math.isnan(ratio) else ratio


def _relative(value, reference) -> float:
    ratio = _Ratio()
    ratio.add(value, reference)
    return ratio.value


def _same(one, other) -> bool:
    """Whether two trees hold the same numbers."""
    return all(map(functools.partial(np.array_equal, equal_nan=True), jax.tree.leaves(one), jax.tree.leaves(other)))
