"""The loop of pre-training: everything about a run that touches the world. The step itself is `ling_jax.train.step`."""

import concurrent.futures
import contextlib
import dataclasses
import json
import signal
from collections.abc import Callable

import jax
import numpy as np
import optax
from etils import epath

from ling_jax import data
from ling_jax.checkpoint import orbax
from ling_jax.data.tokenizer import replacing
from ling_jax.parallel.sharding import RULES, batch_sharding, make_mesh
from ling_jax.train.config import PretrainConfig, differences, open_source
from ling_jax.train.corpus import Corpus, held_out_batches, prepare_corpus
from ling_jax.train.metrics import MetricsWriter, peak_flops
from ling_jax.train.optimizer import make_optimizer
from ling_jax.train.programs import compile_eval_step, compile_train_step, new_state, use_compilation_cache
from ling_jax.train.progress import ProgressLog, start_report
from ling_jax.train.state import TrainState, abstract_state
from ling_jax.train.stop import stop_signals

PROFILED_STEPS = 3
PROFILE_AFTER = 10  # steps of this start, where the config names none


class Interrupted(Exception):
    """A signal ended the run after a save; the same call goes on."""

    def __init__(self, number: int, step: int):
        super().__init__(f"{signal.Signals(number).name}: saved at step {step}; the same command goes on from there")
        self.number = number


class TooManyBadSteps(RuntimeError):
    """So many steps had a loss or gradient that was not finite that the run stopped."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose config fits its devices, its data and its workdir."""

    config: PretrainConfig
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    abstract: TrainState
    corpus: Corpus


def prepare(config: PretrainConfig, workdir) -> Run:
    """Checks a config against devices, sources and workdir, then makes what is not there: tokenizer, tokens, rows.

    Raises ValueError or FileNotFoundError with what to change; the workdir then stays as it was.
    """
    check_workdir(config, workdir)
    for source in config.data.sources:
        data.source_files(open_source(source))
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    _check_batch(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract = abstract_state(config.model, optimizer, mesh)
    corpus = prepare_corpus(config.data, config.model, workdir)
    data.save_tokenizer(corpus.tokenizer, epath.Path(workdir) / "tokenizer")
    with replacing(epath.Path(workdir) / "config.json") as file:
        file.write(json.dumps(dataclasses.asdict(config), indent=1).encode())
    return Run(config, epath.Path(workdir), mesh, optimizer, abstract, corpus)


def train(run: Run, *, profile: bool = False) -> dict:
    """Trains until `train.steps`, from the newest checkpoint in the workdir if there is one.

    Prints a report and then progress; the workdir gets metrics.jsonl, tensorboard/ and checkpoints/. Returns the last
    line of metrics.jsonl, or {} where nothing was left to do. Raises `Interrupted` after SIGTERM or Ctrl-C, and
    `TooManyBadSteps`; both after a save.
    """
    use_compilation_cache()
    config = run.config
    with (
        stop_signals() as stopped,
        orbax.open_manager(run.workdir / "checkpoints", keep=config.train.keep) as manager,
        concurrent.futures.ThreadPoolExecutor(1) as compiler,
    ):
        start = manager.latest_step() or 0
        print(start_report(config, run.abstract, run.mesh, run.corpus, run.workdir, start), flush=True)
        if start >= config.train.steps:
            print(f"done: step {start} is there already; raise train.steps to go on", flush=True)
            return {}
        peak = run.mesh.size * peak_flops()  # measured where it is not known, so before the machine is busy
        train_step = compiler.submit(compile_train_step, config, run.optimizer, run.abstract, run.mesh)
        eval_step = compiler.submit(compile_eval_step, config, run.abstract, run.mesh)
        state = orbax.restore(manager, run.abstract) if start else new_state(config, run.optimizer, run.abstract)
        return _Loop(run, manager, train_step.result(), eval_step, stopped, peak).steps(state, start, profile=profile)


@dataclasses.dataclass(frozen=True)
class _Loop:
    run: Run
    manager: orbax.ocp.CheckpointManager
    train_step: Callable
    eval_step: concurrent.futures.Future
    stopped: list[int]  # signals
    peak: float  # FLOP/s of all devices

    def steps(self, state: TrainState, start: int, *, profile: bool) -> dict:
        train, hosts = self.run.config.train, dict(host=jax.process_index(), num_hosts=jax.process_count())
        writer = MetricsWriter(self.run.workdir, first_step=start)
        log = ProgressLog(self.run.config, writer, bad_steps=int(state.bad_steps), peak=self.peak)
        self._check_bad_steps(log, start)
        first = max(start, min(train.profile_step or start + PROFILE_AFTER, train.steps - 1))
        traced = range(first, min(first + PROFILED_STEPS, train.steps)) if profile else range(0)
        line = {}
        with contextlib.closing(writer):
            batches = data.batches(
                self.run.corpus.train, batch_size=train.batch_size, start_step=start, stop_step=train.steps, **hosts
            )
            for step, batch in batches:
                if traced and step == traced[0]:
                    jax.profiler.start_trace(str(self.run.workdir / "profile"))
                state, metrics = self.train_step(state, self._on_devices(batch))
                if traced and step == traced[-1]:
                    self._end_trace(metrics)
                log.add(step, metrics)
                stop = self.stopped[0] if self.stopped else None  # read once: it may come at any moment
                line = self._after(state, step + 1, log, stops=stop is not None)
                self._check_bad_steps(log, step + 1)
                if stop is not None and step + 1 < train.steps:
                    raise Interrupted(stop, step + 1)
        return line

    def _after(self, state: TrainState, done: int, log: ProgressLog, *, stops: bool) -> dict:
        """Evaluates and saves where that is due; returns the step's metrics if so."""
        train = self.run.config.train
        ends = done == train.steps
        evaluates = ends or (train.eval_every and done % train.eval_every == 0)
        saves = ends or stops or log.bad_steps >= train.max_bad_steps or done % train.save_every == 0
        if not evaluates and not saves:
            return {}
        # Before a save, so that no step before the checkpoint lacks its line.
        line = log.flush(**(self.held_out_loss(state.params) if evaluates else {}))
        stops = stops or log.bad_steps >= train.max_bad_steps
        if saves or stops:
            orbax.save(self.manager, done, state, self.run.config.model)
            if ends or stops:
                self.manager.wait_until_finished()
            print(f"saved step={done} in {self.run.workdir / 'checkpoints' / str(done)}", flush=True)
        log.restart_clock()
        return line

    def held_out_loss(self, params) -> dict[str, float]:
        """Mean nats per token over the held-out batches; {} where no document is held out."""
        rows = self.run.config.train.batch_size // self.run.config.train.microbatches
        batches = held_out_batches(self.run.corpus, rows, self.run.config.train.eval_batches)
        sums = [self.eval_step.result()(params, self._on_devices(batch)) for batch in batches]
        if not sums:
            return {}
        loss = float(sum(s.main for s in sums) / sum(s.main_count for s in sums))
        print(f"held_out_loss={loss:.4f} nats/token", flush=True)
        return {"held_out_loss": loss}

    def _end_trace(self, metrics) -> None:
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        print(f"profile in {self.run.workdir / 'profile'}; open it with `tensorboard` or xprof", flush=True)

    def _on_devices(self, batch: data.Batch):
        data.validate_batch(
            batch, vocab_size=self.run.config.model.vocab_size, max_length=self.run.config.model.max_length
        )
        sharding = batch_sharding(self.run.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}

    def _check_bad_steps(self, log: ProgressLog, step: int) -> None:
        if log.bad_steps >= (most := self.run.config.train.max_bad_steps):
            raise TooManyBadSteps(
                f"{log.bad_steps} steps until step {step} had a loss or gradient that is not finite, and "
                f'train.max_bad_steps is {most}; the steps are in {self.run.workdir / "metrics.jsonl"} ("bad": true)'
            )


def check_workdir(config: PretrainConfig, workdir) -> None:
    """Raises ValueError where the workdir holds another run, with a line for each field that may not differ."""
    path = epath.Path(workdir) / "config.json"
    if path.exists():
        changed = differences(json.loads(path.read_text()), dataclasses.asdict(config))
        if changed:
            lines = "\n  ".join(changed)
            raise ValueError(f"{workdir} holds another run; name another workdir, or undo these:\n  {lines}")


def _check_batch(config: PretrainConfig, mesh: jax.sharding.Mesh) -> None:
    train, ways = config.train, int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))
    rows = train.batch_size // train.microbatches
    if rows % ways:
        raise ValueError(
            f"train.batch_size {train.batch_size} in {train.microbatches} microbatches is {rows} rows at a time; the "
            f"mesh splits them {ways} ways ({', '.join(RULES['batch'])} of {dict(mesh.shape)})"
        )
