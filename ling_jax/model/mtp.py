"""Multi-token prediction (docs/architecture.md §9)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ling_jax.config import ModelConfig
from ling_jax.model.layers import layer, layer_spec, mtp_layer_kind, remat
from ling_jax.model.moe import Router
from ling_jax.model.norm import rms_norm
from ling_jax.model.token_info import TokenInfo
from ling_jax.parallel.sharding import constrain, gather_weights
from ling_jax.spec import Leaf, Params, Spec, normal, ones, stack


def mtp_spec(config: ModelConfig) -> Spec:
    """Spec of the MTP modules, stacked [depth, …]: norms, projection of [embedding ; hidden], one layer."""
    c, norm = config, Leaf((config.hidden_size,), (None,), ones, role="norm")
    module = {
        "embed_norm": norm,
        "hidden_norm": norm,
        "proj": proj_leaf(c),
        "layer": layer_spec(c, mtp_layer_kind(c)),
        "final_norm": norm,
    }
    return stack(module, (c.mtp_depth,), (None,))


def proj_leaf(config: ModelConfig) -> Leaf:
    """The projection [2, D, D]: embedding half first, then the hidden state's."""
    return Leaf((2, config.hidden_size, config.hidden_size), (None, "embed", None), normal(config.init_std))


def shift_tokens(tokens_BT: ArrayLike, docs_BT: jax.Array | None, by: int) -> jax.Array:
    """[B, T]: tokens[t + by] where t + by lies in the document of t, else 0."""
    return shift_in_documents(tokens_BT, docs_BT, by, fill=0)


def shift_in_documents(x_BT: ArrayLike, docs_BT: ArrayLike | None, by: int, fill: int) -> jax.Array:
    """[B, T]: x[t + by] where t + by lies in the row and document of t, else `fill`. Without docs a row is one."""

    def ahead(values_BT, behind: int):
        return jnp.pad(values_BT, ((0, 0), (0, by)), constant_values=behind)[:, by:]

    x_BT = constrain(jnp.asarray(x_BT), ("batch", None))  # whole rows: a token's neighbour may be on another rank
    if docs_BT is None:
        return constrain(ahead(x_BT, fill), ("batch", "tokens"))
    docs_BT = constrain(jnp.asarray(docs_BT), ("batch", None))
    within_BT = (ahead(docs_BT, 0) == docs_BT) & (docs_BT > 0)
    return constrain(jnp.where(within_BT, ahead(x_BT, fill), fill), ("batch", "tokens"))


def module_input(params: Params, embedded_BTD: jax.Array, hidden_BTD: jax.Array, config: ModelConfig) -> jax.Array:
    """Input of a module's layer, [B, T, D]: the projection of [normed embedding ; normed hidden state]."""
    embedded_BTD = rms_norm(embedded_BTD, params["embed_norm"], config.norm_eps)
    hidden_BTD = rms_norm(hidden_BTD, params["hidden_norm"], config.norm_eps)
    proj = gather_weights({"proj": params["proj"]}, {"proj": proj_leaf(config)}, hidden_BTD.dtype)["proj"]
    proj = proj.astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DM->BTM", embedded_BTD, proj[0]) + jnp.einsum("BTD,DM->BTM", hidden_BTD, proj[1])


def mtp_hidden(
    params: Params,
    embed: Callable[[jax.Array], jax.Array],
    hidden_BTD: jax.Array,
    tokens_BT: ArrayLike,
    info: TokenInfo,
    config: ModelConfig,
) -> tuple[list[jax.Array], Router]:
    """([hidden states [B, T, D] of each depth, normed for the LM head], Router stacked [depth, …]).

    `hidden_BTD` are the trunk's states after its final norm; `embed` maps tokens [B, T] to embeddings. Depth d reads
    token t + d + 1 and predicts token t + d + 2. With `mtp_detached`, depths after the first treat trunk and embedding
    as constants; depth 0 then runs once more on the constant trunk to give them their input.
    """

    def module(params, hidden_BTD, embedded_BTD):
        z_BTD = module_input(params, embedded_BTD, hidden_BTD, config)
        z_BTD, router, _ = layer(params["layer"], z_BTD, {}, None, info, config, mtp_layer_kind(config))
        return rms_norm(z_BTD, params["final_norm"], config.norm_eps), router

    def run(depth: int, hidden_BTD, *, constant: bool):
        of_depth = jax.tree.map(lambda leaf: leaf[min(depth, config.mtp_depth - 1)], params)
        embedded_BTD = embed(shift_tokens(tokens_BT, info.docs, depth + 1))
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
