"""The loop of reinforcement learning: what about a run touches the world. What it computes is `ling_jax.rl.learner`.

Generation and training take turns on the devices. Of several processes the first one decides everything, and the
others follow it (`rl.follow`).
"""

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.folder import ModelFolder
from ling_jax.checkpoint.steps import resume_step
from ling_jax.checkpoint.workdir_sums import check_logs
from ling_jax.data.tokenizer import tokenizer_digest
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import all_peers
from ling_jax.engine.reshard import reshard
from ling_jax.rl.answers import Answer
from ling_jax.rl.collector import Collector
from ling_jax.rl.errors import ErrorLog
from ling_jax.rl.follow import Follower
from ling_jax.rl.learner import Learner
from ling_jax.rl.link import Link, Operation
from ling_jax.rl.log import RunLog, note_fingerprint, write_integrity
from ling_jax.rl.partial import read_partial
from ling_jax.rl.pool import Pool
from ling_jax.rl.prepare import Run, start_report
from ling_jax.rl.stage import RLStage, make_collector, owes_evaluation
from ling_jax.rl.step import trainable
from ling_jax.rl.updates import Programs, Update, compile_programs, layouts, learn, optional_arrays
from ling_jax.run.program_cache import use_compilation_cache
from ling_jax.run.steps import Interrupted, run_steps
from ling_jax.run.workdir import unlock
from ling_jax.spec import Params
from ling_jax.train.programs import state_of
from ling_jax.train.state import TrainState


def train(run: Run) -> dict[str, Any]:
    """Learns until `train.steps`, from the newest checkpoint in the workdir if there is one.

    The workdir gets lines for each step in metrics, samples, episodes, events and timeline.jsonl, tensorboard/,
    checkpoints/, and evaluation/STEP/ where `train.eval_tasks` asks for it. Returns the last line of metrics.jsonl, or
    {} where nothing was left to do.

    Whatever ends it saves first, rollouts that are not finished included. Raises `Interrupted` after SIGTERM or Ctrl-C,
    `TooManyNonfiniteSteps`, `learner.TooManyFailures`, and ValueError on a reward that is no number or out of its
    range; before the first step `DamagedCheckpoint` where none can be read, or with --strict the newest.
    """
    use_compilation_cache()
    peers = all_peers()
    try:
        start = resume_step(run.workdir / "checkpoints", peers)
        if not peers.index:
            check_logs(run.workdir, start)
        with orbax.open_manager(run.workdir / "checkpoints", keep=run.config.train.keep) as manager:
            hosts.check_same(dict(checkpoint=start, tokenizer=tokenizer_digest(run.reader.tokenizer)))
            print(start_report(run, start), flush=True)
            owes = peers.first(owes_evaluation(run, start), "evaluation that is owed")
            if start >= run.config.train.steps and not owes:
                print(f"done: the run has reached step {start}; raise train.steps to continue it", flush=True)
                return {}
            state = orbax.restore(manager, run.abstract) if start else new_state(run)
            record = orbax.restore_record(manager, "learner") if start else None  # by all: Orbax waits for them
            if peers.index:
                return _follow(run, manager, state)
            partial = read_partial(run.workdir, start, run.config)
            with make_learner(run, state, run.config.rollout.engines) as learner:
                if partial or record:
                    learner.restore(partial or record)
                note_fingerprint(run.workdir, start, learner.collector.fingerprint)
                with _end_of_others(learner.collector.link):
                    last = _steps(run, learner, manager, start, resumed=partial is not None)
            print(write_integrity(run.workdir), flush=True)
            return last
    finally:
        unlock(run.workdir, run.lock)


def _follow(run: Run, manager: orbax.Manager, state: TrainState) -> dict[str, Any]:
    """The run of a process that is not the first. Raises `Interrupted` where a signal ended the first one's."""
    link, programs = make_link(run), _compile(run, None)
    if number := Follower(run, link, manager, state, programs, *reading_copies(run)).follow():
        raise Interrupted(number, manager.latest_step() or 0)
    return {}


def make_link(run: Run) -> Link | None:
    """The link to the other processes; None where there are none."""
    if not hosts.is_multiprocess():
        return None
    replays = run.start.config if run.config.rollout.record_experts else None
    return Link(run.mesh, layouts(run.config, run.mesh)[0], optional_arrays(run.config), replays)


@contextlib.contextmanager
def _end_of_others(link: Link | None) -> Iterator[None]:
    """A block at whose end the others end well; after an error in it they end with it (`hosts.fail`)."""
    number = 0
    try:
        yield
    except Interrupted as interrupted:
        number = interrupted.number
        raise
    except BaseException:
        link = None
        raise
    finally:
        if link is not None:
            link.send_operation(Operation.END, number)


@contextlib.contextmanager
def make_learner(run: Run, state: TrainState, engines: int = 1) -> Iterator[Learner]:
    """A learner before its first step, which is compiled while the first answers are generated."""
    worker, link = concurrent.futures.ThreadPoolExecutor(1), make_link(run)
    compiled = worker.submit(_compile, run, link)
    errors = ErrorLog(run.workdir)

    def collector_of(engine: int) -> Collector:
        experts = run.config.rollout.record_experts
        return make_collector(run, link, Operation.GENERATE, engine, record_experts=experts)

    collector = Pool(collector_of, engines, errors.tell) if engines > 1 else collector_of(0)
    try:
        if link is not None:
            compiled.result()  # the other processes compile first, too: a collective does not wait half a minute
        reference, teachers = reading_copies(run)

        def update(state: TrainState, answers: Sequence[Answer], version: int) -> tuple[TrainState, list[Update]]:
            return learn(compiled.result(), run.config, state, reference, answers, version, teachers)

        trainer = worker if run.config.rollout.overlap else None
        yield Learner(run.config, run.reward, collector, update, state, trainer, errors)
    finally:
        collector.close()
        worker.shutdown(wait=False, cancel_futures=True)


def new_state(run: Run) -> TrainState:
    """The state before step 0, of float32 master weights."""
    model = run.start.config
    return state_of(run.start.params(run.mesh), model, run.optimizer, run.abstract, trainable(model))


def reading_copies(run: Run) -> tuple[Params | None, list[Params]]:
    """The weights that a run reads only, of (its reference, its teachers): in the dtypes of serving, without MTP."""

    def copy(model: ModelFolder) -> Params:
        return reshard(model.params(run.mesh), model.config, run.mesh)

    return run.reference and copy(run.reference), [copy(teacher) for teacher in run.teachers]


def _compile(run: Run, link: Link | None) -> Programs:
    begun = time.perf_counter()
    teachers = [teacher.config for teacher in run.teachers]
    programs = compile_programs(run.start.config, run.optimizer, run.config, run.mesh, teachers, link)
    print(f"compiled the step in {time.perf_counter() - begun:.1f} s", flush=True)
    return programs


def _steps(run: Run, learner: Learner, manager: orbax.Manager, start: int, *, resumed: bool) -> dict[str, Any]:
    train, log = run.config.train, RunLog(run.config, run.workdir, start)
    with contextlib.closing(log):
        stage = RLStage(run, learner, manager, log, start, resumed=resumed)
        run_steps(stage, train, train.steps, start, run.workdir, "after this piece of decoding")
    return stage.line
