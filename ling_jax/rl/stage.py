"""Reinforcement learning as the loop sees it: steps of the learner, logs, evaluations and saves around them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from ling_jax.checkpoint import orbax
from ling_jax.checkpoint.workdir_sums import workdir_sums
from ling_jax.distributed import hosts
from ling_jax.envs.sources import distinct_held_out
from ling_jax.evaluate.report import table, write_results
from ling_jax.files import remove_folder
from ling_jax.rl.collector import Collector
from ling_jax.rl.config import RLConfig
from ling_jax.rl.errors import ERRORS
from ling_jax.rl.evaluation import evaluate, summarise
from ling_jax.rl.health import Unhealthy, check_health
from ling_jax.rl.learner import Learner, Step
from ling_jax.rl.link import Link, Operation
from ling_jax.rl.log import LOGS, RunLog
from ling_jax.rl.partial import remove_partial, write_partial
from ling_jax.rl.prepare import Run
from ling_jax.run.steps import Interrupted


class RLStage:
    """`steps.Stage` of a run; `line` is that of the last step."""

    def __init__(self, run: Run, learner: Learner, manager: orbax.Manager, log: RunLog, start: int, *, resumed: bool):
        """`resumed`: it goes on within step `start`."""
        self.run, self.learner, self.manager, self.log, self.line = run, learner, manager, log, {}
        self._start, self._resumed = start, resumed
        self._asked: Callable[[], bool] = lambda: False

    def begin(self, stopped: list[int], note: Callable[[], None]) -> None:
        """The evaluation of the start, or one that is owed."""

        def asked() -> bool:
            note()
            _take_posted(stopped)
            return bool(stopped)

        self._asked = asked
        if owes_evaluation(self.run, self._start) or (self._start == 0 and not self._resumed):
            self.evaluate(self._start)

    def step(self, step: int, stopped: list[int], note: Callable[[], None]) -> None:
        """One step. Whatever ends it half-way saves what there is, and the error says so."""

        def generated(*progress: int) -> None:
            note()
            _take_posted(stopped)
            self.log.generating(*progress)

        result = self._learnt(step, generated, stopped)
        self.line = self.log.add(step, result, updates=int(self.learner.state.opt_state.count))
        try:
            check_health(self.line, self.run.config.train)
        except Unhealthy:
            self.save(step + 1, waits=True)
            raise

    def _learnt(self, step: int, tell: Callable[..., None], stopped: list[int]) -> Step:
        learner = self.learner
        try:
            result = learner.step(tell, lambda: bool(stopped))
        except Exception as error:
            if lines := learner.errors.last_lines():
                error.add_note(f"the last failures of its parts, all of them in {ERRORS}:\n{lines}")
            used_up = any(leaf.is_deleted() for leaf in jax.tree.leaves(learner.state))
            if used_up or learner.learning:  # the batch is gone, and the weights have not learnt from it
                raise
            self.save(step, waits=True)
            error.add_note(f"the run is saved within step {step + 1}; the same command continues there")
            raise
        if result is None:
            self.save(step, waits=True)
            raise Interrupted(stopped[0], step)
        return result

    def stop(self, done: int, number: int | None) -> int | None:
        """The first process decides for all."""
        return number

    def is_evaluated(self, done: int, *, stops: bool) -> bool:
        """Whether the held-out tasks are answered after so many steps; a signal skips that, which is then owed."""
        return not stops and _is_evaluated(self.run.config, done)

    def settle(self) -> None:
        """Metrics are there when a step ends."""

    def evaluate(self, done: int) -> bool:
        """Held-out tasks, greedily, into evaluation/DONE, in the place of what another attempt left there; not after a
        signal. No result ends the run."""
        run, config, folder = self.run, self.run.config, _evaluation(self.run, done)
        if not config.train.eval_tasks or self._asked():
            return False
        tasks, link = distinct_held_out(config.tasks, config.train.eval_tasks), self.learner.collector.link
        with (
            make_collector(run, link, Operation.EVALUATE, temperature=0.0, row_tile=None) as collector,
            collector.generating(),
        ):
            records = evaluate(collector, self.learner.state.params, tasks, stopped=self._asked)
        if self._asked():
            return False
        metrics = summarise(records)
        print(f"held-out tasks before step {done + 1}, the likeliest answers:\n{table(metrics)}", flush=True)
        if folder.exists():
            remove_folder(folder, run.workdir)
        write_results(folder, records, metrics, {"step": done})
        return False

    def save(self, done: int, *, waits: bool) -> None:
        """A checkpoint with the rollouts under way. Where the step has one already, partial.json gets the rollouts.

        It always waits, since the next step uses the state up.
        """
        run, learner, link = self.run, self.learner, self.learner.collector.link
        if done in (0, self.manager.latest_step()):
            write_partial(run.workdir, done, run.config, learner.to_json())
            print(f"saved the rollouts of step={done + 1} in {run.workdir / 'partial.json'}", flush=True)
            return
        print(f"saving step={done} in {run.workdir / 'checkpoints' / str(done)}", flush=True)
        record = {"config": dataclasses.asdict(run.config), "data": {"step": done}}
        record |= workdir_sums(run.workdir, [f"{name}.jsonl" for name in LOGS])
        if link is not None:
            link.send_operation(Operation.SAVE, done)
        orbax.save(self.manager, done, learner.state, run.start.config, run=record, learner=learner.to_json())
        self.manager.wait_until_finished()
        remove_partial(run.workdir)
        print(f"saved step={done}", flush=True)

    def save_after_error(self, done: int) -> None:
        """The first process evaluates, and the others follow it into the save."""
        self.save(done, waits=True)

    def failed_steps(self) -> int:
        """Those that changed nothing."""
        return int(self.learner.state.skipped_steps)

    def failed_text(self) -> str:
        """What is wrong with them, and where they are listed."""
        return (
            f"changed nothing: not finite, or without a token to learn from; see {self.run.workdir / 'metrics.jsonl'}"
        )


def make_collector(run: Run, link: Link | None, operation: Operation, engine: int = 0, **options: Any) -> Collector:
    """A collector for a run's model and tasks, on the devices of an engine; `options` are those of `Collector`."""
    slots, parked = run.config.rollout.of_engine
    common = dict(session_seconds=run.config.rollout.session_seconds, mesh=run.engine_meshes[engine], parked=parked)
    return run.collector(run.start.config, run.reader, slots, link=link, operation=operation, **common, **options)


def owes_evaluation(run: Run, step: int) -> bool:
    """Whether the evaluation after so many steps is due and missing, as after a signal or an error."""
    return _is_evaluated(run.config, step) and not _evaluation(run, step).exists()


def _take_posted(stopped: list[int]) -> None:
    """Adds the signal that another process got."""
    if not stopped and (number := hosts.posted_signal()) is not None:
        stopped.append(number)


def _is_evaluated(config: RLConfig, step: int) -> bool:
    train = config.train
    due = step in (0, train.steps) or (train.eval_every > 0 and step % train.eval_every == 0)
    return train.eval_tasks > 0 and due


def _evaluation(run: Run, step: int) -> epath.Path:
    return run.workdir / "evaluation" / f"{step:06}"
