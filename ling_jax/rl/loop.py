"""The loop of reinforcement learning: what about a run touches the world. What it computes is `ling_jax.rl.learner`.

Everything runs in one process on the first device, generation and training in turns.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from ling_jax import spec as specs
from ling_jax.chat.end_tokens import check_turns_end
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import ModelFolder, open_model, save_texts
from ling_jax.checkpoint.steps import resume_step
from ling_jax.checkpoint.workdir_sums import check_logs, workdir_sums
from ling_jax.envs.sources import describe_source, held_out_of, task_of
from ling_jax.evaluate.report import table, write_results
from ling_jax.files import parse_object, remove_folder
from ling_jax.model import model_spec
from ling_jax.objectives import effective_objective
from ling_jax.partials import write_errors
from ling_jax.paths import append
from ling_jax.rewards.length import EFFORT_WEIGHTS
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RESUMABLE, RLConfig
from ling_jax.rl.episode import EpisodeRequest
from ling_jax.rl.evaluation import evaluate, summarise
from ling_jax.rl.learner import Event, Learner
from ling_jax.rl.reader import Reader, make_reader
from ling_jax.rl.reward import Reward
from ling_jax.rl.step import abstract_batch, abstract_state, make_objective, make_rl_step, objective_options, trainable
from ling_jax.rl.turns import rehearse
from ling_jax.train import tensorboard
from ling_jax.train.loop import Interrupted, TooManyNonfiniteSteps
from ling_jax.train.memory import MemoryUse
from ling_jax.train.metrics import MetricsWriter, drop_lines_from, to_line
from ling_jax.train.optimizer import learning_rate, make_optimizer
from ling_jax.train.program_cache import use_compilation_cache
from ling_jax.train.state import TrainState, check_disk, create_state
from ling_jax.train.stop import stop_signals
from ling_jax.train.watchdog import watch_steps
from ling_jax.train.workdir import (
    check_workdir,
    has_checkpoint,
    lock,
    open_workdir,
    read_origins,
    unlock,
    write_config,
    write_origins,
)
from pallas_kernels.lightning_attention.self_check import check_kernels

GENERATING_SECONDS = 10  # between two lines about a generation that takes longer
LOGS = ("metrics", "samples", "events")
PROBES = 16  # tasks of each source that are tried on the context before the work starts


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run whose config fits its start, its tasks and its workdir."""

    config: RLConfig
    reward: Reward
    workdir: epath.Path
    start: ModelFolder  # the stage before, or this run's newest checkpoint
    reader: Reader
    optimizer: optax.GradientTransformation
    lock: IO[bytes] | None


def prepare(config: RLConfig, reward: Reward, workdir) -> Run:
    """Checks a config against start, tasks and workdir. Raises ValueError or OSError with what to change."""
    if reward.needs_efforts and not config.efforts:
        raise ValueError(
            f"reward is {config.reward!r}, which pays by thinking effort, and efforts is (): set efforts to "
            f"{tuple(EFFORT_WEIGHTS)}, or take another reward, such as 'evo_cot'"
        )
    workdir = open_workdir(workdir)
    check_workdir(config, workdir, RESUMABLE)
    start = open_model(workdir if has_checkpoint(workdir) else config.start_from)
    start = dataclasses.replace(start, template=with_thinking(start.template, config.thinking, config.effort))
    for effort in config.efforts:
        with_thinking(start.template, config.thinking, effort)  # refuses a template that reads none
    check_turns_end(start.template, start.tokenizer, start.end_ids)
    reader = make_reader(start, context=config.rollout.context, max_tokens=config.rollout.max_tokens)
    _probe(config, reader)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    check_disk(abstract_state(start.config, optimizer), workdir, config.train)
    held = lock(workdir)
    try:
        save_texts(start, workdir / "tokenizer", chat=True)
        write_config(config, workdir)
        write_origins({config.start_from: start.step}, workdir)
    except BaseException:
        unlock(workdir, held)
        raise
    return Run(config, reward, workdir, start, reader, optimizer, held)


def check_replay(workdir) -> None:
    """Raises ValueError where the workdir holds no run to compare with; creates nothing."""
    workdir = open_workdir(workdir)
    for there, what in ((has_checkpoint(workdir), "checkpoint"), ((workdir / "events.jsonl").exists(), "events.jsonl")):
        if not there:
            raise ValueError(f"{workdir} has no {what}: there is no run to replay; name the workdir of one")


def train(run: Run) -> dict[str, Any]:
    """Learns until `train.steps`, from the newest checkpoint in the workdir if there is one.

    The workdir gets metrics.jsonl, samples.jsonl and events.jsonl, a line or more each step, tensorboard/,
    checkpoints/, and evaluation/STEP/ where `train.eval_tasks` asks for it. Returns the last line of metrics.jsonl, or
    {} where nothing was left to do. Raises `Interrupted` after SIGTERM or Ctrl-C, and `TooManyNonfiniteSteps`, both
    after a save; `DamagedCheckpoint` where none can be read, or with --strict the newest.
    """
    use_compilation_cache()
    try:
        start = resume_step(run.workdir / "checkpoints")
        check_logs(run.workdir, start)
        with orbax.open_manager(run.workdir / "checkpoints", keep=run.config.train.keep) as manager:
            print(start_report(run, start), flush=True)
            if start >= run.config.train.steps:
                print(f"done: the run has reached step {start}; raise train.steps to continue it", flush=True)
                return {}
            abstract = abstract_state(run.start.config, run.optimizer)
            with make_learner(run, orbax.restore(manager, abstract) if start else new_state(run)) as learner:
                if start:
                    learner.restore(orbax.restore_record(manager, "learner"))
                return _steps(run, learner, manager, start)
    finally:
        unlock(run.workdir, run.lock)


def replay(run: Run) -> int:
    """Runs it again from its start to its newest checkpoint and compares every event with the log: tokens, batches,
    losses, decisions.

    Returns how many steps were the same. Raises ValueError at the first event that is another.
    """
    use_compilation_cache()
    path, steps = run.workdir / "events.jsonl", run.start.step if has_checkpoint(run.workdir) else 0
    try:
        origin = run.config.start_from
        run = dataclasses.replace(run, start=open_model(origin, step=read_origins(run.workdir).get(origin)))
        with make_learner(run, new_state(run)) as learner:
            logged = _by_step(path)
            for step in range(steps):
                found = learner.step().events
                _compare(step, next(logged, []), found, path)
                print(f"replayed step={step + 1}/{steps} events={len(found)}: the same", flush=True)
    finally:
        unlock(run.workdir, run.lock)
    return steps


@contextlib.contextmanager
def make_learner(run: Run, state: TrainState) -> Iterator[Learner]:
    """A learner before its first step, which is compiled while the first answers are generated."""
    compiler = concurrent.futures.ThreadPoolExecutor(1)
    compiled = compiler.submit(_compile, run)
    rollout = run.config.rollout
    collector = Collector(run.start.config, run.reader, rollout.slots, session_seconds=rollout.session_seconds)
    try:
        yield Learner(run.config, run.reward, collector, lambda *args: compiled.result()(*args), state)
    finally:
        compiler.shutdown(wait=False, cancel_futures=True)
        collector.close()


def new_state(run: Run) -> TrainState:
    """The state before step 0, of float32 master weights."""
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf), jnp.float32), run.start.params())
    return create_state(params, run.optimizer, trainable(run.start.config))


def start_report(run: Run, start: int) -> str:
    """What is about to run, and where its files go."""
    config, rollout, steps = run.config, run.config.rollout, run.config.train.steps
    options = objective_options(config.objective.name, rollout.group_size, config.objective.options)
    tasks = "; ".join(map(describe_source, config.tasks))
    budget = f"{rollout.token_budget} {rollout.count} tokens a step" if rollout.token_budget else "until none is left"
    logs = ", ".join(f"{name}.jsonl" for name in LOGS)
    staleness = f"staleness <= {rollout.max_staleness}, retention <= {rollout.max_retention}, refill {rollout.refill}"
    lines = {
        "model": f"{specs.count(model_spec(run.start.config))} parameters from {config.start_from}",
        "objective": effective_objective(config.objective.name, **options),
        "reward": config.reward + (f", efforts {', '.join(config.efforts)}" if config.efforts else ""),
        "tasks": tasks + (", drawn by pass rate" if config.train.dpr_steps else ""),
        "batch": f"{rollout.prompts_per_step} prompts x {rollout.group_size} answers, rows of {rollout.context} tokens",
        "budget": f"{budget}; {rollout.slots} slots; {staleness}",
        "run": f"steps {start} to {steps}, one optimisation step each: old = policy, so the ratio is 1",
        "kernels": check_kernels(),
        "files": f"{run.workdir}: config.json, {logs}, tensorboard/, checkpoints/, tokenizer/",
        "curves": tensorboard.command(run.workdir),
    }
    return "\n".join(f"{name:>11}  {text}" for name, text in lines.items())


def _probe(config: RLConfig, reader: Reader) -> None:
    """Raises ValueError where some first tasks do not fit the context or the template: training and held-out ones, all
    difficulties, each with its own solution. Of a file, all questions have to fit."""
    requests, first = [], 0
    for source in config.tasks:
        count = min(source.size, max(PROBES, len(source.difficulties)))
        tasks = [task_of(config.tasks, first + i) for i in range(count)]
        tasks += held_out_of(source, count)
        effort = max(config.efforts, key=len, default=None)
        requests += [EpisodeRequest(0, 0, task, seed=0, effort=effort) for task in tasks]
        if source.path:
            rest = [task_of(config.tasks, first + i) for i in range(count, source.size)]
            reader.begin_all([EpisodeRequest(0, 0, task, seed=0, effort=effort) for task in rest])
        first += source.size
    for episode in reader.begin_all(requests):
        rehearse(episode, reader)


def _compile(run: Run) -> Callable:
    config, begun = run.config, time.perf_counter()
    objective = make_objective(config.objective.name, config.rollout.group_size, config.objective.options)
    step = make_rl_step(run.start.config, run.optimizer, objective, microbatches=config.train.microbatches)
    batch = abstract_batch(config.rows, config.rollout.context)
    compiled = jax.jit(step, donate_argnums=0).lower(abstract_state(run.start.config, run.optimizer), batch).compile()
    print(f"compiled the step in {time.perf_counter() - begun:.1f} s", flush=True)
    return compiled


def _steps(run: Run, learner: Learner, manager, start: int) -> dict[str, Any]:
    train, line = run.config.train, {}
    if start == 0:
        _evaluate(run, learner.state.params, 0)
    log = _Log(run, start)
    with (
        contextlib.closing(log),
        stop_signals() as stopped,
        watch_steps(run.workdir, train.hang_seconds) as ended,
    ):

        def generated(*progress: int) -> None:
            ended()
            log.generating(*progress)

        for step in range(start, train.steps):
            result = learner.step(generated)
            line = log.add(step, result, skipped_steps=int(learner.state.skipped_steps))
            stop = stopped[0] if stopped else None  # read once: it may come at any moment
            done, ends = step + 1, step + 1 == train.steps
            too_many = int(learner.state.skipped_steps) >= train.max_nonfinite_steps
            if ends:
                _evaluate(run, learner.state.params, done)
            if ends or too_many or stop is not None or done % train.save_every == 0:
                print(f"saving step={done} in {run.workdir / 'checkpoints' / str(done)}", flush=True)
                record = {"config": dataclasses.asdict(run.config), "data": {"step": done}}
                record |= workdir_sums(run.workdir, [f"{name}.jsonl" for name in LOGS])
                orbax.save(manager, done, learner.state, run.start.config, run=record, learner=learner.to_json())
                manager.wait_until_finished()  # the next step uses the state up
                print(f"saved step={done}", flush=True)
            if too_many:
                raise TooManyNonfiniteSteps(
                    f"{train.max_nonfinite_steps} steps changed nothing (train.max_nonfinite_steps); see metrics.jsonl"
                )
            if stop is not None and not ends:
                raise Interrupted(stop, done)
            ended()
    return line


def _evaluate(run: Run, params, step: int) -> None:
    """Held-out tasks, greedily, into evaluation/STEP, in the place of what another attempt left there."""
    config, folder = run.config, run.workdir / "evaluation" / f"{step:06}"
    if not config.train.eval_tasks:
        return
    sources = [held_out_of(source, config.train.eval_tasks) for source in config.tasks]
    seconds = config.rollout.session_seconds
    with Collector(
        run.start.config, run.reader, config.rollout.slots, temperature=0.0, row_tile=None, session_seconds=seconds
    ) as collector:
        records = evaluate(collector, params, [task for tasks in sources for task in tasks])
    metrics = summarise(records)
    print(f"held-out tasks before step {step + 1}, the likeliest answers:\n{table(metrics)}", flush=True)
    if folder.exists():
        remove_folder(folder, run.workdir)
    write_results(folder, records, metrics, {"step": step})


class _Log:
    """The files that get lines at every step, and the line that is printed."""

    def __init__(self, run: Run, start: int):
        self._run, self._start, self._begun = run, start, time.perf_counter()
        self._told, self._memory = self._begun, MemoryUse()
        self._metrics = MetricsWriter(run.workdir, first_step=start)
        for name in ("samples", "events"):
            drop_lines_from(run.workdir / f"{name}.jsonl", start)
        steps = run.config.train.steps
        self._rates = np.asarray(jax.jit(learning_rate(run.config.optimizer, steps))(np.arange(steps)))

    def add(self, step: int, result, *, skipped_steps: int) -> dict[str, Any]:
        metrics = result.metrics
        seconds = metrics["generate_seconds"] + metrics["train_seconds"]
        applied = step - skipped_steps + metrics["nonfinite"]  # before this step
        line = to_line(step, metrics) | {
            "learning_rate": float(self._rates[applied]),
            "tokens_per_second": metrics["generated_tokens"] / seconds,
            "time": time.time(),
        }
        line |= self._memory.measure()
        self._metrics.write([line])
        self._append("samples", step, result.samples)
        self._append("events", step, result.events)
        self._print(step, line)
        self._told = time.perf_counter()
        return line

    def close(self) -> None:
        self._metrics.close()

    def generating(self, step: int, tokens: int, waiting: int) -> None:
        """A line now and then: how far the budget is used up, and how many rollouts are under way."""
        now, rollout = time.perf_counter(), self._run.config.rollout
        if now - self._told >= GENERATING_SECONDS:
            self._told = now
            budget = f"/{rollout.token_budget}" if rollout.token_budget else ""
            print(f"step={step + 1} generating: tokens={tokens}{budget} rollouts={waiting}", flush=True)

    def _append(self, name: str, step: int, records: Iterable[Event]) -> None:
        path = self._run.workdir / f"{name}.jsonl"
        texts = (json.dumps({"step": step} | record) + "\n" for record in records)
        with write_errors(path):
            append(path, "".join(texts).encode())

    def _print(self, step: int, line: dict[str, Any]) -> None:
        steps = self._run.config.train.steps
        shown = {
            "loss": "loss", "reward": "reward", "accuracy": "accuracy", "tokens/answer": "tokens_per_answer",
            "groups": "groups", "staleness": "staleness/max", "masked": "masked_fraction",
            "mismatch": "mismatch_same_version/max", "fresh_tokens": "mismatch_same_version/tokens",
            "generate_s": "generate_seconds", "train_s": "train_seconds",
        }  # fmt: skip
        values = " ".join(f"{name}={_short(line[key])}" for name, key in shown.items() if key in line)
        per_step = (time.perf_counter() - self._begun) / (step + 1 - self._start)
        eta = datetime.timedelta(seconds=round((steps - step - 1) * per_step))
        skipped = "not finite: nothing changed; " if line["nonfinite"] else ""
        print(f"step={step + 1}/{steps} {skipped}{values} {eta=!s}", flush=True)


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _by_step(path: epath.Path) -> Iterator[list[Event]]:
    """The events of one step after the other. Read only as far as asked for: the last line may have been cut off."""
    with path.open() as file:
        read = (parse_object(line, str(path)) for line in file)
        for _, events in itertools.groupby(read, key=lambda event: event.get("step")):
            yield list(events)


def _compare(step: int, logged: list[Event], found: list[Event], path) -> None:
    plain = json.loads(json.dumps(found))
    for i, (event, wanted) in enumerate(zip(plain, logged, strict=False)):
        if {"step": step} | event != wanted:
            raise ValueError(f"{path}: event {i} of step {step} is {wanted}, its replay {event}")
    if len(plain) != len(logged):
        raise ValueError(f"{path}: step {step} has {len(logged)} events, its replay {len(plain)}")
