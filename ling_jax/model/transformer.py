"""The whole model: embedding, segments, head; forward and loss (docs/architecture.md)."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.model.cache import Cache, slots_of
from ling_jax.model.layers import Sequence, Split, layer_numbers, run_segments, segments_spec
from ling_jax.model.lightning import uses_kernels
from ling_jax.model.loss import IGNORED, LossSums, cross_entropy_sum, head_logits, shifted_targets, weighted_total
from ling_jax.model.moe import Router
from ling_jax.model.mtp import mtp_hidden, mtp_spec
from ling_jax.model.norm import rms_norm
from ling_jax.model.rope import rope_table
from ling_jax.parallel import context
from ling_jax.parallel.embedding import look_up
from ling_jax.parallel.sharding import constrain, ways
from ling_jax.spec import Leaf, Params, Spec, normal, ones
from pallas_kernels.lightning_attention import document_ids, rotation_lanes
from pallas_kernels.lightning_attention.context import live_between


@flax.struct.dataclass
class ForwardOutput:
    logits: jax.Array  # [B, T, W], at least float32
    mtp_logits: tuple[jax.Array, ...]  # one [B, T, W] a depth: of the tokens t + 2, t + 3, …
    router: Router | None  # stacked over MoE layers in order, MTP layers last
    cache: Cache | None = None  # the given one with these tokens


def model_spec(config: ModelConfig) -> Spec:
    """Every parameter of the model, declared once."""
    c, init = config, normal(config.init_std)
    spec = {
        "embed": Leaf((c.vocab_size, c.hidden_size), ("vocab", "embed"), init),
        "segments": segments_spec(c),
        "final_norm": Leaf((c.hidden_size,), (None,), ones),
        "head": Leaf((c.hidden_size, c.vocab_size), ("embed", "vocab"), init),
    }
    if not c.mtp_depth:
        return spec
    return spec | {"mtp": mtp_spec(c) if c.mtp_loss_weight else specs.frozen(mtp_spec(c))}


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Random float32 parameters."""
    return specs.init(key, model_spec(config))


def forward(
    params: Params, tokens, config: ModelConfig, *, positions=None, segment_ids=None, cache: Cache | None = None
) -> ForwardOutput:
    """Logits of every position.

    Args:
      params: as `model_spec(config)` declares them.
      tokens: [B, T] integers.
      positions: [B, T] integers for the rotary embedding; None counts from 0 in every document.
      segment_ids: [B, T] integers, 0 = padding; a document is a maximal run of equal non-zero ids, and none sees
        another. None: every row is one document.
      cache: of `init_cache`, or of an earlier call: the tokens go on from what it holds, one or many at a time. Each
        row is then one document, whose padding (segment id 0) may stand left or right; MTP is left out. What passes
        the cache's end is lost: the caller counts.

    Raises ValueError for shapes that do not fit or rows longer than `config.max_length`.
    """
    if cache is not None:
        hidden_BTD, routers, cache = read(params, tokens, config, cache, positions=positions, segment_ids=segment_ids)
        router = routers_by_layer({"segments": routers}, dataclasses.replace(config, mtp_depth=0))
        return ForwardOutput(head_logits(params["head"], hidden_BTD), (), router, cache)
    sequence = make_sequence(tokens, config, positions, segment_ids)
    hidden_BTD, mtp_hidden_BTD, routers = hidden_states(params, tokens, sequence, config)
    return ForwardOutput(
        logits=head_logits(params["head"], hidden_BTD),
        mtp_logits=tuple(head_logits(params["head"], hidden) for hidden in mtp_hidden_BTD),
        router=routers_by_layer(routers, config),
    )


def read(params: Params, tokens, config: ModelConfig, cache: Cache, *, positions=None, segment_ids=None):
    """(hidden states that the LM head takes [B, T, D], routers by segment, the cache with these tokens)."""
    tokens = jnp.asarray(tokens)
    if (ranks := ways("tokens")) > 1:
        raise ValueError(f"a cache belongs to whole rows, and the mesh splits them {ranks} ways; set mesh.context to 1")
    if tokens.shape[1] > cache.room:
        raise ValueError(f"tokens are {tokens.shape}; the cache has room for {cache.room} tokens a row")
    live_BT = jnp.ones(tokens.shape, bool) if segment_ids is None else jnp.asarray(segment_ids) > 0
    slots_BT = slots_of(cache, live_BT)
    documents = None if segment_ids is None else live_BT.astype(jnp.int32)
    positions = jnp.where(live_BT, slots_BT, 0) if positions is None else positions
    sequence = make_sequence(tokens, config, positions, documents)
    sequence = sequence._replace(slots=slots_BT, sees=None if cache.empty else slots_BT)
    hidden_BTD, routers, layers = _trunk(params, tokens, sequence, config, cache.layers)
    length = cache.length + live_BT.sum(axis=1, dtype=jnp.int32)
    return hidden_BTD, routers, cache.replace(layers=layers, length=length, empty=False)


def loss(
    params: Params, tokens, labels, config: ModelConfig, *, positions=None, segment_ids=None
) -> tuple[jax.Array, dict[str, Any]]:
    """(mean next-token loss + MTP + router z-loss, metrics as sums and counts).

    `labels` [B, T] are the tokens, -100 where no loss is wanted, unshifted; the loss shifts them inside documents.
    The rest is as in `forward`.
    """
    sums, routers = loss_sums(params, tokens, labels, config, positions=positions, segment_ids=segment_ids)
    return total_loss(sums, sums, config), {**sums._asdict(), "routers": routers}


def loss_sums(params: Params, tokens, labels, config: ModelConfig, *, positions=None, segment_ids=None):
    """(LossSums, routers as a tree like the parameters'): what adds up over microbatches.

    MTP modules are not computed where their loss has no weight: they have no sums, and no routers.
    """
    config = with_weighted_mtp(config)
    sequence = make_sequence(tokens, config, positions, segment_ids)
    hidden_BTD, mtp_hidden_BTD, routers = hidden_states(params, tokens, sequence, config)
    counts = loss_counts(labels, config, segment_ids=segment_ids)
    with jax.named_scope("loss"):
        nll = []
        for by, hidden in enumerate([hidden_BTD, *mtp_hidden_BTD], start=1):
            head = jax.lax.stop_gradient(params["head"]) if by > 2 and config.mtp_detached else params["head"]
            targets = shifted_targets(labels, sequence.docs, by)
            nll.append(cross_entropy_sum(hidden, head, targets, config.loss_chunk))
    z_sums = [jnp.sum(router.z_sum) for router in routers_in(routers)]
    return counts._replace(main=nll[0], mtp=jnp.asarray(nll[1:]), router_z=sum(z_sums, jnp.zeros(()))), routers


def loss_counts(labels, config: ModelConfig, *, segment_ids=None) -> LossSums:
    """The counts alone (sums are 0): they need no parameters, so a step knows them before its microbatches run."""
    config, docs = with_weighted_mtp(config), None if segment_ids is None else _documents(segment_ids)
    counts = [jnp.sum(shifted_targets(labels, docs, by) != IGNORED) for by in range(1, config.mtp_predictions + 2)]
    live = jnp.asarray(labels.size) if docs is None else jnp.sum(docs > 0)
    zero = jnp.zeros(())
    return LossSums(zero, jnp.zeros(config.mtp_predictions), zero, counts[0], jnp.asarray(counts[1:]), live)


def with_weighted_mtp(config: ModelConfig) -> ModelConfig:
    """The config of what a loss computes: without MTP where `mtp_loss_weight` is 0."""
    return config if config.mtp_loss_weight else dataclasses.replace(config, mtp_depth=0)


def total_loss(sums: LossSums, counts: LossSums, config: ModelConfig):
    """The training loss of these sums over these counts."""
    return weighted_total(sums, counts, mtp_weight=config.mtp_loss_weight, z_weight=config.z_loss_weight)


def make_sequence(tokens, config: ModelConfig, positions=None, segment_ids=None) -> Sequence:
    """Documents, rotary tables and live tokens of a batch; shapes are checked here."""
    tokens = jnp.asarray(tokens)
    for name, x in (("positions", positions), ("segment_ids", segment_ids)):
        if x is not None and jnp.shape(x) != tokens.shape:
            raise ValueError(f"{name} is {jnp.shape(x)}; expected {tokens.shape}, the shape of tokens")
    if tokens.ndim != 2 or tokens.shape[1] > config.max_length:
        raise ValueError(f"tokens are {tokens.shape}; expected [B, T] with T at most max_length {config.max_length}")
    ranks = ways("tokens")
    context.check_rows(tokens.shape[1], ranks)
    if ranks > 1 and segment_ids is None:
        segment_ids = jnp.ones(tokens.shape, jnp.int32)  # what a rank hands on is a matter of documents
    docs = None if segment_ids is None else _documents(segment_ids)
    if positions is None:
        positions = constrain(positions_in_documents(tokens.shape, docs), ("batch", None))
    positions = constrain(jnp.asarray(positions), ("batch", "tokens"))
    rope = rope_table(positions, config.rotary_dim, config)
    split = None
    if ranks > 1:
        split = Split(docs, constrain(live_between(docs, ranks), ("batch", "tokens", None)))
        docs = constrain(docs, ("batch", "tokens"))
    return Sequence(
        docs=docs,
        live=jnp.ones(tokens.shape, bool) if docs is None else docs > 0,
        slots=None,
        sees=None,
        rope=rope,
        rotation=rotation_lanes(*rope, config.head_dim) if uses_kernels(tokens.shape, config) else None,
        latent_rope=rope_table(positions, config.rope_dim, config),
        split=split,
    )


def _documents(segment_ids):
    """[B, T] document numbers, of whole rows on every device."""
    whole = ("batch", None)
    return constrain(document_ids(constrain(jnp.asarray(segment_ids), whole)), whole)


def positions_in_documents(shape, docs_BT):
    """[B, T] or [1, T]: 0, 1, 2, … from each document's first token."""
    row = jnp.arange(shape[1])[None]
    if docs_BT is None:
        return row
    starts = (docs_BT > 0) & (docs_BT != jnp.pad(docs_BT, ((0, 0), (1, 0)))[:, :-1])
    return row - jax.lax.cummax(jnp.where(starts, row, 0), axis=1)


def hidden_states(params: Params, tokens, sequence: Sequence, config: ModelConfig):
    """(hidden after the final norm [B, T, D], that of each MTP depth, routers): all that the LM head reads."""

    hidden_BTD, routers, _ = _trunk(params, tokens, sequence, config)
    routers = {"segments": routers}
    if not config.mtp_depth:
        return hidden_BTD, [], routers
    embed = lambda tokens_BT: _embed(params, tokens_BT, config)  # noqa: E731
    outputs, routers["mtp"] = mtp_hidden(params["mtp"], embed, hidden_BTD, tokens, sequence, config)
    return hidden_BTD, outputs, routers


def _trunk(params: Params, tokens, sequence: Sequence, config: ModelConfig, cache=None):
    x_BTD, routers, cache = run_segments(params["segments"], _embed(params, tokens, config), sequence, config, cache)
    return rms_norm(x_BTD, params["final_norm"], config.norm_eps), routers, cache


def _embed(params: Params, tokens_BT, config: ModelConfig):
    table_WD = jnp.asarray(params["embed"])  # of numpy where it comes from a file
    return constrain(look_up(table_WD, jnp.asarray(tokens_BT), config.compute_dtype), ("batch", "tokens", None))


def routers_in(routers) -> list[Router]:
    return jax.tree.leaves(routers, is_leaf=lambda x: isinstance(x, Router))


def routers_by_layer(routers, config: ModelConfig) -> Router | None:
    """One Router stacked over MoE layers in order, MTP layers last."""
    by_layer = {}
    for (segment, run), numbers in layer_numbers(config).items():
        if (router := routers["segments"][segment][run]) is not None:
            for index, number in np.ndenumerate(numbers):
                by_layer[number] = jax.tree.map(lambda leaf, i=index: leaf[i], router)
    layers = [by_layer[number] for number in sorted(by_layer)]
    layers += [jax.tree.map(lambda leaf, d=d: leaf[d], routers["mtp"]) for d in range(config.mtp_predictions)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if layers else None
