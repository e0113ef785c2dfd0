"""What is learnt from a batch: one optimisation step, or several, each on other groups of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ling_jax import spec as specs
from ling_jax.config import ModelConfig
from ling_jax.engine.weights import serving_dtype
from ling_jax.model import model_spec
from ling_jax.rl.batch import Batch, abstract_batch, take_groups
from ling_jax.rl.config import RLConfig
from ling_jax.rl.loss import make_loss
from ling_jax.rl.step import abstract_state, make_rl_step, make_scorer
from ling_jax.rl.teachers import Scorer, teacher_logps
from ling_jax.spec import Params
from ling_jax.train.state import TrainState

ORDER = 1  # keeps the random numbers of minibatches apart from those of prompts, which have the same seed
COUNTS = {"tokens", "loss_tokens", "nonfinite", "mismatch_same_version/tokens", "mismatch_same_version/far"}


class Update(NamedTuple):
    """One optimisation step."""

    groups: list[int]  # their numbers in the batch
    batch: Batch  # of these groups, numpy arrays
    metrics: dict[str, Any]  # Python numbers


class Programs(NamedTuple):
    """The compiled programs that learn from a batch; None where a run needs none."""

    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]  # it uses up the state
    old: Callable[[Params, Batch], jax.Array] | None  # log-probs [B, T] of the policy before the first step
    reference: Callable[[Params, Batch], jax.Array] | None  # log-probs [B, T] of the reference
    teachers: tuple[Scorer, ...] = ()  # log-probs under each teacher, of the groups of a microbatch


def compile_programs(
    model: ModelConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    config: RLConfig,
    teachers: Sequence[ModelConfig] = (),
) -> Programs:
    """The programs of a run with these teachers.

    Old log-probs take a forward pass of their own where several steps are made of a batch, and where phi is calibrated,
    which needs them before the first gradient.
    """
    train, objective, length = config.train, config.objective, config.rollout.context
    old, reference = train.updates_per_batch > 1 or objective.calibrate_phi > 0, objective.reference_kl > 0
    loss, state = make_loss(objective, config.rollout.group_size), abstract_state(model, optimizer)
    step = jax.jit(make_rl_step(model, optimizer, loss, microbatches=train.microbatches), donate_argnums=0)
    score = jax.jit(make_scorer(model, microbatches=train.microbatches * train.updates_per_batch))
    whole = abstract_batch(config.rows, length)
    part = abstract_batch(
        config.rows // train.updates_per_batch, length, old=old, reference=reference, teacher=bool(teachers)
    )
    few = abstract_batch(_teacher_places(config) * config.rollout.group_size, length)
    scorers = {
        teacher: jax.jit(make_scorer(teacher)).lower(_abstract_reference(teacher), few).compile()
        for teacher in dict.fromkeys(teachers)
    }
    return Programs(
        step=step.lower(state, part).compile(),
        old=score.lower(state.params, whole).compile() if old else None,
        reference=score.lower(_abstract_reference(model), whole).compile() if reference else None,
        teachers=tuple(scorers[teacher] for teacher in teachers),
    )


def _teacher_places(config: RLConfig) -> int:
    """How many groups a teacher reads at a time: those of a microbatch."""
    return config.rollout.prompts_per_step // (config.train.updates_per_batch * config.train.microbatches)


def _abstract_reference(model: ModelConfig) -> Any:
    """A `serving_copy` as ShapeDtypeStructs on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf(leaf: specs.Leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, serving_dtype(leaf, model), sharding=sharding)

    spec = {name: leaves for name, leaves in model_spec(model).items() if name != "mtp"}
    return specs.tree_map(leaf, spec)


def learn(
    programs: Programs,
    config: RLConfig,
    state: TrainState,
    reference: Params | None,
    batch: Batch,
    version: int,
    teachers: Sequence[Params] = (),
) -> tuple[TrainState, list[Update]]:
    """(the state after the optimisation steps on a batch, these steps); `version` is that of the weights before.

    Log-probs of the whole batch, old ones, the reference's and the teachers', come first. With `updates_per_batch` n,
    the groups of the batch are dealt out to n steps in a random order that depends on the seed and the version: each
    group is used once, steps differ by at most a group, and a batch of fewer than n groups makes a step of each.
    """
    size, of_teacher = config.rollout.group_size, None
    if programs.teachers:
        of_teacher = teacher_logps(programs.teachers, teachers, batch, _teacher_places(config), size)
        batch = batch.replace(teacher=None)
    old = np.asarray(programs.old(state.params, batch)) if programs.old else None
    of_reference = np.asarray(programs.reference(reference, batch)) if programs.reference else None
    batch = batch.replace(old_logps=old, reference_logps=of_reference, teacher_logps=of_teacher)
    count = config.train.updates_per_batch
    places, updates = config.rollout.prompts_per_step // count, []
    rng = np.random.default_rng((config.train.seed, version, ORDER))
    for groups in minibatches(np.flatnonzero(batch.valid.reshape(-1, size).any(axis=1)), count, rng):
        part = take_groups(batch, groups, places, size)
        state, metrics = programs.step(state, part)
        numbers = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
        updates.append(Update(groups.tolist(), part, numbers))
    return state, updates


def minibatches(groups: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The groups of each of `count` optimisation steps, or of fewer where there are fewer groups; at least one step.

    A single step has the groups in their order. Several have them in a random order, dealt out in turn.
    """
    if count == 1:
        return [groups]
    order = rng.permutation(groups)
    return [order[first::count] for first in range(max(1, min(count, len(groups))))]


def summarised(updates: Sequence[Update]) -> dict[str, Any]:
    """The metrics of all steps on a batch: sums of counts, the largest of maxima, else means; and `updates`, how many
    steps changed the weights."""
    each = [update.metrics for update in updates]
    if len(each) == 1:
        metrics = dict(each[0])
    else:
        metrics = {name: _of_all(name, [metrics[name] for metrics in each]) for name in each[0]}
    return metrics | {"updates": sum(not metrics["nonfinite"] for metrics in each)}


def _of_all(name: str, values: Sequence[Any]) -> Any:
    if name in COUNTS:
        return sum(values)
    return max(values) if name.endswith("/max") else float(np.mean(values))
