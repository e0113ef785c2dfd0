"""A forward pass over samples with one layer in memory at a time, which exposes the inputs of every mixer."""

import functools
import gc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ling_jax.checkpoint.parts import Reader
from ling_jax.checkpoint.relay import Relay
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


def kind_of(config: ModelConfig, number: int) -> LayerKind:
    """The kind of a layer; MTP depth d is layer num_layers + d."""
    return layer_kind(config, number) if number < config.num_layers else mtp_layer_kind(config)


def layerwise_forward(
    reader: Reader, batches: Sequence[Batch], relay: Relay | None = None
) -> Iterator[LayerActivations]:
    """Yields every layer in order, MTP depths last, with the inputs that the unconverted model gives its mixer.

    With a `relay` between several processes each yields its own layers. A process reads no other layers, and holds one
    at a time; it has sent the outputs of a layer when it yields it.
    """
    relay = relay or Relay()
    for number in relay.own_layers(reader.config.num_layers + reader.config.mtp_depth):
        yield _activations(reader, number, batches, relay)
        gc.collect(0)  # JAX frees zero-copy arrays at any collection


def _activations(reader: Reader, number: int, batches: Sequence[Batch], relay: Relay) -> LayerActivations:
    """A layer with the inputs of its mixer; its outputs go to the next layer."""
    config, kind = reader.config, kind_of(reader.config, number)
    embedded_rows = _embedded_rows(reader, batches, number)  # before the layer, so that memory holds one of them
    params = reader.layer(number)
    inner, constants, inputs = params.get("layer", params), layer_constants(config, kind, number), []
    norm_D = _norm_after(reader, number, params)
    for row, batch in enumerate(batches):
        x_BTD = relay.receive(number, row) if number else embedded_rows[row]
        if number >= config.num_layers:
            x_BTD = mtp_input(params, embedded_rows[row], x_BTD, config)
        inputs.append(normed(inner["mixer_norm"], x_BTD, config))
        if number + 1 < config.num_layers + config.mtp_depth:
            y_BTD = run_layer(inner, x_BTD, constants, batch, config, kind)
            relay.send(number + 1, row, y_BTD if norm_D is None else normed(norm_D, y_BTD, config))
    return LayerActivations(number, kind, params, jax.block_until_ready(inputs))


def _embedded_rows(reader: Reader, batches: Sequence[Batch], number: int) -> np.ndarray | None:
    """The embeddings that a layer reads, [batches, B, T, D]: the first layer and MTP depths do."""
    config = reader.config
    if 0 < number < config.num_layers:
        return None
    ahead = number - config.num_layers + 1
    tokens = [shifted_tokens(batch, ahead, config) if number else batch["tokens"] for batch in batches]
    return embedded(reader, np.stack(tokens), config)


def _norm_after(reader: Reader, number: int, params: Params) -> Any:
    """The weight of the norm between a layer's output and the MTP module behind it; None within the trunk."""
    if number >= reader.config.num_layers:
        return params["final_norm"]
    is_last = number + 1 == reader.config.num_layers
    return reader.top("final_norm") if is_last and reader.config.mtp_depth else None


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
