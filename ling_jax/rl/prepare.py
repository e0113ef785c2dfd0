"""A run of reinforcement learning before its first step: what it is, and whether it can be."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import IO

import jax
import optax
from etils import epath

from ling_jax import spec as specs
from ling_jax.chat.end_tokens import check_turns_end
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint.folder import ModelFolder, open_model, save_texts
from ling_jax.config import ModelConfig
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.engine.device import abstract_weights
from ling_jax.engine.memory import check_mesh, memory_for, plan_memory
from ling_jax.engine.reshard import ReshardPlan, reshard_plan
from ling_jax.engine.reshard import engine_mesh as make_engine_mesh
from ling_jax.envs import NAMES, Task, environment
from ling_jax.envs.sources import (
    TaskSource,
    check_files,
    describe_source,
    distinct_held_out,
    held_out_of,
    place_of,
    tasks,
)
from ling_jax.messages import size_text
from ling_jax.model import model_spec
from ling_jax.model.layers import num_moe_layers
from ling_jax.parallel.context import check_rows
from ling_jax.parallel.sharding import make_mesh, mesh_shape
from ling_jax.rewards.length import EFFORT_WEIGHTS
from ling_jax.rl.batch import expert_bytes_per_device, expert_bytes_per_token
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RESUMABLE, RLConfig, limits_of
from ling_jax.rl.episode import EpisodeRequest, Refused
from ling_jax.rl.log import LOGS
from ling_jax.rl.loss import describe_loss
from ling_jax.rl.reader import Reader, make_reader
from ling_jax.rl.reward import Reward
from ling_jax.rl.simulate import check_sizes
from ling_jax.rl.step import trainable
from ling_jax.rl.teachers import open_teachers
from ling_jax.rl.turns import rehearse
from ling_jax.rl.updates import layouts
from ling_jax.run import tensorboard
from ling_jax.run.start import changed_model
from ling_jax.run.wandb_run import check_wandb
from ling_jax.run.workdir import (
    check_workdir,
    has_checkpoint,
    lock_and_fill,
    open_workdir,
    read_origins,
    write_config,
    write_origins,
)
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.state import TrainState, abstract_state, check_disk, check_memory, device_memory, state_bytes
from pallas_kernels.lightning_attention.self_check import check_kernels

SHARED_SEEN = 1000  # training tasks of an own environment that held-out ones are looked for in; our choice
PROBES = 16  # tasks of each source that are tried on the context before the work starts


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run whose config fits its start, its tasks and its workdir."""

    config: RLConfig
    reward: Reward
    workdir: epath.Path
    start: ModelFolder  # the stage before, or this run's newest checkpoint
    reference: ModelFolder | None  # the stage before, as it was where this run began; None without a penalty
    teachers: tuple[ModelFolder, ...]  # of objective reverse_kl, as they were where this run began
    reader: Reader
    mesh: jax.sharding.Mesh  # of the weights that learn
    engine_meshes: tuple[jax.sharding.Mesh | None, ...]  # of each engine; None: the only device
    engine_plan: ReshardPlan  # what the engine takes beside them
    optimizer: optax.GradientTransformation
    abstract: TrainState
    lock: IO[bytes] | None
    collector: Callable[..., Collector] = Collector  # what plays the rollouts

    @property
    def engine_mesh(self) -> jax.sharding.Mesh | None:
        """Of the first engine, which also evaluates."""
        return self.engine_meshes[0]


def prepare(config: RLConfig, reward: Reward, workdir, collector: Callable[..., Collector] = Collector) -> Run:
    """Checks a config against start, tasks and workdir; `collector` makes what plays the rollouts.

    Raises ValueError or OSError with what to change.
    """
    if config.rollout.agent and hosts.is_multiprocess():
        raise ValueError(
            f"rollout.agent is {config.rollout.agent}, on {jax.process_count()} processes: its calls come to one of "
            "them at any time, and all run the same programs in one order; start one process"
        )
    if reward.needs_efforts and not config.efforts:
        raise ValueError(
            f"reward is {config.reward!r}, which pays by thinking effort, and efforts is (): set efforts to "
            f"{tuple(EFFORT_WEIGHTS)}, or take another reward, such as 'evo_cot'"
        )
    check_files(config.tasks, "tasks")
    workdir = open_workdir(workdir)
    check_wandb(config.train.wandb)
    check_workdir(config, workdir, RESUMABLE)
    start = _open_start(config, workdir)
    if warning := check_sizes(limits_of(config.rollout), config.rollout.max_tokens or config.rollout.context):
        print(f"WARNING: {warning}", flush=True)
    mesh, engine_meshes = _meshes(config)
    _check_threads(config, mesh)
    reader = make_reader(start, context=config.rollout.context, max_tokens=config.rollout.max_tokens)
    _warn_of_few_tasks(config)
    _warn_of_shared_tasks(config)
    _probe(config, reader)
    optimizer = make_optimizer(config.optimizer, config.max_updates, model_spec(start.config))
    reference = _reference(config, workdir, start)
    teachers = open_teachers(config, start, read_origins(workdir))
    abstract = abstract_state(start.config, optimizer, mesh, trainable(start.config), spike_window=None)
    check_memory(abstract, mesh)
    read = [model.config for model in (reference, *teachers) if model is not None]
    held_bytes = state_bytes((abstract, [abstract_weights(model, mesh) for model in read]))
    engine_plan = plan_engine(config, start.config, mesh, engine_meshes[0], held_bytes)
    engine_plan.check()
    check_disk(abstract, workdir, config.train)
    held = _fill_workdir(config, workdir, start, teachers)
    return Run(
        config=config,
        reward=reward,
        workdir=workdir,
        start=start,
        reference=reference,
        teachers=teachers,
        reader=reader,
        mesh=mesh,
        engine_meshes=engine_meshes,
        engine_plan=engine_plan,
        optimizer=optimizer,
        abstract=abstract,
        lock=held,
        collector=collector,
    )


def _open_start(config: RLConfig, workdir: epath.Path) -> ModelFolder:
    """The stage before, or the run's newest checkpoint, with the config's changes; checked against the config."""
    peers = all_peers()
    resumes = peers.first(has_checkpoint(workdir), "has a checkpoint")
    start = _as_run(open_model(workdir if resumes else config.start_from, peers=peers), config)
    if config.rollout.record_experts and not num_moe_layers(start.config):
        raise ValueError(
            f"rollout.record_experts is True, and the model of {config.start_from} has no layer with experts "
            f"({start.config.num_layers} layers, first_dense_layers {start.config.first_dense_layers}): set it to False"
        )
    for effort in config.efforts:
        with_thinking(start.template, config.thinking, effort)  # refuses a template that reads none
    check_turns_end(start.template, start.tokenizer, start.end_ids)
    return start


def _as_run(model: ModelFolder, config: RLConfig) -> ModelFolder:
    """The model as the run computes and asks it."""
    return dataclasses.replace(
        model,
        config=changed_model(model.config, config.model),
        template=with_thinking(model.template, config.thinking, config.effort),
    )


def _meshes(config: RLConfig) -> tuple[jax.sharding.Mesh, tuple[jax.sharding.Mesh | None, ...]]:
    """(the mesh of the weights that learn, those of the engines; None on one device).

    Raises ValueError where one of them does not fill its devices.
    """
    learning, own = _devices(config.engine_devices)
    mesh = make_mesh(dataclasses.asdict(config.mesh), learning)
    check_rows(config.rollout.context, mesh.shape["context"])
    count, sizes = config.rollout.engines, dataclasses.asdict(config.engine)
    if len(own) % count:
        raise ValueError(f"rollout.engines {count} does not divide engine_devices {len(own)}")
    each = len(own) // count
    meshes = tuple(_engine_mesh(sizes, mesh, own[i * each : (i + 1) * each]) for i in range(count))
    check_mesh(meshes[0], config.rollout.slots // count)
    return mesh, meshes


def _check_threads(config: RLConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where programs of several threads would wait for each other on their devices."""
    rollout = config.rollout
    threads = "rollout.overlap is True" if rollout.overlap else f"rollout.engines is {rollout.engines}"
    if not rollout.overlap and rollout.engines == 1:
        return
    if hosts.is_multiprocess():
        change = "set rollout.overlap to False and rollout.engines to 1"
        raise ValueError(
            f"{threads}, on {jax.process_count()} processes: all of them run the same programs in one order; {change}"
        )
    if mesh.size > 1 and not config.engine_devices:
        raise ValueError(
            f"{threads}, and the engine shares {mesh.size} devices with the weights that learn: programs begun by two "
            "threads would wait for each other; set engine_devices, or generate in turns"
        )


def _engine_mesh(sizes: dict[str, int], mesh: jax.sharding.Mesh, own: Sequence[jax.Device]) -> jax.sharding.Mesh | None:
    if own:
        return make_mesh(sizes, own)
    mesh_shape(sizes, mesh.size)
    return None if mesh.size == 1 else make_engine_mesh(mesh, sizes)


def _devices(count: int) -> tuple[list[jax.Device], list[jax.Device]]:
    """(the devices of the weights that learn, the engine's own: the last `count`)."""
    devices = jax.devices()
    if not count:
        return devices, []
    if hosts.is_multiprocess():
        raise ValueError(
            f"engine_devices is {count}, on {jax.process_count()} processes: weights are copied to an engine's own "
            "devices within one process; set it to 0, and the engine shares the devices of the weights that learn"
        )
    if count >= len(devices):
        raise ValueError(
            f"engine_devices is {count} of {len(devices)} devices, which leaves none for the weights that learn; set it"
            f" to {len(devices) - 1} at most, or to 0 to share the devices"
        )
    return devices[:-count], devices[-count:]


def _fill_workdir(
    config: RLConfig, workdir: epath.Path, start: ModelFolder, teachers: Sequence[ModelFolder]
) -> IO[bytes] | None:
    """Locks the workdir and writes what a run begins with; the lock."""

    def fill() -> None:
        if hosts.process_index():
            return
        save_texts(start, workdir / "tokenizer", chat=True)
        write_config(config, workdir)
        steps = {name: teacher.step for name, teacher in zip(config.teacher_names, teachers, strict=True)}
        write_origins({**steps, config.start_from: start.step}, workdir)

    return lock_and_fill(workdir, fill)[0]


def plan_engine(
    config: RLConfig,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    engine_mesh: jax.sharding.Mesh | None,
    trainer_bytes: int,
) -> ReshardPlan:
    """What the engine of a run takes on a device beside a trainer's `trainer_bytes`, and what a weight update moves."""
    slots, parked = config.rollout.of_engine
    sizes = dict(slots=slots, max_tokens=config.rollout.context, parked=parked)
    pool = plan_memory(model, sizes["slots"], memory_for(model, **sizes, mesh=engine_mesh), engine_mesh)
    memory = device_memory(mesh)
    return reshard_plan(
        model,
        mesh,
        mesh if engine_mesh is None else engine_mesh,
        trainer_bytes=trainer_bytes,
        pool=pool,
        device_bytes=None if math.isinf(memory) else memory,
        engines=(1 if config.engine_devices else config.rollout.engines) + (config.train.eval_tasks > 0),
    )


def start_report(run: Run, start: int) -> str:
    """What is about to run, and where its files go."""
    config, rollout, steps = run.config, run.config.rollout, run.config.train.steps
    sources = "; ".join(map(describe_source, config.tasks))
    budget = f"{rollout.token_budget} {rollout.count} tokens a step" if rollout.token_budget else "until none is left"
    logs = ", ".join(f"{name}.jsonl" for name in LOGS)
    staleness = f"staleness <= {rollout.max_staleness}, retention <= {rollout.max_retention}, refill {rollout.refill}"
    staleness += ", beside the optimisation steps" if rollout.overlap else ""
    lines = {
        "model": f"{specs.count(model_spec(run.start.config))} parameters from {config.start_from}",
        "objective": describe_loss(config.objective, rollout.group_size),
        **({"teachers": _describe_teachers(config)} if config.teachers else {}),
        "reward": config.reward + (f", efforts {', '.join(config.efforts)}" if config.efforts else ""),
        "tasks": sources + (", drawn by pass rate" if config.train.dpr_steps else ""),
        "held out": _held_out_report(config),
        "batch": f"{rollout.prompts_per_step} prompts x {rollout.group_size} answers, rows of {rollout.context} tokens",
        **({"agent": _describe_agent(config)} if rollout.agent else {}),
        "budget": f"{budget}; {_describe_slots(config)}; {staleness}",
        **({"experts": _describe_experts(run)} if rollout.record_experts else {}),
        "run": f"steps {start} to {steps}, {_describe_updates(config)}",
        "devices": _describe_devices(run),
        "engine": str(run.engine_plan),
        "kernels": check_kernels(),
        "files": f"{run.workdir}: config.json, {logs}, tensorboard/, checkpoints/, tokenizer/, trajectories/",
        "curves": tensorboard.command(run.workdir),
    }
    return "\n".join(f"{name:>11}  {text}" for name, text in lines.items())


def _describe_agent(config: RLConfig) -> str:
    rollout = config.rollout
    samples = "a sample each" if rollout.samples == "individual" else "a sample for each chain"
    return f"{' '.join(rollout.agent)}; at most {rollout.max_calls} calls, {samples}, {rollout.branches} branches"


def _describe_slots(config: RLConfig) -> str:
    rollout = config.rollout
    engines = f" of {rollout.engines} engines" if rollout.engines > 1 else ""
    return f"{rollout.slots} slots{engines}" + (f" for {rollout.under_way} rollouts" if rollout.parked else "")


def _describe_experts(run: Run) -> str:
    model, (_, whole) = run.start.config, layouts(run.config, run.mesh)
    of_token, of_device = expert_bytes_per_token(model), expert_bytes_per_device(whole, run.mesh, model)
    return f"recorded and replayed: {of_token} bytes a token, {size_text(of_device)} of a batch on a device at most"


def _describe_teachers(config: RLConfig) -> str:
    if len(config.teachers) == 1:
        return f"{config.teachers[0]}, of all tasks"
    pairs = zip(config.teachers, config.tasks, strict=True)
    return "; ".join(f"{teacher}, of {source.environment}" for teacher, source in pairs)


def _describe_devices(run: Run) -> str:
    shape = ", ".join(f"{axis}={size}" for axis, size in run.mesh.shape.items() if size > 1) or "one device"
    device, count = run.mesh.devices.flat[0], run.config.engine_devices
    own = f"; the engine has {count} others" if count else ""
    return f"{run.mesh.size} x {device.device_kind} ({device.platform}); mesh {shape}{own}"


def _describe_updates(config: RLConfig) -> str:
    count, groups = config.train.updates_per_batch, config.rollout.prompts_per_step
    if count == 1:
        return "one optimisation step each: old = policy, so the ratio is 1"
    return f"{count} optimisation steps each, on {groups // count} prompts: old = policy before the first of them"


def _reference(config: RLConfig, workdir: epath.Path, start: ModelFolder) -> ModelFolder | None:
    """Raises ValueError where a run that goes on cannot read the weights that it began with."""
    if not config.objective.reference_kl or not has_checkpoint(workdir):
        return start if config.objective.reference_kl else None
    try:
        return origin_of(config, workdir)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"objective.reference_kl is {config.objective.reference_kl}, a penalty to the weights that the run began "
            f"with, and these cannot be read: {error}; restore that checkpoint, or begin anew in another workdir"
        ) from error


def origin_of(config: RLConfig, workdir: epath.Path) -> ModelFolder:
    """The stage before, at the step where the run in the workdir began, with the config's changes."""
    return _as_run(open_model(config.start_from, step=read_origins(workdir).get(config.start_from)), config)


def _probe(config: RLConfig, reader: Reader) -> None:
    """Raises ValueError where some first tasks do not fit the context or the template: training and held-out ones, all
    difficulties, each with its own solution. All held-out tasks that are evaluated have to fit, and of a file all
    questions to train on."""
    effort, seconds = max(config.efforts, key=len, default=None), config.rollout.session_seconds
    for source in config.tasks:
        count = min(source.size, max(PROBES, len(source.difficulties)))
        held_out = held_out_of(source, max(count, config.train.eval_tasks))
        if source.path:
            _check_all_fit(source, [*tasks(source), *held_out], reader, effort)
        elif environment(source.environment).solution is None:
            print(f"{source.environment} has no solution: nothing is played before the first step", flush=True)
        found = [*itertools.islice(tasks(source), count), *held_out]
        episodes = reader.begin_all([EpisodeRequest(0, 0, task, seed=0, effort=effort) for task in found])
        for episode in episodes[: 2 * count] if not hosts.process_index() else ():  # sessions are the first host's
            rehearse(episode, reader, seconds)


def _check_all_fit(source: TaskSource, found: Sequence[Task], reader: Reader, effort: str | None) -> None:
    """Raises ValueError with the place of the first task of a file or folder that no episode can begin with."""
    begun = reader.begin([EpisodeRequest(0, 0, task, seed=0, effort=effort) for task in found])
    refused = [found for found in begun if isinstance(found, Refused)]
    if refused:
        more = f"; {len(refused) - 1} others are so" if len(refused) > 1 else ""
        task = refused[0].request.task
        raise ValueError(f"{source.path}, {place_of(task)}: {refused[0].reason}{more}")


def _held_out_report(config: RLConfig) -> str:
    asked = config.train.eval_tasks
    if not asked:
        return "none is answered (train.eval_tasks)"
    found = len(distinct_held_out(config.tasks, asked))
    fewer = f", all that differ of the {asked} of each source" if found < asked * len(config.tasks) else ""
    return f"{found} distinct tasks{fewer}"


def _warn_of_shared_tasks(config: RLConfig) -> None:
    """An environment of the user's own may make the same task from a held-out seed and from another one."""
    for source in config.tasks:
        if source.environment in NAMES:
            continue
        trained = {task.id for task in itertools.islice(tasks(source), SHARED_SEEN)}
        held_out = held_out_of(source, config.train.eval_tasks)
        if shared := sum(task.id in trained for task in held_out):
            print(
                f"WARNING: {shared} of {len(held_out)} held-out tasks of {source.environment} are trained on, too; "
                "ling_jax.envs.draw_task keeps tasks apart whose prompts differ",
                flush=True,
            )


def _warn_of_few_tasks(config: RLConfig) -> None:
    """A step that asks the same thing several times learns less than its batch says."""
    size, prompts = sum(source.size for source in config.tasks), config.rollout.prompts_per_step
    if size < prompts:
        print(
            f"WARNING: {size} tasks, and a step draws {prompts} prompts: each comes {prompts / size:.1f} times in a "
            f"step; set rollout.prompts_per_step to {size} at most, or add tasks",
            flush=True,
        )
