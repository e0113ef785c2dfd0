"""Multi-token prediction (docs/architecture.md §9)."""

import jax
import jax.numpy as jnp

from ling_jax.config import ModelConfig
from ling_jax.model.layers import Kind, Sequence, layer, layer_spec, remat
from ling_jax.model.norm import rms_norm
from ling_jax.parallel.sharding import constrain, gathered
from ling_jax.spec import Leaf, Params, Spec, normal, ones, stack


def mtp_spec(config: ModelConfig) -> Spec:
    """One module a depth, stacked [depth, …]: norms, the projection of [embedding ; hidden], a softmax-MoE layer."""
    c, norm = config, Leaf((config.hidden_size,), (None,), ones)
    module = {
        "embed_norm": norm,
        "hidden_norm": norm,
        "proj": proj_leaf(c),
        "layer": layer_spec(c, Kind(c.softmax, "moe")),
        "final_norm": norm,
    }
    return stack(module, (c.mtp_depth,), (None,))


def proj_leaf(config: ModelConfig) -> Leaf:
    return Leaf((2, config.hidden_size, config.hidden_size), (None, "embed", None), normal(config.init_std))


def shift_tokens(tokens_BT, docs_BT, by: int):
    """tokens[t + by] where that is of t's document, else 0."""
    return shift_in_documents(tokens_BT, docs_BT, by, fill=0)


def shift_in_documents(x_BT, docs_BT, by: int, fill: int):
    """x[t + by] at t where t + by is within the row and of t's document (None: rows are documents), else `fill`."""

    def ahead(values_BT, behind: int):
        return jnp.pad(values_BT, ((0, 0), (0, by)), constant_values=behind)[:, by:]

    x_BT = constrain(jnp.asarray(x_BT), ("batch", None))  # whole rows of integers: neighbours may be on other ranks
    if docs_BT is None:
        return constrain(ahead(x_BT, fill), ("batch", "tokens"))
    docs_BT = constrain(jnp.asarray(docs_BT), ("batch", None))
    within_BT = (ahead(docs_BT, 0) == docs_BT) & (docs_BT > 0)
    return constrain(jnp.where(within_BT, ahead(x_BT, fill), fill), ("batch", "tokens"))


def module_input(params: Params, embedded_BTD, hidden_BTD, config: ModelConfig):
    """What a depth's layer reads: the projection of [normed embedding ; normed hidden state before]."""
    embedded_BTD = rms_norm(embedded_BTD, params["embed_norm"], config.norm_eps)
    hidden_BTD = rms_norm(hidden_BTD, params["hidden_norm"], config.norm_eps)
    proj = gathered({"proj": params["proj"]}, {"proj": proj_leaf(config)}, hidden_BTD.dtype)["proj"]
    proj = proj.astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DM->BTM", embedded_BTD, proj[0]) + jnp.einsum("BTD,DM->BTM", hidden_BTD, proj[1])


def mtp_hidden(params: Params, embed, hidden_BTD, tokens_BT, sequence: Sequence, config: ModelConfig):
    """([hidden [B, T, D] of each depth, ready for the LM head], Router stacked [depth, …]).

    `embed` looks tokens up; depth d reads token t + d + 1 and predicts t + d + 2. The first hidden state is the
    trunk's after its final norm. With `mtp_detached` depths behind the first see the trunk and the embedding as
    constants: what the first depth hands them is made once more, from a trunk that gradients do not reach.
    """

    def module(params, hidden_BTD, embedded_BTD):
        z_BTD = module_input(params, embedded_BTD, hidden_BTD, config)
        z_BTD, router, _ = layer(params["layer"], z_BTD, None, None, sequence, config, Kind(config.softmax, "moe"))
        return rms_norm(z_BTD, params["final_norm"], config.norm_eps), router

    def run(depth: int, hidden_BTD, *, constant: bool):
        of_depth = jax.tree.map(lambda leaf: leaf[min(depth, config.mtp_depth - 1)], params)
        embedded_BTD = embed(shift_tokens(tokens_BT, sequence.docs, depth + 1))
        if constant:
            embedded_BTD = jax.lax.stop_gradient(embedded_BTD)
        with jax.named_scope(f"mtp_{depth}"):
            return remat(module, config, scanned=False)(of_depth, hidden_BTD, embedded_BTD)

    trunk_BTD, outputs, routers = hidden_BTD, [], []
    for depth in range(config.mtp_predictions):
        if depth == 1 and config.mtp_detached:
            hidden_BTD, _ = run(0, jax.lax.stop_gradient(trunk_BTD), constant=True)
        hidden_BTD, router = run(depth, hidden_BTD, constant=depth > 0 and config.mtp_detached)
        outputs.append(hidden_BTD)
        routers.append(router)
    return outputs, jax.tree.map(lambda *layers: jnp.stack(layers), *routers)
