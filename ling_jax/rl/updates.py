"""What is learnt from a batch: one optimisation step, or several, each on other groups of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from ling_jax.config import ModelConfig
from ling_jax.engine.device import abstract_weights
from ling_jax.parallel.exchange import compiler_options
from ling_jax.rl.answers import Answer
from ling_jax.rl.batch import Batch, Layout, abstract_batch, layout_for, on_mesh, pack, unpack
from ling_jax.rl.config import RLConfig
from ling_jax.rl.link import Link, Operation
from ling_jax.rl.loss import BatchLoss, make_loss
from ling_jax.rl.step import make_rl_step, make_scorer, trainable
from ling_jax.spec import Params
from ling_jax.train.programs import lower_step
from ling_jax.train.state import TrainState, abstract_state

ORDER = 1  # keeps the random numbers of minibatches apart from those of prompts, which have the same seed
COUNTS = {"tokens", "loss_tokens", "nonfinite", "mismatch_same_version/tokens", "mismatch_same_version/far"}

Scorer = Callable[[Params, Batch], jax.Array]  # log-probs [M, R, T] of the drawn tokens


class Update(NamedTuple):
    """One optimisation step."""

    groups: list[int]  # their numbers in the batch
    batch: Batch  # of these groups, numpy arrays
    metrics: dict[str, Any]  # Python numbers


class Programs(NamedTuple):
    """The compiled programs that learn from a batch; None where a run needs none."""

    mesh: jax.sharding.Mesh
    link: Link | None  # to the other processes
    part: Layout  # of an optimisation step
    whole: Layout  # of a whole batch
    loss: BatchLoss
    floats: tuple[str, ...]  # arrays of an optimisation step's batch that not every run needs
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]  # it uses up the state
    old: Scorer | None  # of the policy before the first step
    reference: Scorer | None
    teachers: tuple[Scorer, ...] = ()
    replays: ModelConfig | None = None  # the model that learns, where it replays recorded experts


def layouts(config: RLConfig, mesh: jax.sharding.Mesh) -> tuple[Layout, Layout]:
    """The layouts of (an optimisation step, a whole batch, whose microbatches are as large)."""
    train, length = config.train, config.rollout.context
    part = layout_for(config.rows // train.updates_per_batch, train.microbatches, length, mesh)
    part = part._replace(microbatches=part.microbatches * config.rollout.max_samples)
    return part, part._replace(microbatches=part.microbatches * train.updates_per_batch)


def compile_programs(
    model: ModelConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    config: RLConfig,
    mesh: jax.sharding.Mesh,
    teachers: Sequence[ModelConfig] = (),
    link: Link | None = None,
) -> Programs:
    """The programs of a run with these teachers, all on one mesh, of one process or of several with a link.

    Old log-probs take a forward pass of their own where several steps are made of a batch, and where phi is calibrated,
    which needs them before the first gradient. Recorded experts are the policy's: reference and teachers, which are
    other weights, choose by themselves.
    """
    loss, (part, whole) = make_loss(config.objective, config.rollout.group_size), layouts(config, mesh)
    floats, replays = optional_arrays(config), model if config.rollout.record_experts else None
    old, reference = "old_logps" in floats, "reference_logps" in floats
    state = abstract_state(model, optimizer, mesh, trainable(model), spike_window=None)
    learnt = abstract_batch(part, mesh, floats, replays=replays)
    step = lower_step(make_rl_step(model, optimizer, loss), state, learnt, mesh)
    read, replayed = abstract_batch(whole, mesh), abstract_batch(whole, mesh, replays=replays)
    scorers = {
        teacher: lower_scorer(teacher, abstract_weights(teacher, mesh), read, mesh).compile()
        for teacher in dict.fromkeys(teachers)
    }
    return Programs(
        mesh=mesh,
        link=link,
        part=part,
        whole=whole,
        loss=loss,
        floats=floats,
        step=step.compile(),
        old=lower_scorer(model, state.params, replayed, mesh).compile() if old else None,
        reference=lower_scorer(model, abstract_weights(model, mesh), read, mesh).compile() if reference else None,
        teachers=tuple(scorers[teacher] for teacher in teachers),
        replays=replays,
    )


def optional_arrays(config: RLConfig) -> tuple[str, ...]:
    """The arrays of an optimisation step's batch that not every run needs, by name."""
    old = config.train.updates_per_batch > 1 or config.objective.calibrate_phi > 0
    reference = config.objective.reference_kl > 0
    wanted = {
        "old_logps": old,
        "reference_logps": reference,
        "reference_weights": reference,
        "teacher_logps": bool(config.teachers),
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def lower_scorer(model: ModelConfig, params: Any, batch: Batch, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The program of `make_scorer` before compilation; its log-probs are whole on every device."""
    with jax.set_mesh(mesh):
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        jitted = jax.jit(make_scorer(model), out_shardings=everywhere, compiler_options=compiler_options(mesh))
        return jitted.lower(params, batch)


def learn(
    programs: Programs,
    config: RLConfig,
    state: TrainState,
    reference: Params | None,
    answers: Sequence[Answer],
    version: int,
    teachers: Sequence[Params] = (),
) -> tuple[TrainState, list[Update]]:
    """(the state after the optimisation steps on these answers, these steps); `version` is that of the weights before.

    Log-probs of the whole batch, old ones, the reference's and the teachers', come first. With `updates_per_batch` n,
    the groups of the batch are dealt out to n steps in a random order that depends on the seed and the version: each
    group is used once, steps differ by at most a group, and a batch of fewer than n groups makes a step of each.
    """
    answers = with_teachers(programs, teachers, answers)
    if programs.old:
        answers = _scored(programs, programs.old, state.params, answers, "old_logps", Operation.OLD)
    if programs.reference:
        answers = _scored(programs, programs.reference, reference, answers, "reference_logps", Operation.REFERENCE)
    updates, loss = [], programs.loss
    rng = np.random.default_rng((config.train.seed, version, ORDER))
    numbers = np.unique([answer.group for answer in answers]).astype(int)
    for groups in minibatches(numbers, config.train.updates_per_batch, rng):
        chosen = [answer for number in groups for answer in answers if answer.group == number]
        normalisers = loss.normaliser, loss.reference_normaliser
        batch = pack(chosen, programs.part, *normalisers, programs.floats, programs.replays)
        state, metrics = programs.step(state, _shared(programs, batch, Operation.STEP))
        found = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
        updates.append(Update(groups.tolist(), batch, found))
    return state, updates


def with_teachers(programs: Programs, teachers: Sequence[Params], answers: Sequence[Answer]) -> list[Answer]:
    """The answers with the log-probs of their own teachers."""
    scored = list(answers)
    for number, (score, params) in enumerate(zip(programs.teachers, teachers, strict=True)):
        own = [i for i, answer in enumerate(answers) if answer.teacher == number]
        chosen = [answers[i] for i in own]
        found = _scored(programs, score, params, chosen, "teacher_logps", Operation.TEACHER, number)
        for i, answer in zip(own, found, strict=True):
            scored[i] = answer
    return scored


def _scored(
    programs: Programs,
    score: Scorer,
    params: Params,
    answers: Sequence[Answer],
    name: str,
    operation: Operation,
    argument: int = 0,
) -> list[Answer]:
    """The answers with these log-probs as their field `name`."""
    replays = programs.replays if operation == Operation.OLD else None  # those of other weights choose by themselves
    batch = _shared(programs, pack(answers, programs.whole, replays=replays), operation, argument)
    logps = unpack(np.asarray(score(params, batch)), answers, programs.whole)
    return [dataclasses.replace(answer, **{name: own}) for answer, own in zip(answers, logps, strict=True)]


def _shared(programs: Programs, batch: Batch, operation: Operation, argument: int = 0) -> Batch:
    """The batch on the mesh; the other processes learn of it and of the program that reads it."""
    if programs.link is not None:
        programs.link.send_operation(operation, argument)
        programs.link.send(batch)
    return on_mesh(batch, programs.mesh)


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
