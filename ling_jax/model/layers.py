"""Decoder layers: the plan of segments for the layer list, and the scan over them (docs/architecture.md §2)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from ling_jax.config import ModelConfig
from ling_jax.model.gqa import GQA
from ling_jax.model.layer_cache import LayerCache
from ling_jax.model.lightning import ENTERING, LIGHTNING
from ling_jax.model.mixer import Mixer
from ling_jax.model.mla import MLA
from ling_jax.model.moe import Router, dense_ffn, dense_spec, moe, moe_spec, serve_moe, serve_swiglu
from ling_jax.model.norm import rms_norm
from ling_jax.model.token_info import TokenInfo
from ling_jax.parallel.sharding import constrain, gather_weights
from ling_jax.spec import Leaf, Params, Spec, ones, stack

MIXERS: dict[str, Mixer] = {"lightning": LIGHTNING, "mla": MLA, "gqa": GQA}
FFNS = {"dense": (dense_spec, dense_ffn, serve_swiglu), "moe": (moe_spec, moe, serve_moe)}


class LayerKind(NamedTuple):
    """The mixer ("lightning", "mla" or "gqa") and the feed-forward part ("dense" or "moe") of a layer."""

    mixer: str
    ffn: str


class LayerRun(NamedTuple):
    """`count` layers of one kind in a row."""

    kind: LayerKind
    count: int

    def name(self, position: int) -> str:
        """The key of the run in parameter trees, such as 0_lightning_dense."""
        return f"{position}_{self.kind.mixer}_{self.kind.ffn}"


class Segment(NamedTuple):
    """`repeats` equal groups of runs. The leaves of a run are stacked [repeats, count, …]."""

    runs: tuple[LayerRun, ...]
    repeats: int

    def named_runs(self) -> list[tuple[str, LayerRun]]:
        """[(key in parameter trees, run), …]."""
        return [(run.name(position), run) for position, run in enumerate(self.runs)]


def layer_kind(config: ModelConfig, layer: int) -> LayerKind:
    """The kind of a layer of the trunk, counted from 0."""
    mixer = config.full_attention if config.is_full_attention_layer(layer) else "lightning"
    return LayerKind(mixer, "dense" if layer < config.first_dense_layers else "moe")


def mtp_layer_kind(config: ModelConfig) -> LayerKind:
    """The kind of the layer in an MTP module: full attention and a mixture of experts."""
    return LayerKind(config.full_attention, "moe")


def layer_plan(config: ModelConfig) -> tuple[Segment, ...]:
    """The layer list as segments: groups of `layer_group_size` layers as runs, equal neighbouring groups merged."""
    kinds = [layer_kind(config, layer) for layer in range(config.num_layers)]
    starts = range(0, config.num_layers, config.layer_group_size)
    groups = [kinds[start : start + config.layer_group_size] for start in starts]
    runs = [tuple(LayerRun(kind, len(list(same))) for kind, same in itertools.groupby(group)) for group in groups]
    return tuple(Segment(pattern, len(list(same))) for pattern, same in itertools.groupby(runs))


def layer_numbers(config: ModelConfig) -> dict[tuple[str, str], np.ndarray]:
    """{(segment, run): layer numbers, int [repeats, count]}."""
    numbers, first = {}, 0
    for index, segment in enumerate(layer_plan(config)):
        group = sum(run.count for run in segment.runs)
        for name, run in segment.named_runs():
            numbers[str(index), name] = first + group * np.arange(segment.repeats)[:, None] + np.arange(run.count)
            first += run.count
        first += group * (segment.repeats - 1)
    return numbers


def layer_spec(config: ModelConfig, kind: LayerKind) -> Spec:
    """Spec of one layer: two norms, the mixer and the feed-forward part."""
    norm = Leaf((config.hidden_size,), (None,), ones, role="norm")
    mixer_spec, ffn_spec = MIXERS[kind.mixer].spec, FFNS[kind.ffn][0]
    return {"mixer_norm": norm, "mixer": mixer_spec(config), "ffn_norm": norm, "ffn": ffn_spec(config)}


def segments_spec(config: ModelConfig) -> Spec:
    """{segment: {run: layer spec, leaves stacked [repeats, count, …]}}."""
    return {
        str(index): {
            name: stack(layer_spec(config, run.kind), (segment.repeats, run.count), (None, None))
            for name, run in segment.named_runs()
        }
        for index, segment in enumerate(layer_plan(config))
    }


def serving_layers(segments: Params, config: ModelConfig) -> Params:
    """The layers' parameters as a CPU decodes by them fastest: {segment: a tuple of groups {run: a tuple of layers}}.

    XLA on a CPU copies a slice before it multiplies by it, and every operation costs microseconds. So each layer has
    arrays of its own, and matrices with the same input are one (`Mixer.serve`). They go on from a cache or from pages.
    """

    def serve(kind: LayerKind, params: Params, *number: int) -> Params:
        params = jax.tree.map(lambda leaf: leaf[number], params)
        mixer = MIXERS[kind.mixer].serve(params["mixer"], config)
        return params | {"mixer": mixer, "ffn": FFNS[kind.ffn][2](params["ffn"])}

    return {
        str(index): tuple(
            {
                name: tuple(serve(run.kind, segments[str(index)][name], repeat, n) for n in range(run.count))
                for name, run in segment.named_runs()
            }
            for repeat in range(segment.repeats)
        )
        for index, segment in enumerate(layer_plan(config))
    }


def layer_constants(config: ModelConfig, kind: LayerKind, numbers: ArrayLike) -> dict[str, np.ndarray]:
    """What a mixer of this kind gets beside its parameters: {name: [..., …]} for layer numbers [...] of the trunk."""
    return {name: values[np.asarray(numbers)] for name, values in MIXERS[kind.mixer].constants(config).items()}


def layer(
    params: Params,
    x_BTD: jax.Array,
    constants: Params,
    cache: LayerCache | None,
    info: TokenInfo,
    config: ModelConfig,
    kind: LayerKind,
    recorded_BTk: jax.Array | None = None,
) -> tuple[jax.Array, Router | None, LayerCache | None]:
    """One decoder layer: x + mixer(norm(x)), then + ffn(norm(x)); x [B, T, D].

    `constants` are the layer's own, as of `layer_constants`, and `recorded_BTk` the experts that a MoE layer replays
    (`moe.route`). Returns (x, the Router of a MoE layer or None, the cache with these tokens or None).
    """
    mixer, (ffn_spec, ffn, _) = MIXERS[kind.mixer], FFNS[kind.ffn]
    with jax.named_scope(kind.mixer):
        normed = rms_norm(x_BTD, params["mixer_norm"], config.norm_eps)
        weights = gather_weights(params["mixer"], mixer.spec(config), x_BTD.dtype)
        y_BTD, cache = mixer.forward(weights | constants, normed, info, cache, config)
        x_BTD = x_BTD + y_BTD
    with jax.named_scope(kind.ffn):
        normed = rms_norm(x_BTD, params["ffn_norm"], config.norm_eps)
        weights = gather_weights(params["ffn"], ffn_spec(config), x_BTD.dtype)
        y_BTD, router = ffn(weights, normed, info.live, config, recorded_BTk)
    x_BTD = constrain(x_BTD + checkpoint_name(y_BTD, "ffn_out"), ("batch", "tokens", None))
    return x_BTD, router, cache


def remat(function: Callable[..., Any], config: ModelConfig, *, scanned: bool) -> Callable[..., Any]:
    """`function` under `jax.checkpoint` with the policy that `config.remat` names.

    Every policy saves the state that enters a rank: it is small, and recomputation would gather it again.
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


def num_moe_layers(config: ModelConfig) -> int:
    """MoE layers of the trunk."""
    return max(config.num_layers - config.first_dense_layers, 0)


def experts_by_run(experts_BTLk: jax.Array | None, config: ModelConfig) -> dict[str, dict[str, jax.Array | None]]:
    """Recorded experts in the layout of the parameters: {segment: {run: [repeats, count, B, T, k]}}.

    L are the MoE layers in order. A dense run has None; without records, every run has None.
    """
    by_run, first = {}, 0
    for index, segment in enumerate(layer_plan(config)):
        counts = {name: run.count if run.kind.ffn == "moe" else 0 for name, run in segment.named_runs()}
        by_run[str(index)], group, start = dict.fromkeys(counts), sum(counts.values()), 0
        if experts_BTLk is None or not group:
            continue
        of_segment = jnp.moveaxis(experts_BTLk[:, :, first : first + segment.repeats * group], 2, 0)
        of_segment = of_segment.reshape(segment.repeats, group, *of_segment.shape[1:])
        for name, count in counts.items():
            by_run[str(index)][name] = of_segment[:, start : start + count] if count else None
            start += count
        first += segment.repeats * group
    return by_run


def run_segments(
    params: Params,
    x_BTD: jax.Array,
    info: TokenInfo,
    config: ModelConfig,
    cache: dict[str, Any] | None = None,
    experts_BTLk: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
    """All layers of the trunk: (x [B, T, D], routers, the cache's leaves with these tokens).

    Routers are {segment: {run: Router stacked [repeats, count, …], None for dense layers}}. The cache's leaves are
    {segment: {run: {name: [repeats, count, B, …]}}}; without a cache each run has None. `experts_BTLk` are recorded
    experts of the MoE layers (`transformer.hidden_states`).
    """
    routers, caches, numbers = {}, {}, layer_numbers(config)
    recorded = experts_by_run(experts_BTLk, config)
    for index, segment in enumerate(layer_plan(config)):
        constants = {
            name: layer_constants(config, run.kind, numbers[str(index), name]) for name, run in segment.named_runs()
        }
        group = _group_function(segment, info, config)
        cached = {name: None for name, _ in segment.named_runs()} if cache is None else cache[str(index)]
        carry, inputs = (x_BTD, cached), (params[str(index)], constants, recorded[str(index)])
        (x_BTD, caches[str(index)]), routers[str(index)] = _scan(group, carry, inputs, segment.repeats, config)
    return x_BTD, routers, caches


def _group_function(segment: Segment, info: TokenInfo, config: ModelConfig):
    def group(carry, repeat, inputs):
        x_BTD, cache = carry
        params, constants, recorded = inputs
        routers, caches = {}, {}
        for name, run in segment.named_runs():
            body = _layer_function(run, repeat, info, config)
            of_run = (params[name], constants[name], recorded[name])
            (x_BTD, caches[name]), routers[name] = _scan(body, (x_BTD, cache[name]), of_run, run.count, config)
        return (x_BTD, caches), routers

    return group


def _layer_function(run: LayerRun, repeat, info: TokenInfo, config: ModelConfig):
    def body(carry, number, inputs):
        x_BTD, leaves = carry
        params, constants, recorded_BTk = inputs
        cache = None if leaves is None else LayerCache(leaves, (repeat, number))
        x_BTD, router, cache = layer(params, x_BTD, constants, cache, info, config, run.kind, recorded_BTk)
        return (x_BTD, None if cache is None else cache.leaves), router

    return remat(body, config, scanned=_scanned(run.count, config))


def _scanned(length: int, config: ModelConfig) -> bool:
    return config.scan_layers and length > 1


def _scan(body, carry, inputs, length: int, config: ModelConfig):
    """`jax.lax.scan` of body(carry, number, inputs[number]), unrolled unless `config.scan_layers`.

    `inputs` are (parameters, more trees). Parameters are stacked or a tuple (`serving_layers`), which is always
    unrolled; the other trees are stacked.
    """

    params, *more = inputs
    if isinstance(params, tuple):
        outputs = []
        for number, of_one in enumerate(params):
            carry, output = body(carry, number, (of_one, *jax.tree.map(lambda x, n=number: x[n], more)))
            outputs.append(output)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    def step(carry, numbered):
        return body(carry, *numbered)

    unroll = 1 if _scanned(length, config) else length
    return jax.lax.scan(step, carry, (np.arange(length), inputs), unroll=unroll)
