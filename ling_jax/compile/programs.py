"""The programs of a run, lowered for a mesh: the train step, prefill, a decode step."""

import dataclasses
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import serialize_executable
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax import model
from ling_jax import spec as specs
from ling_jax.compile.report import DoesNotFit, check_fits, compile_program, report, state_bytes
from ling_jax.compile.topology import Chip, describe
from ling_jax.config import ModelConfig
from ling_jax.model.cache import Cache, cache_spec
from ling_jax.model.loss import head_logits
from ling_jax.parallel.sharding import RULES, batch_sharding, make_mesh, shardings
from ling_jax.train.config import PretrainConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import lower_train_step
from ling_jax.train.state import abstract_state


def compile_and_report(
    config: PretrainConfig, topology: str, program: str = "train", *, rows: int = 0, save: str = ""
) -> dict[str, Any]:
    """The report (`report.report`) of a program of the config: "train", "prefill" or "decode" of `rows` rows.

    Raises ValueError where the topology does not exist, the mesh does not fill it or the program does not fit.
    """
    devices, chip = describe(topology)
    mesh, length = make_mesh(dataclasses.asdict(config.mesh), devices), config.data.sequence_length
    rows = rows or math.prod(mesh.shape[axis] for axis in RULES["batch"])
    if program == "train":
        check_state_fits(config, mesh, chip)
        lowered, tokens = lower_train(config, mesh), config.train.batch_size * length
    elif program == "prefill":
        lowered, tokens = lower_prefill(config.model, rows, length, mesh), rows * length
    else:
        lowered, tokens = lower_decode(config.model, rows, length, mesh), rows
    compiled, seconds = compile_program(lowered)
    fields = report(
        compiled, seconds, config.model, mesh, chip, tokens=tokens, length=length, trains=program == "train"
    )
    fields |= {"topology": topology, "program": program}
    if program == "train":
        fields |= {"microbatches": config.train.microbatches, "batch_size": config.train.batch_size}
    check_fits(fields)
    if save:
        payload = serialize_executable.serialize(compiled)
        epath.Path(save).write_bytes(pickle.dumps(payload))
    return fields


def check_state_fits(config: PretrainConfig, mesh, chip: Chip) -> None:
    """Before minutes of compilation: parameters and moments alone have to fit."""
    needed = state_bytes(abstract_state(config.model, make_optimizer(config.optimizer, config.train.steps), mesh))
    if needed > chip.hbm_bytes:
        ways = math.ceil(needed / chip.hbm_bytes)
        over = (needed - chip.hbm_bytes) / 1e9
        raise DoesNotFit(
            f"parameters and optimiser take {needed / 1e9:.1f} GB of every device, {over:.1f} GB too many: split "
            f"them {ways} times further (mesh.fsdp or mesh.expert {ways} times as large), on more devices if need be"
        )


def lower_train(config: PretrainConfig, mesh):
    """The step of `launch.pretrain`: microbatches, all losses, AdamW; its state is used up."""
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract = abstract_state(config.model, optimizer, mesh)
    return lower_train_step(config.model, config.train, config.data.sequence_length, optimizer, abstract, mesh)


def lower_prefill(config: ModelConfig, rows: int, length: int, mesh):
    """(logits of the last token [B, W], the cache): `length` tokens into an empty cache."""
    return _lower_read(config, _abstract_cache(config, rows, length, mesh, empty=True), length, mesh)


def lower_decode(config: ModelConfig, rows: int, length: int, mesh):
    """The same for one token a row, where the cache has room for `length`; the cache given to it is used up."""
    return _lower_read(config, _abstract_cache(config, rows, length, mesh, empty=False), 1, mesh)


def _lower_read(config: ModelConfig, cache: Cache, tokens: int, mesh):
    def read(params, tokens_BT, cache):
        hidden_BTD, _, cache = model.read(params, tokens_BT, config, cache)
        return head_logits(params["head"], hidden_BTD[:, -1:]), cache

    rows = cache.length.shape[0]
    tokens_BT = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda leaf: leaf.sharding, cache)
        return jax.jit(read, donate_argnums=2, out_shardings=(None, placed)).lower(
            _abstract_params(config, mesh), tokens_BT, cache
        )


def _abstract_params(config: ModelConfig, mesh):
    """Weights of generation: in the compute dtype, but what is computed in float32."""
    spec = model.model_spec(config)

    def leaf(path, leaf, sharding):
        name = specs.path_name(path)
        wide = name == "head" or name.endswith(("router", "bias"))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if wide else config.compute_dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(
        leaf, spec, shardings(spec, mesh), is_leaf=lambda x: isinstance(x, specs.Leaf)
    )


def _abstract_cache(config: ModelConfig, rows: int, room: int, mesh, *, empty: bool) -> Cache:
    spec = cache_spec(config, rows, room, jnp.dtype(config.compute_dtype))
    layers = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        specs.abstract(spec),
        shardings(spec, mesh),
    )
    length = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(RULES["batch"])))
    return Cache(layers=layers, length=length, room=room, empty=empty)
