"""The programs of a run lowered for a mesh: train step, prefill, decode step."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from ling_jax import model
from ling_jax.compile.report import Compiled, compile_program, report
from ling_jax.compile.topology import describe
from ling_jax.config import ModelConfig
from ling_jax.engine.device import abstract_weights
from ling_jax.files import replacing
from ling_jax.model.cache import Cache, cache_spec
from ling_jax.model.flops import flops_per_token, frozen_flops_per_token, mtp_flops_per_token, read_flops_per_row
from ling_jax.model.loss import head_logits
from ling_jax.parallel.exchange import compiler_options
from ling_jax.parallel.sharding import RULES, abstract_arrays, batch_sharding, make_mesh, num_shards
from ling_jax.train.config import PretrainConfig
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import lower_train_step
from ling_jax.train.state import abstract_state, state_bytes
from pallas_kernels.chips import Chip


class Program(NamedTuple):
    """A program that can be lowered."""

    lower: Callable[[], Any]
    argument_bytes: int  # on one device
    tokens: int  # of one run, on all devices
    length: int  # of a row, or of a cache
    model_flops: float
    mtp_flops: float = 0.0  # of them, for multi-token prediction
    rows: Mapping[str, int] = {}  # of the program, by name: what `misfit` suggests to lower


def compile_and_report(
    config: PretrainConfig,
    topology: str,
    program: str = "train",
    *,
    trainable: Any = None,
    slices: int = 1,
    rows: int = 0,
    save: str = "",
) -> dict[str, Any]:
    """Compiles a program of the config and reports it (`report.report`): "train", "prefill" or "decode" of `rows` rows.

    `trainable` is a tree of bools if the step trains a part of the parameters. `save` is a path for the serialised
    executable. If the program does not fit, the report's `problem` says by how much and suggests the smallest change.
    Raises ValueError if the topology does not exist or the mesh does not fill it.
    """
    devices, chip = describe(topology, slices)
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    if program == "train":
        wanted = _train_program(config, mesh, trainable)
    else:
        wanted = _cache_program(config, mesh, rows or num_shards("batch", mesh), program)
    fields = compile_on(mesh, chip, wanted, config.model, save=save)
    return fields | {"topology": topology, "slices": slices, "program": program}


def compile_on(
    mesh: jax.sharding.Mesh, chip: Chip, program: Program, model: ModelConfig, *, save: str = ""
) -> dict[str, Any]:
    """The report of a program of this model on a mesh of absent devices; `save` as in `compile_and_report`."""
    if program.argument_bytes > chip.hbm_bytes:  # no need to compile
        compiled = Compiled(None, 0.0, program.argument_bytes)
    else:
        compiled = compile_program(program.lower())
    fields = report(
        compiled,
        model,
        mesh,
        chip,
        tokens=program.tokens,
        length=program.length,
        model_flops=program.model_flops,
        mtp_flops=program.mtp_flops,
    )
    if save and compiled.executable is not None:
        with replacing(save) as file:
            pickle.dump(serialize_executable.serialize(compiled.executable), file)
    fields |= {"argument_bytes": program.argument_bytes, **program.rows}
    return fields | {"problem": "" if fields["fits"] else misfit(fields)}


def misfit(fields: dict[str, Any]) -> str:
    """A message: by how much a program does not fit, and the smallest change that helps; estimates say "about"."""
    needed, has, arguments = fields["hbm_peak_bytes"], fields["hbm_bytes"], fields["argument_bytes"]
    reads = "rows" in fields
    over = f"{needed / 1e9:.1f} GB of every device, {(needed - has) / 1e9:.1f} GB too many"
    if arguments > has:
        ways = math.ceil(arguments / has)
        fewer = f"--rows={max(fields['rows'] // ways, 1)}, or " if reads else ""
        return (
            f"its arguments alone (parameters, moments, caches) take {over}: {fewer}split them {ways} times further "
            f"(mesh.fsdp or mesh.expert {ways} times as large, on more devices if need be)"
        )
    message = f"the program takes {over}; "
    if reads:
        return f"{message}half of the rows (--rows={max(fields['rows'] // 2, 1)}) or of the length is the next to try"
    if "microbatches" not in fields:
        return f"{message}{math.ceil(needed / has)} times the devices would do, or more of them along tensor and expert"
    microbatches, split = fields["microbatches"], math.prod(fields["mesh"][axis] for axis in RULES["batch"])
    for more in range(microbatches + 1, fields["batch_size"] // split + 1):
        smaller = arguments + (needed - arguments) * microbatches / more
        if smaller <= has and fields["batch_size"] % more == 0:
            return f"{message}train.microbatches={more} would make it about {smaller / 1e9:.1f} GB"
    ways = math.ceil(needed / has)
    return f"{message}{ways} times the devices along mesh.fsdp would do, or shorter rows, or model.remat='full'"


def _train_program(config: PretrainConfig, mesh, trainable) -> Program:
    """The step of `launch.pretrain`: microbatches, all losses, AdamW; the state is donated."""
    optimizer = make_optimizer(config.optimizer, config.train.steps, model.model_spec(config.model))
    length = config.data.sequence_length
    abstract = abstract_state(config.model, optimizer, mesh, trainable)
    arguments = (config.model, config.train, length, optimizer, abstract, mesh, trainable)
    tokens, per_token = config.train.batch_size * length, flops_per_token(config.model, length)
    per_token -= 0.0 if trainable is None else frozen_flops_per_token(config.model, trainable)
    return Program(
        lambda: lower_train_step(*arguments),
        state_bytes(abstract),
        tokens,
        length,
        per_token * tokens,
        mtp_flops_per_token(config.model, length) * tokens,
        {"microbatches": config.train.microbatches, "batch_size": config.train.batch_size},
    )


def _cache_program(config: PretrainConfig, mesh, rows: int, program: str) -> Program:
    length = config.data.sequence_length
    params = abstract_params(config.model, mesh)
    cache = abstract_cache(config.model, rows, length, mesh, empty=program == "prefill")
    tokens = length if program == "prefill" else 1
    return Program(
        lambda: lower_forward_with_cache(config.model, params, cache, tokens, mesh),
        state_bytes((params, cache)),
        rows * tokens,
        length,
        rows * read_flops_per_row(config.model, tokens, length),
        rows={"rows": rows},
    )


def lower_forward_with_cache(
    config: ModelConfig, params: Any, cache: Cache, tokens: int, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
    """Lowers (logits of the last token [B, 1, W], cache) for `tokens` new tokens per row; the cache is donated."""

    def read(params, tokens_BT, cache):
        hidden_BTD, _, cache = model.forward_with_cache(params, tokens_BT, config, cache)
        return head_logits(params["head"], hidden_BTD[:, -1:]), cache

    rows = cache.length.shape[0]
    tokens_BT = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=batch_sharding(mesh))
    # The program chooses the layout of the cache; decoding keeps it from token to token.
    laid_out = jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), cache)
    with jax.set_mesh(mesh):
        placed = dict(in_shardings=(None, None, laid_out), out_shardings=(None, laid_out.replace(empty=False)))
        jitted = jax.jit(read, donate_argnums=2, compiler_options=compiler_options(mesh), **placed)
        return jitted.lower(params, tokens_BT, cache)


def abstract_params(config: ModelConfig, mesh: jax.sharding.Mesh) -> Any:
    """Abstract weights for generation: in the compute dtype, except head, router and biases in their own."""
    return abstract_weights(config, mesh, model.model_spec(config))


def abstract_cache(config: ModelConfig, rows: int, max_length: int, mesh: jax.sharding.Mesh, *, empty: bool) -> Cache:
    """A cache of `max_length` tokens a row. Raises ValueError where the mesh cannot split its rows evenly."""
    spec = cache_spec(config, rows, max_length, jnp.dtype(config.compute_dtype))
    layers = abstract_arrays(spec, mesh)
    length = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(RULES["batch"])))
    return Cache(layers=layers, length=length, max_length=max_length, empty=empty)
