"""The programs of a run of reinforcement learning for devices that are not here (docs/pods.md)."""

import dataclasses

import jax

from ling_jax.compile.programs import Program
from ling_jax.config import ModelConfig
from ling_jax.engine.device import abstract_weights, lower_decode
from ling_jax.engine.memory import memory_for, plan_memory
from ling_jax.engine.reshard import abstract_masters, engine_mesh, lower_reshard
from ling_jax.model import model_spec
from ling_jax.model.flops import flops_per_token, read_flops_per_row
from ling_jax.rl.batch import Layout, abstract_batch
from ling_jax.rl.config import RLConfig
from ling_jax.rl.loss import make_loss
from ling_jax.rl.step import make_rl_step, trainable
from ling_jax.rl.updates import layouts, lower_scorer, optional_arrays
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import lower_step
from ling_jax.train.state import abstract_state, state_bytes

PROGRAMS = ("rl", "score", "reshard", "decode")


def rl_program(config: RLConfig, model: ModelConfig, mesh: jax.sharding.Mesh, name: str) -> Program:
    """One of `PROGRAMS`.

    rl       an optimisation step on answers as long as the context, so that no two of them share a row
    score    log-probs of a whole batch of these under other weights
    reshard  the weights that learn become those of the engine, on its mesh
    decode   a pass of the engine's step, in which every slot draws a token behind a full context

    Raises ValueError on meshes that do not fit.
    """
    part, whole = layouts(config, mesh)
    if name in ("rl", "score"):
        return _step(config, model, mesh, part) if name == "rl" else _score(model, mesh, whole)
    if config.engine_devices:
        raise ValueError(
            f"engine_devices is {config.engine_devices}: programs are compiled for an engine on the devices of the "
            "weights that learn; set it to 0"
        )
    engine = engine_mesh(mesh, dataclasses.asdict(config.engine))
    return _reshard(model, mesh, engine) if name == "reshard" else _decode(config, model, engine)


def _step(config: RLConfig, model: ModelConfig, mesh: jax.sharding.Mesh, layout: Layout) -> Program:
    optimizer = make_optimizer(config.optimizer, config.max_updates, model_spec(model))
    state = abstract_state(model, optimizer, mesh, trainable(model), spike_window=None)
    replays = model if config.rollout.record_experts else None
    batch = abstract_batch(layout, mesh, optional_arrays(config), replays=replays, counted=False)
    step = make_rl_step(model, optimizer, make_loss(config.objective, config.rollout.group_size))
    tokens = layout.microbatches * layout.rows * layout.length
    without_mtp = dataclasses.replace(model, mtp_loss_weight=0.0)
    return Program(
        lambda: lower_step(step, state, batch, mesh),
        state_bytes((state, batch)),
        tokens,
        layout.length,
        flops_per_token(without_mtp, layout.length) * tokens,
        rows={"microbatches": layout.microbatches, "batch_size": layout.microbatches * layout.rows},
    )


def _reshard(model: ModelConfig, mesh: jax.sharding.Mesh, engine: jax.sharding.Mesh) -> Program:
    return Program(lambda: lower_reshard(model, mesh, engine), state_bytes(abstract_masters(model, mesh)), 1, 1, 0.0)


def _decode(config: RLConfig, model: ModelConfig, engine: jax.sharding.Mesh) -> Program:
    slots, length = config.rollout.slots, config.rollout.context
    sizes = dict(slots=slots, max_tokens=length, parked=config.rollout.parked)
    plan = plan_memory(model, slots, memory_for(model, **sizes, mesh=engine), engine)
    # A step is a loop of passes, which ends early where all slots do; the reader of programs counts it once.
    return Program(
        lambda: lower_decode(model, engine, slots, length),
        state_bytes(abstract_weights(model, engine)) + plan.total_bytes,
        slots,
        length,
        slots * read_flops_per_row(model, 1, length),
        rows={"rows": slots},
    )


def _score(model: ModelConfig, mesh: jax.sharding.Mesh, layout: Layout) -> Program:
    params, batch = abstract_weights(model, mesh), abstract_batch(layout, mesh, counted=False)
    rows = layout.microbatches * layout.rows
    head = 2.0 * model.hidden_size * model.vocab_size * (layout.length - 1)  # of all tokens, not of the last alone
    return Program(
        lambda: lower_scorer(model, params, batch, mesh),
        state_bytes((params, batch)),
        rows * layout.length,
        layout.length,
        rows * (read_flops_per_row(model, layout.length, layout.length) + head),
        rows={"microbatches": layout.microbatches, "batch_size": rows},
    )
