"""Decoder layers: the plan from the layer list to segments, and the scan over them (docs/architecture.md §2)."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ling_jax.config import ModelConfig
from ling_jax.model.gqa import gqa, gqa_spec
from ling_jax.model.layer_cache import LayerCache
from ling_jax.model.lightning import ENTERING, lightning, lightning_spec, log_decays
from ling_jax.model.mla import mla, mla_spec
from ling_jax.model.moe import dense_ffn, moe, moe_spec, swiglu_spec
from ling_jax.model.norm import rms_norm
from ling_jax.parallel.sharding import constrain, gathered
from ling_jax.spec import Leaf, Params, Spec, ones, stack

MIXERS = {"lightning": (lightning_spec, lightning), "mla": (mla_spec, mla), "gqa": (gqa_spec, gqa)}
FFNS = {"dense": (lambda config: swiglu_spec(config, config.ffn_size), dense_ffn), "moe": (moe_spec, moe)}


class Kind(NamedTuple):
    mixer: str
    ffn: str


class Run(NamedTuple):
    """`count` equal layers one after the other."""

    kind: Kind
    count: int

    def name(self, position: int) -> str:
        return f"{position}_{self.kind.mixer}_{self.kind.ffn}"


class Segment(NamedTuple):
    """`repeats` equal groups of runs; leaves of a run are stacked [repeats, count, …]."""

    runs: tuple[Run, ...]
    repeats: int

    def named_runs(self) -> list[tuple[str, Run]]:
        return [(run.name(position), run) for position, run in enumerate(self.runs)]


class Split(NamedTuple):
    """What each of R ranks knows of the others' tokens, where rows are split among them."""

    docs: jax.Array  # [B, T] document numbers of whole rows, on every rank
    between: jax.Array  # [B, R, R] of `live_between`, each rank's own row


class Sequence(NamedTuple):
    """What every layer knows of the tokens."""

    docs: jax.Array | None  # [B, T] document numbers, 0 padding; None: each row is one document
    live: jax.Array  # [B, T] bool, no padding
    slots: jax.Array | None  # [B, T] where the cache puts them; None: there is no cache
    sees: jax.Array | None  # [B, T] the last slot that each sees; None: the cache held nothing, they see each other
    rope: Any  # (cos, sin) of Lightning and GQA heads
    rotation: Any  # the same as the Lightning layers' kernels take it; None: they are not used
    latent_rope: Any  # (cos, sin) of MLA's rope dims
    split: Split | None = None  # None: rows are whole


def layer_kind(config: ModelConfig, layer: int) -> Kind:
    mixer = config.softmax if config.is_softmax_layer(layer) else "lightning"
    return Kind(mixer, "dense" if layer < config.first_dense_layers else "moe")


def layer_plan(config: ModelConfig) -> tuple[Segment, ...]:
    """Groups of `layer_group_size` layers, each as runs of equal layers; equal neighbouring groups are one segment."""
    kinds = [layer_kind(config, layer) for layer in range(config.num_layers)]
    starts = range(0, config.num_layers, config.layer_group_size)
    groups = [kinds[start : start + config.layer_group_size] for start in starts]
    runs = [tuple(Run(kind, len(list(same))) for kind, same in itertools.groupby(group)) for group in groups]
    return tuple(Segment(pattern, len(list(same))) for pattern, same in itertools.groupby(runs))


def layer_numbers(config: ModelConfig) -> dict[tuple[str, str], np.ndarray]:
    """(segment, run) -> [repeats, count] numbers of its layers."""
    numbers, first = {}, 0
    for index, segment in enumerate(layer_plan(config)):
        group = sum(run.count for run in segment.runs)
        for name, run in segment.named_runs():
            numbers[str(index), name] = first + group * np.arange(segment.repeats)[:, None] + np.arange(run.count)
            first += run.count
        first += group * (segment.repeats - 1)
    return numbers


def layer_spec(config: ModelConfig, kind: Kind) -> Spec:
    norm = Leaf((config.hidden_size,), (None,), ones)
    mixer_spec, ffn_spec = MIXERS[kind.mixer][0], FFNS[kind.ffn][0]
    return {"mixer_norm": norm, "mixer": mixer_spec(config), "ffn_norm": norm, "ffn": ffn_spec(config)}


def segments_spec(config: ModelConfig) -> Spec:
    """{segment: {run: the layer's spec, stacked}}."""
    return {
        str(index): {
            name: stack(layer_spec(config, run.kind), (segment.repeats, run.count), (None, None))
            for name, run in segment.named_runs()
        }
        for index, segment in enumerate(layer_plan(config))
    }


def layer(params: Params, x_BTD, log_decay_H, cache, sequence: Sequence, config: ModelConfig, kind: Kind):
    """(x + mixer(norm(x)), then + ffn(norm(x)); Router or None; the LayerCache with these tokens)."""
    (mixer_spec, mixer), (ffn_spec, ffn) = MIXERS[kind.mixer], FFNS[kind.ffn]
    with jax.named_scope(kind.mixer):
        normed = rms_norm(x_BTD, params["mixer_norm"], config.norm_eps)
        weights = gathered(params["mixer"], mixer_spec(config), x_BTD.dtype)
        y_BTD, cache = mixer(weights, normed, sequence, log_decay_H, cache, config)
        x_BTD = x_BTD + y_BTD
    with jax.named_scope(kind.ffn):
        normed = rms_norm(x_BTD, params["ffn_norm"], config.norm_eps)
        weights = gathered(params["ffn"], ffn_spec(config), x_BTD.dtype)
        y_BTD, router = ffn(weights, normed, sequence.live, config)
    x_BTD = constrain(x_BTD + checkpoint_name(y_BTD, "ffn_out"), ("batch", "tokens", None))
    return x_BTD, router, cache


def remat(function, config: ModelConfig, *, scanned: bool):
    """`function` with the activations that backward recomputes chosen by `config.remat`.

    The state that enters a rank is never among them: it is small, and its gather is not done twice.
    """
    if config.remat == "none":
        return function
    policies, named = jax.checkpoint_policies, jax.checkpoint_policies.save_only_these_names
    kept = {
        "full": named(ENTERING),
        "dots": policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, named(ENTERING)),
        "ffn": named("ffn_out", ENTERING),
    }
    # Common-subexpression elimination would undo the recomputation, but cannot reach through a scan.
    return jax.checkpoint(function, policy=kept[config.remat], prevent_cse=not scanned)


def run_segments(params: Params, x_BTD, sequence: Sequence, config: ModelConfig, cache=None):
    """(x after all layers, {segment: {run: Router stacked [repeats, count, …] or None}}, the cache with these tokens).

    `cache` is None or {segment: {run: leaves stacked [repeats, count, …]}}; the leaves of none are None.
    """
    routers, caches, decays, numbers = {}, {}, log_decays(config), layer_numbers(config)
    for index, segment in enumerate(layer_plan(config)):
        log_decay = {name: decays[numbers[str(index), name]] for name, _ in segment.named_runs()}
        group = _group_function(segment, sequence, config)
        cached = {name: None for name, _ in segment.named_runs()} if cache is None else cache[str(index)]
        carry, inputs = (x_BTD, cached), (params[str(index)], log_decay)
        (x_BTD, caches[str(index)]), routers[str(index)] = _scan(group, carry, inputs, segment.repeats, config)
    return x_BTD, routers, caches


def _group_function(segment: Segment, sequence: Sequence, config: ModelConfig):
    def group(carry, repeat, inputs):
        x_BTD, cache = carry
        params, log_decay = inputs
        routers, caches = {}, {}
        for name, run in segment.named_runs():
            body = _layer_function(run, repeat, sequence, config)
            of_run = (params[name], log_decay[name])
            (x_BTD, caches[name]), routers[name] = _scan(body, (x_BTD, cache[name]), of_run, run.count, config)
        return (x_BTD, caches), routers

    return group


def _layer_function(run: Run, repeat, sequence: Sequence, config: ModelConfig):
    def body(carry, number, inputs):
        x_BTD, leaves = carry
        params, log_decay_H = inputs
        cache = None if leaves is None else LayerCache(leaves, (repeat, number))
        x_BTD, router, cache = layer(params, x_BTD, log_decay_H, cache, sequence, config, run.kind)
        return (x_BTD, None if cache is None else cache.leaves), router

    return remat(body, config, scanned=_scanned(run.count, config))


def _scanned(length: int, config: ModelConfig) -> bool:
    return config.scan_layers and length > 1


def _scan(body, carry, inputs, length: int, config: ModelConfig):
    """`jax.lax.scan` of body(carry, number, inputs of that number), unrolled where layers are not to be scanned."""
    step = lambda carry, numbered: body(carry, *numbered)  # noqa: E731
    unroll = 1 if _scanned(length, config) else length
    return jax.lax.scan(step, carry, (np.arange(length), inputs), unroll=unroll)
