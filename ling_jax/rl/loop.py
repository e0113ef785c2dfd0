"""The loop of reinforcement learning: what about a run touches the world. What it computes is `ling_jax.rl.learner`.

Everything runs in one process, generation on its first device and training on the mesh, in turns.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.checkpoint.steps import resume_step
from ling_jax.checkpoint.workdir_sums import check_logs, workdir_sums
from ling_jax.envs.sources import distinct_held_out
from ling_jax.evaluate.report import table, write_results
from ling_jax.files import remove_folder
from ling_jax.rl.answers import Answer
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RLConfig
from ling_jax.rl.evaluation import evaluate, summarise
from ling_jax.rl.learner import Learner, Step
from ling_jax.rl.log import LOGS, RunLog
from ling_jax.rl.partial import read_partial, remove_partial, write_partial
from ling_jax.rl.prepare import Run, start_report
from ling_jax.rl.step import trainable
from ling_jax.rl.updates import Programs, Update, abstract_reference, compile_programs, learn
from ling_jax.run.loop import Interrupted, TooManyNonfiniteSteps
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.stop import stop_signals
from ling_jax.run.watchdog import watch_steps
from ling_jax.run.workdir import unlock
from ling_jax.spec import Params
from ling_jax.train.programs import state_of
from ling_jax.train.state import TrainState


def train(run: Run) -> dict[str, Any]:
    """Learns until `train.steps`, from the newest checkpoint in the workdir if there is one.

    The workdir gets metrics.jsonl, samples.jsonl and events.jsonl, a line or more each step, tensorboard/,
    checkpoints/, and evaluation/STEP/ where `train.eval_tasks` asks for it. Returns the last line of metrics.jsonl, or
    {} where nothing was left to do.

    Whatever ends it saves first, rollouts that are not finished included. Raises `Interrupted` after SIGTERM or Ctrl-C,
    `TooManyNonfiniteSteps`, `learner.TooManyFailures`, and ValueError on a reward that is no number or out of its
    range; before the first step `DamagedCheckpoint` where none can be read, or with --strict the newest.
    """
    use_compilation_cache()
    try:
        start = resume_step(run.workdir / "checkpoints")
        check_logs(run.workdir, start)
        with orbax.open_manager(run.workdir / "checkpoints", keep=run.config.train.keep) as manager:
            print(start_report(run, start), flush=True)
            if start >= run.config.train.steps and not _owes_evaluation(run, start):
                print(f"done: the run has reached step {start}; raise train.steps to continue it", flush=True)
                return {}
            partial = read_partial(run.workdir, start, run.config)
            state = orbax.restore(manager, run.abstract) if start else new_state(run)
            with make_learner(run, state) as learner:
                if partial or start:
                    learner.restore(partial or orbax.restore_record(manager, "learner"))
                return _steps(run, learner, manager, start, resumed=partial is not None)
    finally:
        unlock(run.workdir, run.lock)


@contextlib.contextmanager
def make_learner(run: Run, state: TrainState) -> Iterator[Learner]:
    """A learner before its first step, which is compiled while the first answers are generated."""
    compiler = concurrent.futures.ThreadPoolExecutor(1)
    compiled = compiler.submit(_compile, run)
    rollout = run.config.rollout
    collector = Collector(
        run.start.config,
        run.reader,
        rollout.slots,
        session_seconds=rollout.session_seconds,
        record_experts=rollout.record_experts,
    )
    try:
        reference = run.reference and reading_copy(run.reference, run.mesh)
        teachers = [reading_copy(teacher, run.mesh) for teacher in run.teachers]

        def update(state: TrainState, answers: Sequence[Answer], version: int) -> tuple[TrainState, list[Update]]:
            return learn(compiled.result(), run.config, state, reference, answers, version, teachers)

        yield Learner(run.config, run.reward, collector, update, state)
    finally:
        collector.close()
        compiler.shutdown(wait=False, cancel_futures=True)


def new_state(run: Run) -> TrainState:
    """The state before step 0, of float32 master weights."""
    model = run.start.config
    return state_of(run.start.params(run.mesh), model, run.optimizer, run.abstract, trainable(model))


def reading_copy(model: ModelFolder, mesh: jax.sharding.Mesh) -> Params:
    """The model's weights on the mesh, to be read only (`updates.abstract_reference`)."""
    wanted = abstract_reference(model.config, mesh)

    def cast(params: Params) -> Params:
        return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, wanted)

    params = {name: leaves for name, leaves in model.params(mesh).items() if name in wanted}
    return jax.jit(cast, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))(params)


def _compile(run: Run) -> Programs:
    begun = time.perf_counter()
    teachers = [teacher.config for teacher in run.teachers]
    programs = compile_programs(run.start.config, run.optimizer, run.config, run.mesh, teachers)
    print(f"compiled the step in {time.perf_counter() - begun:.1f} s", flush=True)
    return programs


def _steps(run: Run, learner: Learner, manager, start: int, *, resumed: bool) -> dict[str, Any]:
    train, line = run.config.train, {}
    log = RunLog(run.config, run.workdir, start)
    with (
        contextlib.closing(log),
        stop_signals("after this piece of decoding") as stopped,
        watch_steps(run.workdir, train.hang_seconds) as ended,
    ):

        def generated(*progress: int) -> None:
            ended()
            log.generating(*progress)

        def asked() -> bool:
            ended()
            return bool(stopped)

        if _owes_evaluation(run, start) or (start == 0 and not resumed):
            _evaluate(run, learner, start, asked)
        for step in range(start, train.steps):
            result = _step(run, learner, manager, step, generated, stopped)
            line = log.add(step, result, updates=int(learner.state.opt_state.count))
            done, ends = step + 1, step + 1 == train.steps
            too_many = int(learner.state.skipped_steps) >= train.max_nonfinite_steps
            if _is_evaluated(run.config, done):
                try:
                    _evaluate(run, learner, done, asked)
                except BaseException:
                    _save(run, learner, manager, done)
                    raise
            if ends or too_many or stopped or done % train.save_every == 0:
                _save(run, learner, manager, done)
            if too_many:
                raise TooManyNonfiniteSteps(
                    f"{train.max_nonfinite_steps} steps changed nothing (train.max_nonfinite_steps); see metrics.jsonl"
                )
            if stopped and not ends:
                raise Interrupted(stopped[0], done)
            ended()
    return line


def _step(run: Run, learner: Learner, manager, step: int, tell: Callable[..., None], stopped: list[int]) -> Step:
    """One step. Whatever ends it half-way saves what there is, and the error says so."""
    try:
        result = learner.step(tell, lambda: bool(stopped))
    except Exception as error:
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(learner.state)):  # the update has used the state up
            raise
        _save(run, learner, manager, step)
        error.add_note(f"the run is saved within step {step + 1}; the same command continues there")
        raise
    if result is None:
        _save(run, learner, manager, step)
        raise Interrupted(stopped[0], step)
    return result


def _save(run: Run, learner: Learner, manager, step: int) -> None:
    """A checkpoint with the rollouts under way; what came since one that is there stands beside it."""
    if step in (0, manager.latest_step()):
        write_partial(run.workdir, step, run.config, learner.to_json())
        print(f"saved the rollouts of step={step + 1} in {run.workdir / 'partial.json'}", flush=True)
        return
    print(f"saving step={step} in {run.workdir / 'checkpoints' / str(step)}", flush=True)
    record = {"config": dataclasses.asdict(run.config), "data": {"step": step}}
    record |= workdir_sums(run.workdir, [f"{name}.jsonl" for name in LOGS])
    orbax.save(manager, step, learner.state, run.start.config, run=record, learner=learner.to_json())
    manager.wait_until_finished()  # the next step uses the state up
    remove_partial(run.workdir)
    print(f"saved step={step}", flush=True)


def _is_evaluated(config: RLConfig, step: int) -> bool:
    """Whether the held-out tasks are answered after so many steps."""
    train = config.train
    due = step in (0, train.steps) or (train.eval_every > 0 and step % train.eval_every == 0)
    return train.eval_tasks > 0 and due


def _owes_evaluation(run: Run, step: int) -> bool:
    """Whether the evaluation after so many steps is due and missing, as after a signal or an error."""
    return _is_evaluated(run.config, step) and not _evaluation(run, step).exists()


def _evaluation(run: Run, step: int) -> epath.Path:
    return run.workdir / "evaluation" / f"{step:06}"


def _evaluate(run: Run, learner: Learner, step: int, stopped: Callable[[], bool]) -> None:
    """Held-out tasks, greedily, into evaluation/STEP, in the place of what another attempt left there; not after a
    signal."""
    config, folder = run.config, _evaluation(run, step)
    if not config.train.eval_tasks or stopped():
        return
    tasks = distinct_held_out(config.tasks, config.train.eval_tasks)
    seconds = config.rollout.session_seconds
    with Collector(
        run.start.config, run.reader, config.rollout.slots, temperature=0.0, row_tile=None, session_seconds=seconds
    ) as collector:
        records = evaluate(collector, learner.state.params, tasks, stopped=stopped)
    if stopped():
        return
    metrics = summarise(records)
    print(f"held-out tasks before step {step + 1}, the likeliest answers:\n{table(metrics)}", flush=True)
    if folder.exists():
        remove_folder(folder, run.workdir)
    write_results(folder, records, metrics, {"step": step})
