"""The whole model: parameters, forward pass and training loss (docs/architecture.md)."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model.cache import Cache, slots_of
from ling_jax.model.layers import layer_numbers, num_moe_layers, run_segments, segments_spec
from ling_jax.model.lightning import uses_layer_kernel
from ling_jax.model.loss import IGNORED, LossSums, cross_entropy_sum, head_logits, shifted_targets, weighted_total
from ling_jax.model.moe import Router
from ling_jax.model.mtp import mtp_hidden, mtp_spec
from ling_jax.model.norm import rms_norm
from ling_jax.model.rope import Ropes, rope_tables
from ling_jax.model.token_info import PAGE_SIZE, PAST_END, ContextSplit, Pages, Places, TokenInfo
from ling_jax.parallel import context
from ling_jax.parallel.embedding import look_up
from ling_jax.parallel.sharding import constrain, num_shards, per_device
from ling_jax.spec import Leaf, Params, Spec, normal, ones
from pallas_kernels.lightning_attention import document_ids, rotation_lanes
from pallas_kernels.lightning_attention.context import live_between


@flax.struct.dataclass
class ForwardOutput:
    """The result of `forward`."""

    logits: jax.Array  # [B, T, W], at least float32
    mtp_logits: tuple[jax.Array, ...]  # one [B, T, W] for each depth: tokens t + 2, t + 3, …
    router: Router | None  # stacked over MoE layers, MTP layers last; None: no MoE layer
    cache: Cache | None = None  # the given cache with these tokens


def model_spec(config: ModelConfig) -> Spec:
    """Spec of every parameter of the model."""
    c, init = config, normal(config.init_std)
    spec = {
        "embed": Leaf((c.vocab_size, c.hidden_size), ("vocab", "embed"), init, role="embed"),
        "segments": segments_spec(c),
        "final_norm": Leaf((c.hidden_size,), (None,), ones, role="norm"),
        "head": Leaf((c.hidden_size, c.vocab_size), ("embed", "vocab"), init, role="head"),
    }
    if not c.mtp_depth:
        return spec
    return spec | {"mtp": mtp_spec(c) if c.mtp_loss_weight else specs.frozen(mtp_spec(c))}


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Random float32 parameters in the tree of `model_spec`."""
    return specs.init(key, model_spec(config))


def forward(
    params: Params,
    tokens: ArrayLike,
    config: ModelConfig,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cache: Cache | None = None,
) -> ForwardOutput:
    """Logits of every position.

    Args:
      params: the tree that `model_spec(config)` declares.
      tokens: [B, T] integers.
      positions: [B, T] integers for the rotary embedding; None: count from 0 in every document.
      segment_ids: [B, T] integers, 0 for padding. A document is a maximal run of equal non-zero ids; documents do not
        attend to each other. None: every row is one document.
      cache: from `init_cache` or an earlier call; the tokens continue its rows, one or many at a time. Each row is
        then one document, with padding (segment id 0) on either side, and MTP is not computed. Tokens past the end of
        the cache are lost without an error, so the caller must count.

    Raises ValueError if shapes do not fit or rows are longer than `config.max_length`.
    """
    if cache is not None:
        hidden_BTD, routers, cache = forward_with_cache(
            params, tokens, config, cache, positions=positions, segment_ids=segment_ids
        )
        router = routers_by_layer({"segments": routers}, dataclasses.replace(config, mtp_depth=0))
        return ForwardOutput(head_logits(params["head"], hidden_BTD), (), router, cache)
    info = make_token_info(tokens, config, positions, segment_ids)
    hidden_BTD, mtp_hidden_BTD, routers = hidden_states(params, tokens, info, config)
    return ForwardOutput(
        logits=head_logits(params["head"], hidden_BTD),
        mtp_logits=tuple(head_logits(params["head"], hidden) for hidden in mtp_hidden_BTD),
        router=routers_by_layer(routers, config),
    )


def forward_with_cache(
    params: Params,
    tokens: ArrayLike,
    config: ModelConfig,
    cache: Cache,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, Any], Cache]:
    """(hidden states for the LM head [B, T, D], routers by segment, the cache with these tokens).

    The arguments are those of `forward`. Raises ValueError if the mesh splits rows or the tokens do not fit the cache.
    """
    tokens = jnp.asarray(tokens)
    if (ranks := num_shards("tokens")) > 1:
        raise ValueError(f"a cache belongs to whole rows, and the mesh splits them {ranks} ways; set mesh.context to 1")
    if tokens.shape[1] > cache.max_length:
        raise ValueError(f"tokens are {tokens.shape}; the cache has room for {cache.max_length} tokens a row")
    live_BT = jnp.ones(tokens.shape, bool) if segment_ids is None else jnp.asarray(segment_ids) > 0
    slots_BT = slots_of(cache, live_BT)
    documents = None if segment_ids is None else live_BT.astype(jnp.int32)
    positions = jnp.where(live_BT, slots_BT, 0) if positions is None else positions
    info = make_token_info(tokens, config, positions, documents)
    places = Places(jnp.arange(tokens.shape[0])[:, None], slots_BT)
    info = info._replace(places=places, last_visible=None if cache.empty else slots_BT)
    hidden_BTD, routers, layers = _trunk(params, tokens, info, config, cache.layers)
    length = cache.length + live_BT.sum(axis=1, dtype=jnp.int32)
    return hidden_BTD, routers, cache.replace(layers=layers, length=length, empty=False)


def forward_with_pages(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    pages: Pages,
    layers: Any,
    config: ModelConfig,
    *,
    ropes: Ropes | None = None,
) -> tuple[jax.Array, dict[str, Any], Any]:
    """(hidden states for the LM head [B, T, D], routers by segment, the pool with these tokens).

    `tokens` [B, T] stand at `positions` [B, T] int32 of their sequences, in order; a negative position is padding,
    behind a row's tokens. `layers` are the arrays of a pool (`cache.pool_spec`), which `pages` points into. `ropes` are
    those of the positions, from a caller that has computed them for many calls at once.
    """
    live_BT = positions >= 0
    info = make_token_info(tokens, config, jnp.maximum(positions, 0), live_BT.astype(jnp.int32), ropes=ropes)
    rows = (tokens.shape[0], "batch")
    page_BT = per_device(_pages_of, ((rows,), (rows,)), ((rows,),))(pages.table, positions)[0]
    places = Places(jnp.where(live_BT, page_BT, PAST_END), positions % PAGE_SIZE)
    info = info._replace(places=places, last_visible=jnp.where(live_BT, positions, PAST_END), pages=pages)
    hidden_BTD, routers, layers = _trunk(params, tokens, info, config, layers)
    return hidden_BTD, routers, layers


def _pages_of(table_Bn, positions_BT):
    """The pages in which the positions lie, [B, T]; where a row's table ends, and of padding, any."""
    place_BT = jnp.clip(positions_BT // PAGE_SIZE, 0, table_Bn.shape[1] - 1)
    return (jnp.take_along_axis(table_Bn, place_BT, axis=1),)


def loss(
    params: Params,
    tokens: ArrayLike,
    labels: ArrayLike,
    config: ModelConfig,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """(next-token loss + MTP loss + router z-loss in nats per token, {sums and counts of `LossSums`, "routers"}).

    `labels` [B, T] are the unshifted tokens, -100 where no loss is wanted; this function shifts them inside documents.
    The other arguments are those of `forward`.
    """
    sums, routers = loss_sums(params, tokens, labels, config, positions=positions, segment_ids=segment_ids)
    return total_loss(sums, sums, config), {**sums._asdict(), "routers": routers}


def loss_sums(
    params: Params,
    tokens: ArrayLike,
    labels: ArrayLike,
    config: ModelConfig,
    *,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
) -> tuple[LossSums, dict[str, Any]]:
    """(LossSums, routers in the structure of the parameters); both add up over microbatches.

    With `mtp_loss_weight` 0 the MTP modules are not computed and have no sums and no routers.
    """
    config = with_weighted_mtp(config)
    info = make_token_info(tokens, config, positions, segment_ids)
    hidden_BTD, mtp_hidden_BTD, routers = hidden_states(params, tokens, info, config)
    counts = loss_counts(labels, config, segment_ids=segment_ids)
    with jax.named_scope("loss"):
        nll = []
        for by, hidden in enumerate([hidden_BTD, *mtp_hidden_BTD], start=1):
            head = jax.lax.stop_gradient(params["head"]) if by > 2 and config.mtp_detached else params["head"]
            targets = shifted_targets(labels, info.docs, by)
            nll.append(cross_entropy_sum(hidden, head, targets, config.loss_chunk))
    z_sums = [jnp.sum(router.z_sum) for router in routers_in(routers)]
    return counts._replace(main=nll[0], mtp=jnp.asarray(nll[1:]), router_z=sum(z_sums, jnp.zeros(()))), routers


def loss_counts(labels: jax.Array, config: ModelConfig, *, segment_ids: ArrayLike | None = None) -> LossSums:
    """LossSums with counts only (sums are 0). They need no parameters: a step computes them before its microbatches."""
    config, docs = with_weighted_mtp(config), None if segment_ids is None else _documents(segment_ids)
    counts = [jnp.sum(shifted_targets(labels, docs, by) != IGNORED) for by in range(1, config.mtp_predictions + 2)]
    live = jnp.asarray(labels.size) if docs is None else jnp.sum(docs > 0)
    zero = jnp.zeros(())
    return LossSums(zero, jnp.zeros(config.mtp_predictions), zero, counts[0], jnp.asarray(counts[1:]), live)


def with_weighted_mtp(config: ModelConfig) -> ModelConfig:
    """The config that losses use: without MTP if `mtp_loss_weight` is 0."""
    return config if config.mtp_loss_weight else dataclasses.replace(config, mtp_depth=0)


def total_loss(sums: LossSums, counts: LossSums, config: ModelConfig) -> jax.Array:
    """The training loss, a scalar: `weighted_total` with the weights of the config."""
    return weighted_total(sums, counts, mtp_weight=config.mtp_loss_weight, z_weight=config.z_loss_weight)


def make_token_info(
    tokens: ArrayLike,
    config: ModelConfig,
    positions: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    *,
    ropes: Ropes | None = None,
) -> TokenInfo:
    """The TokenInfo of tokens [B, T]; the arguments are those of `forward`, and `ropes` those of the positions.

    Raises ValueError if shapes do not fit.
    """
    tokens = jnp.asarray(tokens)
    for name, x in (("positions", positions), ("segment_ids", segment_ids)):
        if x is not None and jnp.shape(x) != tokens.shape:
            raise ValueError(f"{name} is {jnp.shape(x)}; expected {tokens.shape}, the shape of tokens")
    if tokens.ndim != 2 or tokens.shape[1] > config.max_length:
        raise ValueError(f"tokens are {tokens.shape}; expected [B, T] with T at most max_length {config.max_length}")
    ranks = num_shards("tokens")
    context.check_rows(tokens.shape[1], ranks)
    if ranks > 1 and segment_ids is None:
        segment_ids = jnp.ones(tokens.shape, jnp.int32)  # ranks hand on states by document number
    docs = None if segment_ids is None else _documents(segment_ids)
    if positions is None:
        positions = constrain(positions_in_documents(tokens.shape, docs), ("batch", None))
    positions = constrain(jnp.asarray(positions), ("batch", "tokens"))
    ropes = rope_tables(positions, config) if ropes is None else ropes
    split = None
    if ranks > 1:
        split = ContextSplit(docs, constrain(live_between(docs, ranks), ("batch", "tokens", None)))
        docs = constrain(docs, ("batch", "tokens"))
    return TokenInfo(
        docs=docs,
        live=jnp.ones(tokens.shape, bool) if docs is None else docs > 0,
        places=None,
        last_visible=None,
        rope=ropes.heads,
        rotation=rotation_lanes(*ropes.heads, config.head_dim) if uses_layer_kernel(tokens.shape, config) else None,
        latent_rope=ropes.latents,
        split=split,
    )


def _documents(segment_ids):
    """[B, T] int32 document numbers; every device has whole rows."""
    whole = ("batch", None)
    return constrain(document_ids(constrain(jnp.asarray(segment_ids), whole)), whole)


def positions_in_documents(shape: tuple[int, ...], docs_BT: jax.Array | None) -> jax.Array:
    """[B, T] or [1, T] int32: 0, 1, 2, … from the first token of each document."""
    row = jnp.arange(shape[1])[None]
    if docs_BT is None:
        return row
    starts = (docs_BT > 0) & (docs_BT != jnp.pad(docs_BT, ((0, 0), (1, 0)))[:, :-1])
    return row - jax.lax.cummax(jnp.where(starts, row, 0), axis=1)


def hidden_states(
    params: Params, tokens: ArrayLike, info: TokenInfo, config: ModelConfig, *, experts: ArrayLike | None = None
) -> tuple[jax.Array, list[jax.Array], dict[str, Any]]:
    """(states after the final norm [B, T, D], [the states of each MTP depth], routers): the inputs of the LM head.

    `experts` [B, T, L, k], integers of any size, fixes which experts each token goes to in the L MoE layers of the
    trunk, such as those that an engine recorded; a token with -1 chooses by itself. The weights of the experts stay the
    router's own, with their gradients. `recorded_experts.check_experts` checks the values. Raises ValueError if the
    shape does not fit.
    """
    hidden_BTD, routers, _ = _trunk(params, tokens, info, config, experts=_placed(experts, jnp.shape(tokens), config))
    routers = {"segments": routers}
    if not config.mtp_depth:
        return hidden_BTD, [], routers

    def embed(tokens_BT):
        return _embed(params, tokens_BT, config)

    outputs, routers["mtp"] = mtp_hidden(params["mtp"], embed, hidden_BTD, tokens, info, config)
    return hidden_BTD, outputs, routers


def _placed(experts, shape_BT: tuple[int, ...], config: ModelConfig):
    """Recorded experts on the devices of their tokens; None stays None."""
    if experts is None:
        return None
    expected = (*shape_BT, num_moe_layers(config), config.top_k)
    if jnp.shape(experts) != expected:
        raise ValueError(f"experts are {jnp.shape(experts)}; expected {expected}: rows, tokens, MoE layers, top_k")
    return constrain(jnp.asarray(experts), ("batch", "tokens", None, None))


def _trunk(params: Params, tokens, info: TokenInfo, config: ModelConfig, cache=None, experts=None):
    x_BTD = _embed(params, tokens, config)
    x_BTD, routers, cache = run_segments(params["segments"], x_BTD, info, config, cache, experts)
    return rms_norm(x_BTD, params["final_norm"], config.norm_eps), routers, cache


def _embed(params: Params, tokens_BT, config: ModelConfig):
    table_WD = jnp.asarray(params["embed"])  # a checkpoint may give numpy arrays
    return constrain(look_up(table_WD, jnp.asarray(tokens_BT), config.compute_dtype), ("batch", "tokens", None))


def routers_in(routers: Any) -> list[Router]:
    """Every Router of a tree."""
    return jax.tree.leaves(routers, is_leaf=lambda x: isinstance(x, Router))


def routers_by_layer(routers: dict[str, Any], config: ModelConfig) -> Router | None:
    """One Router stacked over MoE layers in order, MTP layers last; None if no layer has one."""
    by_layer = {}
    for (segment, run), numbers in layer_numbers(config).items():
        if (router := routers["segments"][segment][run]) is not None:
            for index, number in np.ndenumerate(numbers):
                by_layer[number] = jax.tree.map(lambda leaf, i=index: leaf[i], router)
    layers = [by_layer[number] for number in sorted(by_layer)]
    layers += [jax.tree.map(lambda leaf, d=d: leaf[d], routers["mtp"]) for d in range(config.mtp_predictions)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if layers else None


def chosen_experts(routers: dict[str, Any], config: ModelConfig) -> jax.Array | None:
    """[B, T, L, k] int32 experts of the trunk's MoE layers in order; None if there are none."""
    router = routers_by_layer(routers, dataclasses.replace(config, mtp_depth=0))
    return None if router is None else jnp.moveaxis(router.expert_index, 0, 2)
