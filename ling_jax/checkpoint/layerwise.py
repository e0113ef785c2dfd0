"""A forward pass over samples with one layer in memory at a time, which exposes the inputs of every mixer."""

import functools
import gc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.checkpoint.parts import Reader
from ling_jax.config import ModelConfig
from ling_jax.data import Batch
from ling_jax.model.layers import MIXERS, LayerKind, layer, layer_constants, layer_kind, mtp_layer_kind
from ling_jax.model.mtp import module_input, shift_tokens
from ling_jax.model.norm import rms_norm
from ling_jax.model.transformer import make_token_info
from ling_jax.spec import Params


class LayerActivations(NamedTuple):
    """One layer with its inputs. MTP depth d is layer num_layers + d; its params contain the module's layer."""

    number: int
    kind: LayerKind
    params: Params  # all parameters of the layer, on the host
    inputs: list[Any]  # normed input of the mixer for each batch, [B, T, D]

    @property
    def mixer(self) -> Params:
        """The mixer's parameters."""
        return (self.params.get("layer") or self.params)["mixer"]

    def with_mixer(self, mixer: Params) -> Params:
        """The layer's parameters with another mixer."""
        if "layer" in self.params:
            return self.params | {"layer": self.params["layer"] | {"mixer": mixer}}
        return self.params | {"mixer": mixer}


def layerwise_forward(reader: Reader, batches: Sequence[Batch]) -> Iterator[LayerActivations]:
    """Yields every layer in order, MTP depths last, with the inputs that the unconverted model gives its mixer."""
    config = reader.config
    x, kind = list(embedded(reader, np.stack([batch["tokens"] for batch in batches]), config)), None
    for number in range(config.num_layers):
        params, kind = reader.layer(number), layer_kind(config, number)
        yield LayerActivations(number, kind, params, [normed(params["mixer_norm"], x_BTD, config) for x_BTD in x])
        x = _through(params, x, number, batches, config, kind)
        del params  # free it before the next layer is read
        gc.collect(0)  # JAX frees zero-copy arrays at any collection
    if not config.mtp_depth:
        return
    hidden, kind = [normed(reader.top("final_norm"), x_BTD, config) for x_BTD in x], mtp_layer_kind(config)
    for depth in range(config.mtp_depth):
        params, x = reader.layer(config.num_layers + depth), []
        for hidden_BTD, rows in zip(hidden, batches, strict=True):
            embedded_BTD = embedded(reader, shifted_tokens(rows, depth + 1, config), config)
            x.append(mtp_input(params, embedded_BTD, hidden_BTD, config))
        inputs = [normed(params["layer"]["mixer_norm"], x_BTD, config) for x_BTD in x]
        yield LayerActivations(config.num_layers + depth, kind, params, inputs)
        x = _through(params["layer"], x, config.num_layers + depth, batches, config, kind)
        hidden = [normed(params["final_norm"], x_BTD, config) for x_BTD in x]
        del params
        gc.collect(0)


def mixer_outputs(
    mixer: Params, activations: LayerActivations, batches: Sequence[Batch], config: ModelConfig, kind: LayerKind
) -> np.ndarray:
    """The outputs of a mixer of this config and kind on the layer's inputs, at live tokens: [N, D] float64."""
    constants, made = layer_constants(config, kind, activations.number), []
    for x_BTD, rows in zip(activations.inputs, batches, strict=True):
        y_BTD = _mixed(mixer | constants, x_BTD, rows, config, kind.mixer)
        made.append(np.asarray(y_BTD, np.float64)[rows["segment_ids"] > 0])
    return np.concatenate(made)


def embedded(reader: Reader, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The embeddings […, D] of tokens […]; memory holds the table during the call only."""
    return np.asarray(reader.top("embed")[np.asarray(tokens)], config.compute_dtype)


def _through(params, x, number: int, batches: Sequence[Batch], config: ModelConfig, kind: LayerKind) -> list[Any]:
    """The outputs of a layer for all batches, computed on return, so that the layer can be freed."""
    constants = layer_constants(config, kind, number)
    outs = [run_layer(params, x_BTD, constants, rows, config, kind) for x_BTD, rows in zip(x, batches, strict=True)]
    return jax.block_until_ready(outs)


def _sequence(rows: Batch, config: ModelConfig):
    return make_token_info(rows["tokens"], config, rows["positions"], rows["segment_ids"])


@functools.partial(jax.jit, static_argnums=2)
def normed(weight_D: jax.Array, x_BTD: jax.Array, config: ModelConfig) -> jax.Array:
    """x [B, T, D] after the RMS norm with a weight [D]."""
    return rms_norm(x_BTD, weight_D, config.norm_eps)


@functools.partial(jax.jit, static_argnums=(4, 5))
def run_layer(
    params: Params,
    x_BTD: jax.Array,
    constants: Params,
    rows: Batch,
    config: ModelConfig,
    kind: LayerKind,
) -> jax.Array:
    """The output [B, T, D] of a layer with these constants (`layer_constants`)."""
    return layer(params, x_BTD, constants, None, _sequence(rows, config), config, kind)[0]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mixed(params, x_BTD, rows: Batch, config: ModelConfig, mixer: str):
    return MIXERS[mixer].forward(params, x_BTD, _sequence(rows, config), None, config)[0]


@functools.partial(jax.jit, static_argnums=3)
def mtp_input(params: Params, embedded_BTD: jax.Array, hidden_BTD: jax.Array, config: ModelConfig) -> jax.Array:
    """The input [B, T, D] of an MTP layer, from embeddings and hidden states [B, T, D] (`mtp.module_input`)."""
    return module_input(params, embedded_BTD, hidden_BTD, config)


@functools.partial(jax.jit, static_argnums=(1, 2))
def shifted_tokens(rows: Batch, by: int, config: ModelConfig) -> jax.Array:
    """The tokens [B, T] that follow those of the rows by `by` positions (`mtp.shift_tokens`)."""
    return shift_tokens(rows["tokens"], _sequence(rows, config).docs, by)
